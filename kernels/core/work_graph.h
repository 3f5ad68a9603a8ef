#pragma once

#include <functional>

#include "kernels/core/device.h"

namespace tessera {

/// Work on a stream that is put together once and begun again with one call: a GPU then starts its
/// kernels by itself, without a call of the host for each. The stream must outlive it.
class WorkGraph {
 public:
  /// Calls `work`, which gives work to `stream`. On a GPU that is noted down and not done: `work`
  /// may not wait for the stream, read on the host what the device computes, or make buffers, and
  /// addresses, shapes and numbers stay those of this call. Elsewhere `work` is kept for run(). An
  /// exception of `work` comes out here, and the stream can be used as before.
  WorkGraph(Stream& stream, std::function<void()> work);
  ~WorkGraph();
  WorkGraph(const WorkGraph&) = delete;
  WorkGraph& operator=(const WorkGraph&) = delete;

  /// Does the work, in the order of the stream.
  void run();

 private:
  Stream& stream_;
  std::function<void()> work_;
  void* handle_ = nullptr;  // the cudaGraphExec_t
};

}  // namespace tessera
