#include "kernels/decode_attention.h"

#include "kernels/attention_forward.cuh"
#include "kernels/core/device_check.cuh"
#include "kernels/core/workspace.h"

// One token per sequence against the rows of its cache: every key and value is read once, 2 d
// numbers per row, and the heads of a group share them: 2 g FLOP per byte in bf16, so memory sets
// the pace. To have enough reads under way the panels of a group's spans are divided over up to 64
// blocks of threads. A block takes a panel of 64 rows after another, 16 rows per warp, for 16 heads
// at once; a second kernel merges the parts of a head in their order. Neither the parts nor any
// order depend on the GPU, or on how many sequences there are: a text does not change with those
// beside it.

namespace tessera::gpu {
namespace {

template <class T, int kD>
struct DecodeShape {
  static constexpr int kRowBytes = kD * static_cast<int>(sizeof(T));
  static constexpr int kPanel = kRowBytes <= 512 ? 64 : 32;
  static constexpr int kWarps = kPanel / 16;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kStages = kRowBytes <= 512 ? 2 : 1;
  static constexpr int kPanelSize = TileRows<T, kD>::elements(kPanel);
  using Queries = typename ForwardShape<T, kD>::Queries;

  static constexpr int64_t kSharedBytes = shared_bytes_of<T>(TileRows<T, kD>::elements(16)) +
                                          shared_bytes_of<T>(2 * kStages * kPanelSize) +
                                          2 * shared_bytes_of<float>(16 * kWarps);
  // In the end the warps' sums lie where the panels were.
  static_assert(2 * kStages * kPanelSize * sizeof(T) >= kWarps * 16 * kD * sizeof(float));
};

/// What a block of threads found out about 16 heads: unscaled o, and the scores' largest and sum.
struct Parts {
  float* o;        // [groups, sequences of the launch, parts, g, d]
  float* largest;  // [groups, sequences, parts, g], in units of log2(e)
  float* sum;      // [groups, sequences, parts, g]
  int count;       // parts of a group
};

/// Some sequences of a call, and what both kernels know of it.
struct Launch {
  GroupList groups;
  Parts parts;
  int first;      // sequence of the launch
  int count;      // sequences of the launch
  int sequences;  // of the call
  int heads;
  int group_heads;
  int d;
};

/// A block of threads has a group and a sequence: blockIdx.y of groups.size() * count.
struct Place {
  __device__ explicit Place(const Launch& a)
      : group(static_cast<int>(blockIdx.y) / a.count),
        sequence(a.first + static_cast<int>(blockIdx.y) % a.count),
        first_head(a.groups.at[group] * a.group_heads) {}

  int group;       // place in the list
  int sequence;    // of the call
  int first_head;  // of the group
};

template <class T>
struct DecodeArguments {
  const T* q;  // [sequences, heads, d]
  const T* k;  // [groups, sequences, rows, d]
  const T* v;
  const int32_t* spans;    // [lists, sequences, most, 2]
  const float* log_gates;  // [lists, sequences, most], or null
  const int32_t* counts;   // [lists, sequences]
  Launch launch;
  int64_t rows;
  int most;
  bool same_lists;  // for all groups: there is one
  float scale;      // with log2(e)
};

/// The panels of a group's spans from `first` to `end`, one number for all: 64 rows or the rest of
/// a span.
template <int kPanel>
class SpanWalk {
 public:
  /// Panels of part `part` of `parts`. All lanes of a warp call it, and get the same.
  template <class T>
  __device__ SpanWalk(const DecodeArguments<T>& a, const Place& place, int part) {
    const int64_t list =
        int64_t{a.same_lists ? 0 : place.group} * a.launch.sequences + place.sequence;
    spans_ = a.spans + list * a.most * 2;
    log_gates_ = a.log_gates == nullptr ? nullptr : a.log_gates + list * a.most;
    count_ = a.counts[list];
    device_check(count_ >= 1 && count_ <= a.most,
                 "decode_attention: a group has no spans, or more than there is room for");
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    int total = 0;
    for (int i = lane; i < count_; i += kWarpSize) {
      const int64_t first = spans_[2 * i];
      const int64_t rows = spans_[2 * i + 1];
      device_check(first >= 0 && rows >= 1 && first + rows <= a.rows,
                   "decode_attention: a span has rows outside of the cache");
      total += panels(i);
    }
    total = __reduce_add_sync(kWholeWarp, total);
    const auto number = [&](int of) {
      return static_cast<int>(int64_t{total} * of / a.launch.parts.count);
    };
    left_ = number(part + 1) - number(part);
    if (left_ > 0) read_span(skip(number(part)));
  }

