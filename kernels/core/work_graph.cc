#include "kernels/core/work_graph.h"

#include <utility>

#include "kernels/core/build.h"

namespace tessera {

namespace gpu {
void begin_capture(void* stream);
void* end_capture(void* stream);
void abandon_capture(void* stream) noexcept;
void run_graph(void* graph, void* stream);
void destroy_graph(void* graph) noexcept;
}  // namespace gpu

WorkGraph::WorkGraph(Stream& stream, std::function<void()> work)
    : stream_(stream), work_(std::move(work)) {
  if constexpr (kCudaBuilt) {
    if (!stream.on(DeviceKind::kGpu)) return;
    gpu::begin_capture(stream.handle());
    try {
      work_();
    } catch (...) {
      gpu::abandon_capture(stream.handle());
      throw;
    }
    handle_ = gpu::end_capture(stream.handle());
    work_ = nullptr;
  }
}

WorkGraph::~WorkGraph() {
  if constexpr (kCudaBuilt) {
    if (handle_ != nullptr) gpu::destroy_graph(handle_);
  }
}

void WorkGraph::run() {
  if constexpr (kCudaBuilt) {
    if (handle_ != nullptr) return gpu::run_graph(handle_, stream_.handle());
  }
  work_();
}

}  // namespace tessera
