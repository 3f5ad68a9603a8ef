#pragma once

#include <algorithm>

#include "kernels/attendees.cuh"
#include "kernels/attention_key_gradient.cuh"
#include "kernels/attention_sm90.cuh"

/// dk and dv by the instructions of Hopper, as attention_key_gradient.cuh: a block of threads owns
/// 128 keys of one KV head, 64 per group of warps that multiply, and both go through the rows
/// (token, head) that see them, 64 at a time, in a ring of stages. Or it owns 64 keys, and the
/// groups take turns with the rows; the second's sums are added to the first's in the end. Scores
/// are of the transposes, keys times queries, so that weights and ds leave them as the left factors
/// of dv += p^T d_o and dk += ds^T q, which stay in registers. While one group has exponentials to
/// compute, the other multiplies.
///
/// Per 64 rows at d = 128: 32 KB from the L2 cache and 4.2 MFLOP per 64 keys: 256 FLOP per byte
/// with 128 keys, 128 with 64.
namespace tessera::gpu {

/// kSplitRows: both groups have the same 64 keys, and every other stage of rows each.
template <int kD, bool kSplitRows>
struct KeyGradientSm90 {
  using Rows = SwizzledRows<kD>;
  static constexpr bool kSplit = kSplitRows;
  static constexpr int kTiles = kSplit ? 1 : 2;  // of 64 keys
  static constexpr int kKeys = 64 * kTiles;
  static constexpr int kStages = 4;
  static constexpr int kGroup = 128;  // lanes
  static constexpr int kMultiplying = 2 * kGroup;
  static constexpr int kThreads = kMultiplying + kStages * kWarpSize;
  /// Warps that have use for a stage.
  static constexpr int kUsers = (kSplit ? kGroup : kMultiplying) / kWarpSize;
  /// Of 504: twice the first and the second.
  static constexpr int kMultiplyingRegisters = 224;
  static constexpr int kCopyingRegisters = 56;
  using Ring = StageRing<kStages>;
  static constexpr int kFigures = 1024;  // bytes
  static constexpr int kStage = 2 * Rows::kBytes + kFigures;
  static constexpr int kBytes = 2 * kTiles * Rows::kBytes + kStages * kStage;

  Ring ring;

  __device__ Rows keys(int tile) const { return {ring.memory + 2 * tile * Rows::kBytes}; }
  __device__ Rows values(int tile) const { return {keys(tile).data + Rows::kBytes}; }
  __device__ Rows q(int stage) const {
    return {ring.memory + 2 * kTiles * Rows::kBytes + stage * kStage};
  }
  __device__ Rows d_o(int stage) const { return {q(stage).data + Rows::kBytes}; }
  __device__ unsigned char* figures(int stage) const { return q(stage).data + 2 * Rows::kBytes; }
};

/// What the rows of a stage need besides q and d_o: 64 numbers of each kind.
struct StageFigures {
  static constexpr int kRows = 64;
  unsigned char* memory;

  __device__ float* shift() const { return reinterpret_cast<float*>(memory); }
  __device__ float* delta() const { return shift() + kRows; }
  /// Position of the query, from the panel's first key; -1: not a row.
  __device__ int* ahead() const { return reinterpret_cast<int*>(shift() + 2 * kRows); }
  /// Of the rows: how many tokens, 0 behind the last stage; the lowest and highest of `ahead`.
  __device__ int* limits() const { return ahead() + kRows; }
};

/// How 64 keys from `first` on, counted from the panel's first, are seen by rows with these limits.
struct SeenKeyRange {
  bool none;
  bool whole;

  __device__ SeenKeyRange(int first, int lowest, int highest, bool full, int window, int sinks) {
    const int last = first + 63;
    none = highest < first || (lowest - window + 1 > last && sinks <= first);
    whole = full && lowest >= last && (highest - window + 1 <= first || sinks > last);
  }
};

/// Which rows see the two keys of a lane.
struct SeenByKeysSm90 {
  int key[2];  ///< from the panel's first
  int window;
  int sinks;

  __device__ bool sees(int half, int ahead) const {
    return key[half] <= ahead && (key[half] > ahead - window || key[half] < sinks);
  }
};

/// The sums of a warp group's 64 keys.
template <int kD>
struct KeySumsSm90 {
  float dk[kD / 2];
  float dv[kD / 2];