  __device__ bool next(Panel& panel) {
    if (left_ == 0) return false;
    panel = {0, std::min(kPanel, end_ - row_), row_};
    log_gate_ = next_gate_;
    row_ += kPanel;
    if (--left_ > 0 && row_ >= end_) {
      ++span_;
      read_span(0);  // while the panel is worked on
    }
    return true;
  }
  /// Of the panel that `next` told last.
  __device__ float log_gate() const { return log_gate_; }

 private:
  __device__ int panels(int span) const { return (spans_[2 * span + 1] + kPanel - 1) / kPanel; }
  /// Goes to the span of panel `number` of all, 32 spans at a time. Returns which of its panels.
  __device__ int skip(int number) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    for (;; span_ += kWarpSize) {
      const int own = span_ + lane < count_ ? panels(span_ + lane) : 0;
      int up_to = own;
      for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const int before = __shfl_up_sync(kWholeWarp, up_to, static_cast<unsigned>(offset));
        if (lane >= offset) up_to += before;
      }
      const unsigned beyond = __ballot_sync(kWholeWarp, up_to > number);
      if (beyond != 0) {
        const int found = __ffs(static_cast<int>(beyond)) - 1;
        span_ += found;
        return number - __shfl_sync(kWholeWarp, up_to - own, found);
      }
      number -= __shfl_sync(kWholeWarp, up_to, kWarpSize - 1);
    }
  }
  __device__ void read_span(int panel) {
    const int first = spans_[2 * span_];
    end_ = first + spans_[2 * span_ + 1];
    row_ = first + panel * kPanel;
    next_gate_ = log_gates_ == nullptr ? 0.0f : log_gates_[span_];
  }

  const int32_t* spans_;
  const float* log_gates_;
  int count_;
  int left_;  // panels
  int span_ = 0;
  int row_ = 0;
  int end_ = 0;
  float log_gate_ = 0;
  float next_gate_ = 0;
};

/// How a warp sees a panel: its strip of 16 keys, with the gate of their span.
__device__ __forceinline__ PanelView strip_view(int keys, float log_gate) {
  PanelView view;
  view.strips = {0, keys > 0 ? 1 : 0, keys >= 16};
  for (int half = 0; half < 2; ++half) {
    view.seen[half] = {0, keys - 1, 0};
    view.bias[half] = log_gate * kLog2E;
  }
  return view;
}

