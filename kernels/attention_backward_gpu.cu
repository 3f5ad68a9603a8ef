#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_key_gradient.cuh"
#include "kernels/attention_query_gradient.cuh"
#include "kernels/window_walk.cuh"

// Backward of causal attention with a window. Panels of sink tokens are seen by all tokens: where
// the window hides most keys from most tokens they would hold up the rest, and are cut into chunks.

namespace tessera::gpu {
namespace {

template <int kPanel>
class Walk : public WindowWalk<kPanel> {
 public:
  using Arguments = Reach;
  static constexpr bool kChoices = false;
  using WindowWalk<kPanel>::WindowWalk;
};

/// The tokens that see a panel by the rule of kernels/attention.h. Panels count from the beginning
/// of a run, wherever that is.
class WindowSource {
 public:
  struct Arguments {
    Reach reach;
    SplitPanels split;
  };

  template <class T>
  __device__ static KeyTask find(const Arguments& of, const BackwardOperands<T>& a, int keys) {
    const Stretches& runs = a.grid.runs;
    const SplitPanels& split = of.split;
    KeyTask task;
    task.place = static_cast<int>(blockIdx.y);
    int run;
    int from;  // of the run's first key
    if (split.chunks_of_grid == 0) {
      const Stretches rows{runs.starts, nullptr, nullptr, runs.size};
      const StretchPart part = find_part(rows, keys, static_cast<int>(blockIdx.x));
      run = part.stretch;
      from = part.first;
    } else {
      run = split.panel() / split.per_owner;
      from = split.panel() % split.per_owner * keys;
      task.chunk = split.chunk();
      task.chunks = split.chunks;
      task.partial = split.partial();
    }
    task.segment = runs.segment(run);
    task.first = runs.first(run) + from;
    task.row = runs.row(run) + from;
    if (split.has(task.first < of.reach.sink_tokens)) {
      task.count = std::clamp(runs.end(run) - task.first, 0, keys);
    }
    return task;
  }

  template <class T>
  __device__ WindowSource(const Arguments& of, const BackwardOperands<T>& a, const KeyTask& task,
                          int* /*scratch*/)
      : range_(a.grid.pieces, task, task.first, end_of(of.reach, task)),
        window_(of.reach.window),
        sinks_(of.reach.sink_tokens - task.first) {}

  __device__ int fill(const Attendees& attendees) {
    const int tokens = range_.fill(attendees, 0);
    __syncthreads();
    return tokens;
  }
  __device__ int window() const { return window_; }
  __device__ int sinks() const { return sinks_; }

 private:
  /// Behind the last position that sees the panel.
  __device__ static int end_of(const Reach& reach, const KeyTask& task) {
    if (task.first < reach.sink_tokens) return kMostReach;
    return task.first + task.count + reach.window - 1;
  }

  AttendeeRange range_;
  int window_;
  int sinks_;
};

}  // namespace

void attention_backward(Stream& stream, const AttentionBackward& a) {
  attention_delta(stream, delta_of(a));
  const Reach reach{static_cast<int>(std::min<int64_t>(a.window, kMostReach)),
                    static_cast<int>(std::min<int64_t>(a.sink_tokens, kMostReach))};
  const int64_t tokens = a.q.shape()[0];
  with_float_type(a.q.dtype(), [&]<class T>() {
    const BackwardOperands<T> operands = backward_operands<T>(a, "attention_backward");
    with_head_dim(a.q.shape()[2], [&]<int kD>() {
      start_query_gradient<T, kD, Walk>(stream, operands, reach, a.groups.size());
      constexpr int64_t kKeys = KeyGradientShape<T, kD>::kKeys;
      const Stretches& runs = operands.grid.runs;
      WindowSource::Arguments arguments{.reach = reach, .split = {}};
      if (a.window < tokens) {
        const int64_t sinks = std::min<int64_t>(a.sink_tokens, a.grid.keys());
        arguments.split = split_panels(stream, runs.size, (sinks + kKeys - 1) / kKeys,
                                       a.groups.size(), tokens, 2 * kKeys * kD);
      }
      start_key_gradient<T, kD, WindowSource>(stream, operands, arguments,
                                              a.grid.keys() / kKeys + runs.size, a.groups.size());
    });
  });
}

}  // namespace tessera::gpu
