#include "kernels/core/work_graph.h"

#include <utility>

#include "kernels/core/build.h"

namespace tessera {

namespace gpu {
void begin_capture(void* stream);
/// Of `pieces` it says how many there are; without any the result is nullptr.
void* end_capture(void* stream, int64_t& pieces);
void abandon_capture(void* stream) noexcept;
void run_graph(void* graph, void* stream);
void destroy_graph(void* graph) noexcept;
}  // namespace gpu

WorkGraph::WorkGraph(Stream& stream, std::function<void()> work)
    : WorkGraph(stream, [work = std::move(work)](WorkGraph&) { work(); }) {}

WorkGraph::WorkGraph(Stream& stream, std::function<void(WorkGraph&)> work)
    : stream_(stream), work_(std::move(work)) {
  if constexpr (kCudaBuilt) {
    if (!stream.on(DeviceKind::kGpu)) return;
    try {
      capture();
    } catch (...) {
      destroy();
      throw;
    }
    work_ = nullptr;
  }
}

void WorkGraph::capture() {
  if constexpr (kCudaBuilt) {
    gpu::begin_capture(stream_.handle());
    try {
      work_(*this);
    } catch (...) {
      gpu::abandon_capture(stream_.handle());
      throw;
    }
    end_part({});
  }
}

void WorkGraph::end_part(std::function<void()> host) {
  if constexpr (kCudaBuilt) {
    int64_t pieces = 0;
    parts_.push_back({.host = std::move(host)});
    parts_.back().handle = gpu::end_capture(stream_.handle(), pieces);
    pieces_ += pieces;
    calls_ += parts_.back().handle != nullptr ? 1 : 0;
  }
}

void WorkGraph::between(std::function<void()> host) {
  if constexpr (kCudaBuilt) {
    if (stream_.on(DeviceKind::kGpu)) {
      end_part(std::move(host));
      return gpu::begin_capture(stream_.handle());
    }
  }
  host();
}

void WorkGraph::destroy() noexcept {
  if constexpr (kCudaBuilt) {
    for (const Part& part : parts_) {
      if (part.handle != nullptr) gpu::destroy_graph(part.handle);
    }
  }
}

WorkGraph::~WorkGraph() {
  destroy();
}

void WorkGraph::run() {
  if (work_ != nullptr) return work_(*this);
  for (const Part& part : parts_) {
    if constexpr (kCudaBuilt) {
      if (part.handle != nullptr) gpu::run_graph(part.handle, stream_.handle());
    }
    if (part.host != nullptr) part.host();
  }
}

}  // namespace tessera