/// Adds up what the warps have of 16 rows, in their order, and writes the rows below `heads`.
template <class T, int kD>
__device__ void write_part(const ForwardState<T, kD, 1>& state, float* sums, float* of_warp_largest,
                           float* of_warp_sum, int heads, int64_t first, const Parts& parts,
                           int d) {
  using Shape = DecodeShape<T, kD>;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = 16 * warp + row_of_lane(half);
    const float total = row_sum(state.sum[half]);
    if (lane % 4 == 0) {
      of_warp_largest[row] = state.largest[half];
      of_warp_sum[row] = total;
    }
#pragma unroll
    for (int n = 0; n < kD / 8; ++n) {
      *reinterpret_cast<float2*>(sums + row * kD + column_of_lane(n, 0)) =
          make_float2(state.o[n][2 * half], state.o[n][2 * half + 1]);
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < heads * d; i += Shape::kThreads) {
    const int row = i / d;
    float largest = kHidden;
    for (int w = 0; w < Shape::kWarps; ++w) largest = fmaxf(largest, of_warp_largest[16 * w + row]);
    float sum = 0;
    float o = 0;
    for (int w = 0; w < Shape::kWarps; ++w) {
      const float of_warp = of_warp_largest[16 * w + row];
      const float weight = of_warp == kHidden ? 0.0f : fast_exp2(of_warp - largest);
      sum += weight * of_warp_sum[16 * w + row];
      o += weight * sums[(16 * w + row) * kD + i % d];
    }
    parts.o[first * d + i] = o;
    if (i % d == 0) {
      parts.largest[first + row] = largest;
      parts.sum[first + row] = sum;
    }
  }
}

template <class T, int kD>
__global__ void __launch_bounds__(DecodeShape<T, kD>::kThreads) decode_part(DecodeArguments<T> a) {
  using Shape = DecodeShape<T, kD>;
  using Rows = TileRows<T, kD>;
  SharedMemory shared;
  const Rows queries = Rows::take(shared, 16);
  T* const panels = shared.take<T>(2 * Shape::kStages * Shape::kPanelSize);
  float* const largest = shared.take<float>(16 * Shape::kWarps);
  float* const sums = shared.take<float>(16 * Shape::kWarps);

  const auto part = static_cast<int>(blockIdx.x);
  const Launch& of = a.launch;
  const Place place(of);
  const int first_head = static_cast<int>(blockIdx.z) * 16;  // of the group
  const int heads = std::min(16, of.group_heads - first_head);
  const int64_t head = int64_t{place.sequence} * of.heads + place.first_head + first_head;
  const T* const q = a.q + head * of.d;
  copy_rows<Shape::kThreads>(queries, 16, of.d, a.q,
                             [&](int i) -> const T* { return i < heads ? q + i * of.d : nullptr; });
  const int64_t first_row = (int64_t{place.group} * of.sequences + place.sequence) * a.rows;
  SpanWalk<Shape::kPanel> walk(a, place, part);
  Panel next{};
  int stage = 0;
  const auto copy_next = [&] {
    const auto copy = [&](T* to, const T* tensor) {
      const T* const first = tensor + (first_row + next.row) * of.d;
      copy_rows<Shape::kThreads>(
          Rows{to}, (next.count + 15) / 16 * 16, of.d, tensor,
          [&](int i) -> const T* { return i < next.count ? first + int64_t{i} * of.d : nullptr; });
    };
    T* const place_of_panel = panels + 2 * Shape::kPanelSize * stage;
    copy(place_of_panel, a.k);
    copy(place_of_panel + Shape::kPanelSize, a.v);
    close_copies();
  };
  bool more = walk.next(next);
  if (more) copy_next();
  close_copies();
  wait_for_copies<0>();
  __syncthreads();
  typename Shape::Queries left;
  left.load(queries, 0);
  ForwardState<T, kD, 1> state;
  state.start();
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  while (more) {
    const PanelView view = strip_view(next.count - 16 * warp, walk.log_gate());
    const Rows keys{panels + 2 * Shape::kPanelSize * stage};
    const Rows values{keys.data + Shape::kPanelSize};
    more = walk.next(next);
    stage = (stage + 1) % Shape::kStages;
    if (Shape::kStages > 1 && more) copy_next();
    NoSums none;
    if (!view.strips.none()) {
      state.absorb(left, Rows{keys.row(16 * warp)}, Rows{values.row(16 * warp)}, view, a.scale,
                   none);
    }
    if constexpr (Shape::kStages == 1) {
      __syncthreads();
      if (more) copy_next();
    }
    wait_for_copies<0>();
    __syncthreads();
  }
  const int64_t first = (int64_t{blockIdx.y} * of.parts.count + part) * of.group_heads + first_head;
  write_part<T, kD>(state, reinterpret_cast<float*>(panels), largest, sums, heads, first, of.parts,
                    of.d);
}

