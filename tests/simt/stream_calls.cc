#include <cuda_runtime.h>

#include <chrono>
#include <memory>
#include <vector>

#include "kernels/core/error.h"

// Streams, events and graphs of the CUDA runtime. Work is done at once, so that an event is always
// passed. During a capture it is noted down: by the stream where it began, and by those that wait
// for an event in it, until they are waited for in turn.

struct SimtGraph {
  std::vector<std::function<void()>> work;
  std::vector<SimtStream*> streams;  // that are captured; the first began it
  bool valid = true;
};
struct SimtGraphExec {
  std::vector<std::function<void()>> work;
};
struct SimtStream {
  std::shared_ptr<SimtGraph> graph;  // while it is captured
  bool unjoined = false;             // it has work that the first one does not wait for
};
struct SimtEvent {
  std::weak_ptr<SimtGraph> graph;  // that its record is a part of
  SimtStream* stream = nullptr;
  bool timed = false;
  std::chrono::steady_clock::time_point recorded = {};
};

namespace tessera::simt {

bool is_captured(const SimtStream* stream) {
  return stream != nullptr && stream->graph != nullptr;
}

void note(SimtStream* stream, std::function<void()> work) {
  stream->graph->work.push_back(std::move(work));
  stream->unjoined = stream != stream->graph->streams.front();
}

namespace {

cudaError_t forbid(SimtStream* stream) {
  if (!is_captured(stream)) return cudaSuccess;
  stream->graph->valid = false;
  return cudaErrorStreamCaptureUnsupported;
}

template <class T>
cudaError_t make(T** out) {
  *out = std::make_unique<T>().release();
  return cudaSuccess;
}

template <class T>
cudaError_t destroy(T* object) {
  const std::unique_ptr<T> owner(object);
  return cudaSuccess;
}

}  // namespace
}  // namespace tessera::simt

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return tessera::simt::make(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return tessera::simt::destroy(stream);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return tessera::simt::forbid(stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::shared_ptr<SimtGraph> graph = event->graph.lock();
  if (graph == nullptr || stream == event->stream) return cudaSuccess;
  if (stream->graph == nullptr) {
    stream->graph = graph;
    stream->unjoined = true;
    stream->graph->streams.push_back(stream);
  }
  event->stream->unjoined = false;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  tessera::simt::make(event);
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return tessera::simt::destroy(event);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {stream->graph, stream, event->timed, std::chrono::steady_clock::now()};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return event->graph.expired() ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return cudaEventSynchronize(event);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const bool recorded = from->stream != nullptr && to->stream != nullptr;
  if (!from->timed || !to->timed || !recorded) return cudaErrorInvalidValue;
  *milliseconds = std::chrono::duration<float, std::milli>(to->recorded - from->recorded).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream->graph != nullptr) return tessera::simt::forbid(stream);
  stream->graph = std::make_shared<SimtGraph>();
  stream->graph->streams.push_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (stream->graph == nullptr) return cudaErrorInvalidValue;
  const std::shared_ptr<SimtGraph> captured = stream->graph;
  cudaError_t status = captured->valid ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
  for (SimtStream* member : captured->streams) {
    if (member->unjoined) status = cudaErrorStreamCaptureUnjoined;
    *member = {};
  }
  if (status != cudaSuccess) return status;
  tessera::simt::make(graph);
  (*graph)->work = std::move(captured->work);
  return cudaSuccess;
}
// Only the count, which comes without a list.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes != nullptr) return cudaErrorInvalidValue;
  *count = graph->work.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  tessera::simt::make(ready);
  (*ready)->work = graph->work;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
  for (const auto& work : ready->work) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return tessera::simt::destroy(graph);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  return tessera::simt::destroy(ready);
}