  __device__ void start() {
#pragma unroll
    for (float& x : dk) x = 0;
#pragma unroll
    for (float& x : dv) x = 0;
  }
  /// Takes a stage; all products are over in the end.
  __device__ __forceinline__ void absorb(const SwizzledRows<kD>& keys,
                                         const SwizzledRows<kD>& values, const SwizzledRows<kD>& q,
                                         const SwizzledRows<kD>& d_o, const StageFigures& rows,
                                         const SeenByKeysSm90& seen, bool whole, float scale) {
    float p[32];
    float ds[32];
    hold_sums(p);
    hold_sums(ds);
    start_scores<kD>(p, keys.along_depth(), q.along_depth());
    start_scores<kD>(ds, values.along_depth(), d_o.along_depth());
    wait_for_products<1>();
    hold_sums(p);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 shift = *reinterpret_cast<const float2*>(rows.shift() + column_of_lane(n, 0));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = p[4 * n + i];
        x = fast_exp2(fmaf(x, scale, i % 2 == 0 ? -shift.x : -shift.y));
      }
    }
    if (!whole) hide(p, rows, seen);
    wait_for_products<0>();
    hold_sums(ds);
    uint32_t weights[4][4];
    uint32_t slopes[4][4];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(rows.delta() + column_of_lane(n, 0));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = ds[4 * n + i];
        x = p[4 * n + i] * (x - (i % 2 == 0 ? delta.x : delta.y));
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      left_factor(weights[k], p, k);
      left_factor(slopes[k], ds, k);
    }
    hold_sums(dv);
    hold_sums(dk);
    open_products();
    start_sums<kD>(dv, weights, d_o.along_columns());
    start_sums<kD>(dk, slopes, q.along_columns());
    close_products();
    wait_for_products<0>();
    hold_sums(dv);
    hold_sums(dk);
  }
  __device__ static void hide(float (&p)[32], const StageFigures& rows,
                              const SeenByKeysSm90& seen) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const int2 ahead = *reinterpret_cast<const int2*>(rows.ahead() + column_of_lane(n, 0));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!seen.sees(i / 2, i % 2 == 0 ? ahead.x : ahead.y)) p[4 * n + i] = 0;
      }
    }
  }
  /// Of one chunk of a task: sums [2, keys of the task, kD] in f32, from `key` on.
  __device__ void keep(float* partial, int key, int keys) const {
    const int column = 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const row = partial + (key + row_of_lane(half)) * kD + column;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n) {
        const int i = 4 * n + 2 * half;
        *reinterpret_cast<float2*>(row + 8 * n) = make_float2(dk[i], dk[i + 1]);
        *reinterpret_cast<float2*>(row + keys * kD + 8 * n) = make_float2(dv[i], dv[i + 1]);
      }
    }
  }
};

/// The two rows of a stage that a lane of the warp which fills it looks after.
struct OwnRows {
  float shift[2] = {};
  float delta[2] = {};
  int ahead[2];

  /// Row r is head r % heads of the token `attendee(r / heads)`, if there is such a token.
  template <class Attendees>
  __device__ OwnRows(const BackwardOperands<BF16>& a, int first_head, int heads, int tokens,
                     int first_key, const Attendees& attendee_of) {
    for (int half = 0; half < 2; ++half) {
      const int row = static_cast<int>(threadIdx.x) % kWarpSize + kWarpSize * half;
      const int i = row / heads;
      const Attendee attendee = attendee_of(i);
      ahead[half] = i < tokens ? attendee.position - first_key : -1;
      if (i >= tokens) continue;
      const int64_t at = int64_t{first_head + row % heads} * a.tokens + attendee.token;
      shift[half] = a.lse[at] * kLog2E - attendee.bias;
      delta[half] = a.delta[at];
    }
  }
  /// By all lanes of the warp; then they are there for the lane that tells of the stage.
  __device__ void put(const StageFigures& figures, int tokens) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const auto or_none = [](int x) { return x < 0 ? int{kMostReach} : x; };
    const int lowest =
        __reduce_min_sync(kWholeWarp, std::min(or_none(ahead[0]), or_none(ahead[1])));
    const int highest = __reduce_max_sync(kWholeWarp, std::max(ahead[0], ahead[1]));
    for (int half = 0; half < 2; ++half) {
      const int row = lane + kWarpSize * half;
      figures.shift()[row] = shift[half];
      figures.delta()[row] = delta[half];
      figures.ahead()[row] = ahead[half];
    }
    if (lane == 0) {
      figures.limits()[0] = tokens;
      figures.limits()[1] = lowest;
      figures.limits()[2] = highest;
    }
    __syncwarp();
  }
};

/// The step behind the last is a stage without tokens; groups that take turns need one each.
template <class Shape>
__device__ __forceinline__ void end_of_rows(const Shape& places, int stage, int step) {
  const int turns = (step - stage + Shape::kStages - 1) / Shape::kStages;  // of this stage so far
  if (Shape::kSplit && step % Shape::kStages != stage) ++step;
  if (step % Shape::kStages != stage) return places.ring.wait_until_empty(stage, turns);
  places.ring.wait_until_empty(stage, step / Shape::kStages);
  if (threadIdx.x % kWarpSize != 0) return;
  StageFigures{places.figures(stage)}.limits()[0] = 0;
  arrive(places.ring.full + stage);
}