template <class T>
struct MergeArguments {
  T* o;                      // [sequences, heads, d]
  float* lse;                // [sequences, heads], or null
  const float* sink_logits;  // [heads], or null
  Launch launch;
  int lanes;   // d, in whole warps
  int strips;  // parts are divided among so many times `lanes` threads
};

constexpr int kMostStrips = 8;
constexpr int kMergeThreads = 1024;

/// A block per head, group and sequence; a lane per number of the head. A strip of lanes adds up
/// its parts, whose loads do not wait for each other; the first one adds up the strips.
template <class T>
__global__ void __launch_bounds__(kMergeThreads) merge_parts(MergeArguments<T> a) {
  SharedMemory shared;
  float* const largest_of = shared.take<float>(kMostStrips);
  float* const sum_of = shared.take<float>(kMostStrips);
  float* const o_of = shared.take<float>(a.strips * a.lanes);
  const Launch& of = a.launch;
  const Place place(of);
  const auto head_of_group = static_cast<int>(blockIdx.x);
  const auto row = [&](int part) {
    return (int64_t{blockIdx.y} * of.parts.count + part) * of.group_heads + head_of_group;
  };
  const int strip = static_cast<int>(threadIdx.x) / a.lanes;
  const int i = static_cast<int>(threadIdx.x) % a.lanes;
  const int begin = of.parts.count * strip / a.strips;
  const int end = of.parts.count * (strip + 1) / a.strips;
  float largest = kHidden;
#pragma unroll 8
  for (int part = begin; part < end; ++part) {
    largest = fmaxf(largest, of.parts.largest[row(part)]);
  }
  float sum = 0;
  float o = 0;
#pragma unroll 8
  for (int part = begin; part < end; ++part) {
    const float of_part = of.parts.largest[row(part)];
    const float weight = of_part == kHidden ? 0.0f : fast_exp2(of_part - largest);
    sum += weight * of.parts.sum[row(part)];
    if (i < of.d) o += weight * of.parts.o[row(part) * of.d + i];
  }
  o_of[strip * a.lanes + i] = o;
  if (i == 0) {
    largest_of[strip] = largest;
    sum_of[strip] = sum;
  }
  __syncthreads();
  if (strip != 0) return;
  const int head = place.first_head + head_of_group;
  const float sink = a.sink_logits == nullptr ? kHidden : a.sink_logits[head] * kLog2E;
  largest = sink;
  for (int other = 0; other < a.strips; ++other) largest = fmaxf(largest, largest_of[other]);
  sum = sink == kHidden ? 0.0f : fast_exp2(sink - largest);
  o = 0;
  for (int other = 0; other < a.strips; ++other) {
    const float of_strip = largest_of[other];
    const float weight = of_strip == kHidden ? 0.0f : fast_exp2(of_strip - largest);
    sum += weight * sum_of[other];
    o += weight * o_of[other * a.lanes + i];
  }
  const int64_t to = int64_t{place.sequence} * of.heads + head;
  if (i < of.d) a.o[to * of.d + i] = from_float<T>(o / sum);
  if (i == 0 && a.lse != nullptr) a.lse[to] = (largest + log2f(sum)) * kLn2;
}

/// Parts of a group: a panel each, or some where all rows of a long cache are attended to.
int part_count(int64_t rows) {
  constexpr int64_t kMostParts = 64;
  return static_cast<int>(std::clamp<int64_t>(rows / 64, 1, kMostParts));
}

