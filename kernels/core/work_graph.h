#pragma once

#include <cstdint>
#include <functional>
#include <vector>

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
  /// The same for work in several parts, between which the host has something to do in every run:
  /// `work` gets this graph, to call between().
  WorkGraph(Stream& stream, std::function<void(WorkGraph&)> work);
  ~WorkGraph();
  WorkGraph(const WorkGraph&) = delete;
  WorkGraph& operator=(const WorkGraph&) = delete;

  /// Only for `work`: each run() calls `host`, which may do whatever it likes with the stream,
  /// after what `work` gave to the stream so far and before what comes.
  void between(std::function<void()> host);

  /// Does the work, in the order of the stream.
  void run();

  /// Kernels, copies and the like that a run starts on a GPU without a call each, and the calls
  /// that it takes; 0 elsewhere.
  int64_t pieces() const { return pieces_; }
  int64_t calls() const { return calls_; }

 private:
  /// What `work` did up to a call of between(), and that call's function.
  struct Part {
    void* handle = nullptr;  // the cudaGraphExec_t; nullptr: nothing was given to the stream
    std::function<void()> host;
  };
  void capture();
  void end_part(std::function<void()> host);
  void destroy() noexcept;

  Stream& stream_;
  std::function<void(WorkGraph&)> work_;
  std::vector<Part> parts_;
  int64_t pieces_ = 0;
  int64_t calls_ = 0;
};

}  // namespace tessera