/// The last warps: each fills its stage with every kStages-th step of rows. A Source is as in
/// attention_key_gradient.cuh but for its rows, and the same in all lanes:
///   int next(most): how many tokens, at most so many, come next; 0 behind the last;
///   Attendee at(i): the i-th of them, by whole warps; `kGather`: they are not neighbours, and
///   `most` is not more than a warp's lanes.
template <int kD, class Shape, class Source>
__device__ __forceinline__ void copy_rows_of_keys(const BackwardOperands<BF16>& a,
                                                  const typename Source::Arguments& arguments,
                                                  const KeyTask& task, const BackwardMaps& maps,
                                                  const Shape& places) {
  using Rows = SwizzledRows<kD>;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int stage = (static_cast<int>(threadIdx.x) - Shape::kMultiplying) / kWarpSize;
  const int kv_head = a.groups.at[task.place];
  if (stage == 0 && lane == 0) {
    arrive_and_expect(places.ring.kept, 2 * Shape::kTiles * Rows::kBytes);
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
      const int row = task.row + 64 * tile;
      places.keys(tile).copy(maps.k, places.ring.kept, kv_head, row);
      places.values(tile).copy(maps.v, places.ring.kept, kv_head, row);
    }
  }
  const auto heads = static_cast<int>(a.map.group_heads);
  const auto first_head = static_cast<int>(a.map.begin_of(kv_head));
  const int tokens_of_stage = Rows::kRows / heads;
  const StageFigures figures{places.figures(stage)};
  uint64_t* const full = places.ring.full + stage;
  Source source(arguments, a, task);
  for (int step = 0;; ++step) {
    const int tokens = source.next(tokens_of_stage);
    if (tokens == 0) return end_of_rows(places, stage, step);
    if (step % Shape::kStages != stage) continue;
    const Attendee own = source.at(Source::kGather ? lane : 0);
    const OwnRows rows(a, first_head, heads, tokens, task.first, [&](int i) {
      if constexpr (!Source::kGather) return source.at(i);
      return Attendee{__shfl_sync(kWholeWarp, own.token, i),
                      __shfl_sync(kWholeWarp, own.position, i),
                      __shfl_sync(kWholeWarp, own.bias, i)};
    });
    places.ring.wait_until_empty(stage, step / Shape::kStages);
    rows.put(figures, tokens);
    if constexpr (Source::kGather) {
      const int bytes = heads * 128;  // of a token's half
      if (lane == 0) {
        arrive_and_expect(full, static_cast<uint32_t>(tokens * bytes * 2 * Rows::kHalves));
      }
      __syncwarp();
      if (lane < tokens) {
        const Rows q{places.q(stage).data + lane * bytes};
        const Rows d_o{places.d_o(stage).data + lane * bytes};
        q.copy(maps.q, full, first_head, own.token);
        d_o.copy(maps.d_o, full, first_head, own.token);
      }
    } else if (lane == 0) {
      arrive_and_expect(full, 2 * Rows::kBytes);
      places.q(stage).copy(maps.q, full, first_head, own.token);
      places.d_o(stage).copy(maps.d_o, full, first_head, own.token);
    }
  }
}

/// Both groups have the same keys: adds the second's sums to the first's, by way of the stages that
/// the second had. By all who multiply.
template <int kD, class Shape>
__device__ __forceinline__ void add_second_group(KeySumsSm90<kD>& sums, int group,
                                                 const Shape& places) {
  const int lane = static_cast<int>(threadIdx.x) % Shape::kGroup;
  auto* const dk = reinterpret_cast<float*>(places.q(1).data) + lane;
  auto* const dv = reinterpret_cast<float*>(places.q(3).data) + lane;
  if (group == 1) {
    sync_named(3, Shape::kGroup);  // its last products are over
#pragma unroll
    for (int i = 0; i < kD / 2; ++i) {
      dk[i * Shape::kGroup] = sums.dk[i];
      dv[i * Shape::kGroup] = sums.dv[i];
    }
  }
  sync_named(1, Shape::kMultiplying);
  if (group == 1) return;
#pragma unroll
  for (int i = 0; i < kD / 2; ++i) {
    sums.dk[i] += dk[i * Shape::kGroup];
    sums.dv[i] += dv[i * Shape::kGroup];
  }
}