/// Both kernels for the sequences from launch.first on.
template <class T>
void run_some(Stream& stream, DecodeArguments<T> arguments, MergeArguments<T> merge,
              const Launch& some, int64_t groups) {
  arguments.launch = some;
  merge.launch = some;
  const auto places = static_cast<unsigned>(groups * some.count);
  with_head_dim(some.d, [&]<int kD>() {
    using Shape = DecodeShape<T, kD>;
    launch(stream, decode_part<T, kD>,
           dim3(static_cast<unsigned>(some.parts.count), places, blocks_for(some.group_heads, 16)),
           Shape::kThreads, Shape::kSharedBytes, arguments);
  });
  launch(stream, merge_parts<T>, dim3(static_cast<unsigned>(some.group_heads), places),
         merge.lanes * merge.strips,
         2 * shared_bytes_of<float>(kMostStrips) +
             shared_bytes_of<float>(int64_t{merge.lanes} * merge.strips),
         merge);
}

template <class T>
void run(Stream& stream, const DecodeAttention& a) {
  constexpr const char* kWho = "decode_attention";
  const int64_t sequences = a.q.shape()[0];
  const int64_t heads = a.q.shape()[1];
  const int64_t d = a.q.shape()[2];
  const int64_t group_heads = heads / a.kv_heads;
  const auto groups = static_cast<int64_t>(a.groups.size());
  const int parts = part_count(a.k.shape()[2]);
  // As many sequences at a time as there is room for their parts, less what alignment takes.
  const int64_t rows_of_one = groups * parts * group_heads;
  const int64_t bytes_of_one = rows_of_one * (d + 2) * static_cast<int64_t>(sizeof(float));
  const int64_t at_once =
      std::clamp<int64_t>((stream.workspace_bytes() - 1024) / bytes_of_one, 1, sequences);
  Workspace workspace(stream, kWho);
  const int64_t rows = at_once * rows_of_one;
  Launch some{.groups = group_list(a.groups, kWho),
              .parts = {.o = workspace.take<float>(rows * d),
                        .largest = workspace.take<float>(rows),
                        .sum = workspace.take<float>(rows),
                        .count = parts},
              .first = 0,
              .count = 0,
              .sequences = static_cast<int>(sequences),
              .heads = static_cast<int>(heads),
              .group_heads = static_cast<int>(group_heads),
              .d = static_cast<int>(d)};
  const DecodeArguments<T> arguments{
      .q = a.q.as<T>().data(),
      .k = a.k.as<T>().data(),
      .v = a.v.as<T>().data(),
      .spans = a.spans.as<int32_t>().data(),
      .log_gates = a.log_gates.empty() ? nullptr : a.log_gates.as<float>().data(),
      .counts = a.counts.as<int32_t>().data(),
      .launch = some,
      .rows = a.k.shape()[2],
      .most = static_cast<int>(a.spans.shape()[2]),
      .same_lists = a.spans.shape()[0] == 1,
      .scale = a.scale * kLog2E};
  CHECK(in_packs(arguments.q, d) && in_packs(arguments.k, d) && in_packs(arguments.v, d), kWho,
        ": a tensor's address is not a multiple of 16");
  const int lanes = (some.d + kWarpSize - 1) / kWarpSize * kWarpSize;
  const MergeArguments<T> merge{
      .o = a.o.as<T>().data(),
      .lse = a.lse.empty() ? nullptr : a.lse.as<float>().data(),
      .sink_logits = a.sink_logits.empty() ? nullptr : a.sink_logits.as<float>().data(),
      .launch = some,
      .lanes = lanes,
      .strips = std::min(kMostStrips, kMergeThreads / lanes)};
  for (int64_t first = 0; first < sequences; first += at_once) {
    some.first = static_cast<int>(first);
    some.count = static_cast<int>(std::min(at_once, sequences - first));
    run_some(stream, arguments, merge, some, groups);
  }
}

}  // namespace

void decode_attention(Stream& stream, const DecodeAttention& a) {
  if (a.groups.empty()) return;
  with_float_type(a.q.dtype(), [&]<class T>() { run<T>(stream, a); });
}

}  // namespace tessera::gpu
