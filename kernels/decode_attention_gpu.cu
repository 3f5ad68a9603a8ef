#include "kernels/decode_attention.h"

#include "kernels/attention_forward.cuh"
#include "kernels/core/device_check.cuh"
#include "kernels/core/workspace.h"

// One token against the rows of a cache: every key and value is read once, 2 d numbers per row, and
// the heads of a group share them: 2 g FLOP per byte in bf16, so memory sets the pace. To have
// enough reads under way the panels of a group's spans are divided over up to 64 blocks of threads.
// A block takes a panel of 64 rows after another, 16 rows per warp, for 16 heads at once; a second
// kernel merges the parts of a head in their order. Neither the parts nor any order depend on the
// GPU.

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
  float* o;        // [groups, parts, g, d]
  float* largest;  // [groups, parts, g], in units of log2(e)
  float* sum;      // [groups, parts, g]
  int count;       // parts of a group
};

template <class T>
struct DecodeArguments {
  const T* q;  // [heads, d]
  const T* k;  // [groups, rows, d]
  const T* v;
  const int32_t* spans;    // [groups, most, 2]
  const float* log_gates;  // [groups, most], or null
  const int32_t* counts;   // [groups]
  GroupList groups;
  Parts parts;
  int64_t rows;
  int most;
  int group_heads;
  int d;
  float scale;  // with log2(e)
};

