#pragma once

#include <algorithm>

#include "kernels/attendees.cuh"
#include "kernels/attention.h"
#include "kernels/attention_backward.cuh"
#include "kernels/core/workspace.h"
#include "kernels/window_walk.cuh"

/// Which tokens see a panel of keys in causal attention with a window, for the kernels of dk and
/// dv. Panels of sink tokens are seen by all tokens: where the window hides most keys from most
/// tokens they would hold up the rest, and are cut into chunks.
namespace tessera::gpu {

/// Which panels are cut: those of sink tokens, `per_run` of each run at most.
struct SinkPanels {
  int chunks = 1;  ///< of each; 1: none is cut
  int per_run = 0;
  int panels = 0;             ///< of a group
  int64_t numbers = 0;        ///< of one chunk's sums
  float* partials = nullptr;  ///< [groups, panels, chunks, numbers]
};

/// The tokens that see a panel by the rule of kernels/attention.h. Panels count from the beginning
/// of a run, wherever that is.
class WindowSource {
 public:
  struct Arguments {
    Reach reach;
    SinkPanels sinks;
  };

  static constexpr bool kGather = false;
  __device__ static int window_of(const Arguments& of) { return of.reach.window; }
  __device__ static int sinks_of(const Arguments& of, const KeyTask& task) {
    return of.reach.sink_tokens - task.first;
  }

  template <class T>
  __device__ static KeyTask find(const Arguments& of, const BackwardOperands<T>& a, int keys,
                                 KeyPass pass) {
    const Stretches& runs = a.grid.runs;
    const SinkPanels& sinks = of.sinks;
    const auto x = static_cast<int>(blockIdx.x);
    KeyTask task;
    task.place = static_cast<int>(blockIdx.y);
    int run;
    int from;  // of the run's first key
    if (pass == KeyPass::kWhole) {
      const Stretches rows{runs.starts, nullptr, nullptr, runs.size};
      const StretchPart part = find_part(rows, keys, x);
      run = part.stretch;
      from = part.first;
    } else {
      const int panel = pass == KeyPass::kChunks ? x / sinks.chunks : x;
      run = panel / sinks.per_run;
      from = panel % sinks.per_run * keys;
      task.chunk = pass == KeyPass::kChunks ? x % sinks.chunks : 0;
      task.chunks = sinks.chunks;
      const int64_t place = int64_t{task.place} * sinks.panels + panel;
      task.partial = sinks.partials + (place * sinks.chunks + task.chunk) * sinks.numbers;
    }
    task.segment = runs.segment(run);
    task.first = runs.first(run) + from;
    task.row = runs.row(run) + from;
    const bool cut = sinks.chunks > 1 && task.first < of.reach.sink_tokens;
    if (cut == (pass != KeyPass::kWhole)) {
      task.count = std::clamp(runs.end(run) - task.first, 0, keys);
    }
    return task;
  }

  template <class T>
  __device__ WindowSource(const Arguments& of, const BackwardOperands<T>& a, const KeyTask& task)
      : range_(a.grid.pieces, task, task.first, end_of(of.reach, task)),
        window_(window_of(of)),
        sinks_(sinks_of(of, task)) {}

  __device__ int fill(const Attendees& attendees) {
    const int tokens = range_.fill(attendees, 0);
    __syncthreads();
    return tokens;
  }
  __device__ int next(int most) { return range_.next(most); }
  __device__ Attendee at(int i) const { return range_.at(i); }
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

/// Where the window hides most keys from most tokens, sinks stand out. `numbers` of the sums of a
/// panel of `keys`. How they are cut follows from the shapes alone.
inline SinkPanels cut_sinks(Stream& stream, const AttentionBackward& a, int64_t runs, int64_t keys,
                            int64_t numbers) {
  constexpr int64_t kMostChunks = 32;
  constexpr int64_t kTokensPerChunk = 128;
  const int64_t tokens = a.q.shape()[0];
  const int64_t per_run = (std::min(a.sink_tokens, a.grid.keys()) + keys - 1) / keys;
  const int64_t panels = runs * per_run;
  const int64_t all_numbers = static_cast<int64_t>(a.groups.size()) * panels * numbers;
  if (a.window >= tokens || all_numbers == 0) return {};
  const int64_t chunks =
      std::min({kMostChunks, (tokens + kTokensPerChunk - 1) / kTokensPerChunk,
                Stream::kWorkspaceBytes / (all_numbers * int64_t{sizeof(float)})});
  if (chunks <= 1) return {};
  return {.chunks = static_cast<int>(chunks),
          .per_run = static_cast<int>(per_run),
          .panels = static_cast<int>(panels),
          .numbers = numbers,
          .partials = Workspace(stream, "attention_backward").take<float>(chunks * all_numbers)};
}

}  // namespace tessera::gpu