/// The others.
template <int kD, class Shape>
__device__ __forceinline__ void add_rows_of_keys(const BackwardOperands<BF16>& a,
                                                 const KeyTask& task, int window, int sinks,
                                                 const Shape& places) {
  using Rows = SwizzledRows<kD>;
  constexpr int kUsers = Shape::kUsers * kWarpSize;
  const auto thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize % 4;
  const int group = thread / Shape::kGroup;
  const int tile = Shape::kSplit ? 0 : group;
  const int first_key = 64 * tile;
  const int own_key = first_key + 16 * warp;
  const auto heads = static_cast<int>(a.map.group_heads);
  const SeenByKeysSm90 seen{{own_key + row_of_lane(0), own_key + row_of_lane(1)}, window, sinks};
  const float scale = a.scale * kLog2E;
  const Rows keys = places.keys(tile);
  const Rows values = places.values(tile);
  KeySumsSm90<kD> sums;
  sums.start();
  wait_for_phase(places.ring.kept, 0);
  for (int step = Shape::kSplit ? group : 0;; step += Shape::kSplit ? 2 : 1) {
    const int stage = step % Shape::kStages;
    places.ring.wait_until_full(stage, step / Shape::kStages);
    const StageFigures rows{places.figures(stage)};
    const int tokens = rows.limits()[0];
    if (tokens == 0) break;
    const int count = tokens * heads;
    const bool full = count == Rows::kRows;
    if (!full) {
      // Zeros behind the last row, as weights of 0 do not hide a NaN.
      places.q(stage).clear_from(count, thread % kUsers, kUsers);
      places.d_o(stage).clear_from(count, thread % kUsers, kUsers);
      show_to_units();
      sync_named(Shape::kSplit ? 2 + group : 1, kUsers);
    }
    const SeenKeyRange range(first_key, rows.limits()[1], rows.limits()[2], full, window, sinks);
    if (first_key < task.count && !range.none) {
      sums.absorb(keys, values, places.q(stage), places.d_o(stage), rows, seen, range.whole, scale);
    }
    places.ring.give_back(stage);
  }
  if constexpr (Shape::kSplit) {
    add_second_group(sums, group, places);
    if (group == 1) return;
  }
  if (task.partial != nullptr) return sums.keep(task.partial, own_key, Shape::kKeys);
  // By way of the keys' and values' own places: all warps of the group are done with them.
  sync_named(2 + group, Shape::kGroup);
  const int count = std::min(16, task.count - own_key);
  if (count <= 0) return;
  keys.put(16 * warp, sums.dk, a.scale);
  values.put(16 * warp, sums.dv, 1.0f);
  __syncwarp();
  const int64_t first = a.key(task.row + own_key, a.groups.at[task.place]);
  const int64_t stride = a.key(1, 0);
  keys.write(16 * warp, count, [&](int i) { return a.dk + first + i * stride; });
  values.write(16 * warp, count, [&](int i) { return a.dv + first + i * stride; });
}

template <int kD, bool kSplitRows, class Source>
__global__ void __launch_bounds__(KeyGradientSm90<kD, kSplitRows>::kThreads, 1)
    attention_key_gradient_sm90(BackwardOperands<BF16> a, typename Source::Arguments arguments,
                                const __grid_constant__ BackwardMaps maps, KeyPass pass) {
  using Shape = KeyGradientSm90<kD, kSplitRows>;
  const KeyTask task = Source::find(arguments, a, Shape::kKeys, pass);
  if (task.count <= 0) return;
  SharedMemory shared;
  const Shape places{Shape::Ring::start(shared, Shape::kBytes, Shape::kUsers)};
  if (threadIdx.x < Shape::kMultiplying) {
    take_registers<Shape::kMultiplyingRegisters>();
    add_rows_of_keys<kD>(a, task, Source::window_of(arguments), Source::sinks_of(arguments, task),
                         places);
  } else {
    give_registers<Shape::kCopyingRegisters>();
    copy_rows_of_keys<kD, Shape, Source>(a, arguments, task, maps, places);
  }
}

template <int kD, bool kSplitRows, class Source>
void start_key_gradient_sm90(Stream& stream, const BackwardOperands<BF16>& operands,
                             const typename Source::Arguments& arguments, const BackwardMaps& maps,
                             const KeyPassBlocks& blocks, size_t groups) {
  using Shape = KeyGradientSm90<kD, kSplitRows>;
  const auto places = static_cast<unsigned>(groups);
  const auto start = [&](int64_t count, KeyPass pass) {
    launch(stream, attention_key_gradient_sm90<kD, kSplitRows, Source>,
           dim3(static_cast<unsigned>(count), places), Shape::kThreads,
           Shape::Ring::bytes(Shape::kBytes), operands, arguments, maps, pass);
  };
  start(blocks.whole, KeyPass::kWhole);
  if (blocks.chunks == 0) return;
  start(blocks.chunks, KeyPass::kChunks);
  launch(stream, add_key_chunks<BF16, kD, Shape::kKeys, Source>,
         dim3(static_cast<unsigned>(blocks.sums), places, kSumParts), kD, 0, operands, arguments);
}

}  // namespace tessera::gpu