/// The panels of a group's spans from `first` to `end`, one number for all: 64 rows or the rest of
/// a span.
template <int kPanel>
class SpanWalk {
 public:
  /// Panels of part `part` of `parts`. All lanes of a warp call it, and get the same.
  template <class T>
  __device__ SpanWalk(const DecodeArguments<T>& a, int place, int part)
      : spans_(a.spans + int64_t{place} * a.most * 2),
        log_gates_(a.log_gates == nullptr ? nullptr : a.log_gates + int64_t{place} * a.most),
        count_(a.counts[place]) {
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
      return static_cast<int>(int64_t{total} * of / a.parts.count);
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
  const auto place = static_cast<int>(blockIdx.y);
  const int first_head = static_cast<int>(blockIdx.z) * 16;  // of the group
  const int heads = std::min(16, a.group_heads - first_head);
  const T* const q = a.q + (int64_t{a.groups.at[place]} * a.group_heads + first_head) * a.d;
  copy_rows<Shape::kThreads>(queries, 16, a.d, a.q,
                             [&](int i) -> const T* { return i < heads ? q + i * a.d : nullptr; });
  SpanWalk<Shape::kPanel> walk(a, place, part);
  Panel next{};
  int stage = 0;
  const auto copy_next = [&] {
    const auto copy = [&](T* to, const T* tensor) {
      const T* const first = tensor + (place * a.rows + next.row) * a.d;
      copy_rows<Shape::kThreads>(
          Rows{to}, (next.count + 15) / 16 * 16, a.d, tensor,
          [&](int i) -> const T* { return i < next.count ? first + int64_t{i} * a.d : nullptr; });
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
  const int64_t first = (int64_t{place} * a.parts.count + part) * a.group_heads + first_head;
  write_part<T, kD>(state, reinterpret_cast<float*>(panels), largest, sums, heads, first, a.parts,
                    a.d);
}

template <class T>
struct MergeArguments {
  T* o;                      // [heads, d]
  float* lse;                // [heads], or null
  const float* sink_logits;  // [heads], or null
  Parts parts;
  GroupList groups;
  int group_heads;
  int d;
};

/// A block per head, a lane per number of it.
template <class T>
__global__ void __launch_bounds__(kMaxHeadDim) merge_parts(MergeArguments<T> a) {
  const auto place = static_cast<int>(blockIdx.y);
  const auto head_of_group = static_cast<int>(blockIdx.x);
  const int head = a.groups.at[place] * a.group_heads + head_of_group;
  const auto row = [&](int part) {
    return (int64_t{place} * a.parts.count + part) * a.group_heads + head_of_group;
  };
  const float sink = a.sink_logits == nullptr ? kHidden : a.sink_logits[head] * kLog2E;
  float largest = sink;
  for (int i = 0; i < a.parts.count; ++i) largest = fmaxf(largest, a.parts.largest[row(i)]);
  const auto i_d = static_cast<int>(threadIdx.x);
  float sum = sink == kHidden ? 0.0f : fast_exp2(sink - largest);
  float o = 0;
  for (int i = 0; i < a.parts.count; ++i) {
    const float of_part = a.parts.largest[row(i)];
    const float weight = of_part == kHidden ? 0.0f : fast_exp2(of_part - largest);
    sum += weight * a.parts.sum[row(i)];
    if (i_d < a.d) o += weight * a.parts.o[row(i) * a.d + i_d];
  }
  if (i_d < a.d) a.o[int64_t{head} * a.d + i_d] = from_float<T>(o / sum);
  if (i_d == 0 && a.lse != nullptr) a.lse[head] = (largest + log2f(sum)) * kLn2;
}

/// Parts of a group: about four panels each where all rows of the cache are attended to.
int part_count(int64_t rows) {
  constexpr int64_t kMostParts = 64;
  return static_cast<int>(std::clamp<int64_t>(rows / 256, 1, kMostParts));
}

template <class T>
void run(Stream& stream, const DecodeAttention& a) {
  constexpr const char* kWho = "decode_attention";
  const int64_t d = a.q.shape()[1];
  const int64_t group_heads = a.q.shape()[0] / a.kv_heads;
  const auto groups = static_cast<int64_t>(a.groups.size());
  const int count = part_count(a.k.shape()[1]);
  Workspace workspace(stream, kWho);
  const int64_t rows = groups * count * group_heads;
  const Parts parts{.o = workspace.take<float>(rows * d),
                    .largest = workspace.take<float>(rows),
                    .sum = workspace.take<float>(rows),
                    .count = count};
  const DecodeArguments<T> arguments{
      .q = a.q.as<T>().data(),
      .k = a.k.as<T>().data(),
      .v = a.v.as<T>().data(),
      .spans = a.spans.as<int32_t>().data(),
      .log_gates = a.log_gates.empty() ? nullptr : a.log_gates.as<float>().data(),
      .counts = a.counts.as<int32_t>().data(),
      .groups = group_list(a.groups, kWho),
      .parts = parts,
      .rows = a.k.shape()[1],
      .most = static_cast<int>(a.spans.shape()[1]),
      .group_heads = static_cast<int>(group_heads),
      .d = static_cast<int>(d),
      .scale = a.scale * kLog2E};
  CHECK(in_packs(arguments.q, d) && in_packs(arguments.k, d) && in_packs(arguments.v, d), kWho,
        ": a tensor's address is not a multiple of 16");
  with_head_dim(d, [&]<int kD>() {
    using Shape = DecodeShape<T, kD>;
    launch(stream, decode_part<T, kD>,
           dim3(static_cast<unsigned>(count), static_cast<unsigned>(groups),
                blocks_for(group_heads, 16)),
           Shape::kThreads, Shape::kSharedBytes, arguments);
  });
  const MergeArguments<T> merge{
      .o = a.o.as<T>().data(),
      .lse = a.lse.empty() ? nullptr : a.lse.as<float>().data(),
      .sink_logits = a.sink_logits.empty() ? nullptr : a.sink_logits.as<float>().data(),
      .parts = parts,
      .groups = arguments.groups,
      .group_heads = arguments.group_heads,
      .d = arguments.d};
  launch(stream, merge_parts<T>,
         dim3(static_cast<unsigned>(group_heads), static_cast<unsigned>(groups)),
         (arguments.d + kWarpSize - 1) / kWarpSize * kWarpSize, 0, merge);
}

}  // namespace

void decode_attention(Stream& stream, const DecodeAttention& a) {
  if (a.groups.empty()) return;
  with_float_type(a.q.dtype(), [&]<class T>() { run<T>(stream, a); });
}

}  // namespace tessera::gpu
