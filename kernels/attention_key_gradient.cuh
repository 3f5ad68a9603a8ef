#pragma once

#include "kernels/attendees.cuh"
#include "kernels/attention_backward.cuh"

/// dk and dv: a block of threads owns a panel of keys of one KV head, 16 keys per warp, and goes
/// through the rows (token, head) that see it, in ascending order of position, some dozens at a
/// time; which rows these are a Source says. Products are of the transposes, keys times queries, so
/// that weights and ds leave them as the left factors of dv += p^T d_o and dk += ds^T q, and dk and
/// dv stay in registers, summed over all heads of the group. The next rows are copied meanwhile.
///
/// Per 32 rows at d = 128 in bf16: 16 KB from the L2 cache and 2.1 MFLOP, 128 FLOP per byte; each
/// warp reads 40 KB of shared memory for 128 products m16n8k16.
namespace tessera::gpu {

/// Sizes by the bytes of a row, so that a block needs at most 140 KB of shared memory and, up to
/// 256 bytes, half of that.
template <class T, int kD>
struct KeyGradientShape {
  static constexpr int kRowBytes = kD * static_cast<int>(sizeof(T));
  static constexpr int kKeys = kRowBytes <= 512 ? 64 : 32;
  static constexpr int kRows = kRowBytes <= 512 ? 32 : 16;
  static constexpr int kWarps = kKeys / 16;
  static constexpr int kThreads = kWarps * kWarpSize;
  /// Blocks of threads per multiprocessor, for the number of registers.
  static constexpr int kBlocks = kRowBytes <= 256 ? 2 : 1;
  /// Columns of dk and dv that a block computes: more do not fit into registers.
  static constexpr int kColumns = kD < 128 ? kD : 128;
  static constexpr int kColumnParts = kD / kColumns;
};

/// What the rows of one tile need besides q and d_o.
struct RowFigures {
  float shift;  ///< (L - log G) log2(e); p = exp2(s - shift)
  float delta;
  int ahead;  ///< position of the query, from the panel's first key; -1: not a row
};
template <int kRows>
struct RowsOfTile {
  static constexpr int kNumbers = 3 * kRows + 4;
  float* numbers;

  __device__ float* shift() const { return numbers; }
  __device__ float* delta() const { return numbers + kRows; }
  __device__ int* ahead() const { return reinterpret_cast<int*>(numbers + 2 * kRows); }
  /// The highest of `ahead`, and whether all rows see all keys.
  __device__ int* limits() const { return reinterpret_cast<int*>(numbers + 3 * kRows); }
};

/// x / divisor for 0 <= x < 2^16 and divisor < 2^16, in one multiplication.
struct Divisor {
  int divisor;
  unsigned factor;

  __device__ explicit Divisor(int by)
      : divisor(by), factor(by > 1 ? 0xFFFFFFFFu / static_cast<unsigned>(by) + 1 : 0) {}
  __device__ int quotient(int x) const {
    return factor == 0 ? x : static_cast<int>(__umulhi(static_cast<unsigned>(x), factor));
  }
};

/// The rows (token, head) of a batch of attendees, cut into tiles.
template <class T, int kD>
struct BatchRows {
  static constexpr int kRows = KeyGradientShape<T, kD>::kRows;
  const BackwardOperands<T>& a;
  const KeyTask& task;
  const Attendees& attendees;
  int first_head;  // of q
  int heads;
  Divisor by_heads;
  int count;  // rows of the batch

  __device__ int tiles() const { return (count + kRows - 1) / kRows; }

  __device__ void copy(int tile, const TileRows<T, kD>& q, const TileRows<T, kD>& d_o) const {
    constexpr int kPacks = kD / Pack<T>::kSize;
    constexpr int kThreads = KeyGradientShape<T, kD>::kThreads;
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPacks; i += kThreads) {
      const int row = tile * kRows + i / kPacks;
      const int column = i % kPacks * Pack<T>::kSize;
      const bool valid = row < count && column < a.d;
      int64_t from = 0;
      if (valid) {
        const int token = by_heads.quotient(row);
        from = a.query(attendees.token()[token], first_head + row - token * heads) + column;
      }
      copy_async(q.row(i / kPacks) + column, a.q + from, valid);
      copy_async(d_o.row(i / kPacks) + column, a.d_o + from, valid);
    }
  }

  /// Of the row of this lane of the first warp.
  __device__ RowFigures figures(int tile) const {
    const int row = tile * kRows + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= kRows || row >= count) return {0, 0, -1};
    const int i = by_heads.quotient(row);
    const int64_t at = int64_t{first_head + row - i * heads} * a.tokens + attendees.token()[i];
    return {a.lse[at] * kLog2E - attendees.bias()[i], a.delta[at],
            attendees.position()[i] - task.first};
  }
};

/// Leaves the figures of a tile in shared memory: the first warp does.
template <int kRows>
__device__ __forceinline__ void keep_figures(const RowsOfTile<kRows>& rows,
                                             const RowFigures& figures, int keys, int window,
                                             int sinks) {
  static_assert(kRows <= kWarpSize);
  if (threadIdx.x >= kWarpSize) return;
  const int ahead = figures.ahead;
  if (threadIdx.x < kRows) {
    rows.shift()[threadIdx.x] = figures.shift;
    rows.delta()[threadIdx.x] = figures.delta;
    rows.ahead()[threadIdx.x] = ahead;
  }
  // Rows that do not exist are all zeros: p is 1 there, but what it is multiplied with is 0.
  const bool all = ahead < 0 || (ahead >= keys - 1 && (ahead - window + 1 <= 0 || sinks >= keys));
  const int highest = __reduce_max_sync(kWholeWarp, ahead);
  const bool whole = __all_sync(kWholeWarp, all) != 0;
  if (threadIdx.x == 0) {
    rows.limits()[0] = highest;
    rows.limits()[1] = whole ? 1 : 0;
  }
}

/// Which rows see the two keys of a lane, counted from the panel's first.
struct SeenByKeys {
  int key[2];
  int window;
  int sinks;  ///< sink tokens, from the panel's first key

  __device__ bool sees(int half, int ahead) const {
    return key[half] <= ahead && (key[half] > ahead - window || key[half] < sinks);
  }
};

/// The sums of a warp's 16 keys.
template <class T, int kD>
struct KeyGradientState {
  using Shape = KeyGradientShape<T, kD>;
  static constexpr int kTiles = Shape::kRows / 8;

  float dk[Shape::kColumns / 8][4];
  float dv[Shape::kColumns / 8][4];

  /// Takes a tile of rows: `first_column` is of q and d_o, the first that is summed.
  __device__ __forceinline__ void absorb(const ReadRows<T, kD>& keys, const TileRows<T, kD>& q,
                                         const TileRows<T, kD>& d_o,
                                         const RowsOfTile<Shape::kRows>& rows,
                                         const SeenByKeys& seen, float scale, int first_column) {
    float p[kTiles][4];
    float ds[kTiles][4];
    clear(p);
    clear(ds);
    add_strips<kTiles / 2>(p, keys, q);
    // Values lie behind the keys.
    const ReadRows<T, kD> values{keys.address + TileRows<T, kD>::elements(Shape::kKeys)};
    add_strips<kTiles / 2>(ds, values, d_o);
    const bool whole = rows.limits()[1] != 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      // The lane's two rows of the eight.
      const int row = column_of_lane(n, 0);
      const float2 shift = *reinterpret_cast<const float2*>(rows.shift() + row);
      const float2 delta = *reinterpret_cast<const float2*>(rows.delta() + row);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[n][i] = fast_exp2(fmaf(p[n][i], scale, i % 2 == 0 ? -shift.x : -shift.y));
        if (!whole && !seen.sees(i / 2, rows.ahead()[row + i % 2])) p[n][i] = 0;
        ds[n][i] = p[n][i] * (ds[n][i] - (i % 2 == 0 ? delta.x : delta.y));
      }
    }
    const TileRows<T, kD> q_columns{q.data + first_column};
    const TileRows<T, kD> d_o_columns{d_o.data + first_column};
#pragma unroll
    for (int strip = 0; strip < kTiles / 2; ++strip) {
      add_weighted(dv, p[2 * strip], p[2 * strip + 1], d_o_columns, 16 * strip);
      add_weighted(dk, ds[2 * strip], ds[2 * strip + 1], q_columns, 16 * strip);
    }
  }

  /// Writes the warp's keys of a whole task, by way of the keys' and values' own places.
  __device__ void finish(const BackwardOperands<T>& a, const KeyTask& task, int warp,
                         const TileRows<T, kD>& keys, const TileRows<T, kD>& values,
                         int first_column) const {
    const int count = std::min(16, task.count - 16 * warp);
    const int columns = std::min(int{Shape::kColumns}, a.d - first_column);
    if (count <= 0 || columns <= 0) return;
    const TileRows<T, kD> k{keys.row(16 * warp)};
    const TileRows<T, kD> v{values.row(16 * warp)};
    put_rows(k, dk, a.scale);
    put_rows(v, dv, 1.0f);
    __syncwarp();
    const int64_t first = a.key(task.row + 16 * warp, a.groups.at[task.place]) + first_column;
    const int64_t stride = a.key(1, 0);
    write_rows(k, count, columns, [&](int i) { return a.dk + first + i * stride; });
    write_rows(v, count, columns, [&](int i) { return a.dv + first + i * stride; });
  }
  /// Of one chunk of a task: sums [2, keys, kD] in f32.
  __device__ void keep(float* partial, int warp, int first_column) const {
    const int column = first_column + 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const row = partial + (16 * warp + row_of_lane(half)) * kD + column;
#pragma unroll
      for (int n = 0; n < Shape::kColumns / 8; ++n) {
        *reinterpret_cast<float2*>(row + 8 * n) = make_float2(dk[n][2 * half], dk[n][2 * half + 1]);
        *reinterpret_cast<float2*>(row + Shape::kKeys * kD + 8 * n) =
            make_float2(dv[n][2 * half], dv[n][2 * half + 1]);
      }
    }
  }
};

/// Memory for the rows of a tile, behind one address.
template <class T, int kD>
struct RowPlaces {
  static constexpr int kRows = KeyGradientShape<T, kD>::kRows;
  static constexpr int kElements = TileRows<T, kD>::elements(kRows);
  static constexpr int64_t kBytes =
      shared_bytes_of<T>(2 * kElements) + shared_bytes_of<float>(RowsOfTile<kRows>::kNumbers);
  T* data;

  __device__ TileRows<T, kD> q() const { return {data}; }
  __device__ TileRows<T, kD> d_o() const { return {data + kElements}; }
  __device__ RowsOfTile<kRows> figures() const {
    return {reinterpret_cast<float*>(data + 2 * kElements)};
  }
  __device__ static RowPlaces take(SharedMemory& shared) {
    return {shared.take<T>(static_cast<int>(kBytes / int64_t{sizeof(T)}))};
  }
};

template <class T, int kD>
constexpr int64_t key_gradient_bytes() {
  return shared_bytes_of<T>(TileRows<T, kD>::elements(2 * KeyGradientShape<T, kD>::kKeys)) +
         2 * RowPlaces<T, kD>::kBytes + shared_bytes_of<int>(Attendees::kNumbers);
}

/// Takes all rows of a batch.
template <class T, int kD>
__device__ __forceinline__ void absorb_batch(KeyGradientState<T, kD>& state,
                                             const BatchRows<T, kD>& batch,
                                             const ReadRows<T, kD>& keys, RowPlaces<T, kD>& rows,
                                             RowPlaces<T, kD>& other, const SeenByKeys& seen,
                                             int first_column) {
  const int first_key = static_cast<int>(threadIdx.x) / kWarpSize * 16;
  const int keys_of_task = batch.task.count;
  const float scale = batch.a.scale * kLog2E;
  RowFigures figures = batch.figures(0);
  batch.copy(0, rows.q(), rows.d_o());
  close_copies();
  keep_figures(rows.figures(), figures, keys_of_task, seen.window, seen.sinks);
  wait_for_copies<0>();
  __syncthreads();
  for (int tile = 0; tile < batch.tiles(); ++tile) {
    const bool more = tile + 1 < batch.tiles();
    if (more) {
      batch.copy(tile + 1, other.q(), other.d_o());
      figures = batch.figures(tile + 1);
    }
    close_copies();
    if (first_key < keys_of_task && first_key <= rows.figures().limits()[0]) {
      state.absorb(keys, rows.q(), rows.d_o(), rows.figures(), seen, scale, first_column);
    }
    if (more) keep_figures(other.figures(), figures, keys_of_task, seen.window, seen.sinks);
    wait_for_copies<0>();
    __syncthreads();
    swap_places(rows, other);
  }
}

/// A Source, the same in all lanes, has
///   static KeyTask find(arguments, operands, keys, pass): by blockIdx.x and .y;
///   Source(arguments, operands, task);
///   fill(attendees): the next tokens, 0 after the last, with the barriers around it;
///   window, sinks: by which they see keys, counted from the panel's first.
/// blockIdx.z is a part of the columns.
template <class T, int kD, class Source>
__global__ void __launch_bounds__(KeyGradientShape<T, kD>::kThreads,
                                  KeyGradientShape<T, kD>::kBlocks)
    attention_key_gradient(BackwardOperands<T> a, typename Source::Arguments arguments,
                           KeyPass pass) {
  using Shape = KeyGradientShape<T, kD>;
  using Rows = TileRows<T, kD>;
  const KeyTask task = Source::find(arguments, a, Shape::kKeys, pass);
  if (task.count <= 0) return;
  SharedMemory shared;
  const Rows keys = Rows::take(shared, 2 * Shape::kKeys);
  const Rows values{keys.row(Shape::kKeys)};
  auto rows = RowPlaces<T, kD>::take(shared);
  auto other_rows = RowPlaces<T, kD>::take(shared);
  const Attendees attendees{shared.take<int>(Attendees::kNumbers)};
  Source source(arguments, a, task);

  const int kv_head = a.groups.at[task.place];
  const auto key_row = [&](const T* tensor, int i) {
    return i < task.count ? tensor + a.key(task.row + i, kv_head) : nullptr;
  };
  copy_rows<Shape::kThreads>(keys, Shape::kKeys, a.d, a.k, [&](int i) { return key_row(a.k, i); });
  copy_rows<Shape::kThreads>(values, Shape::kKeys, a.d, a.v,
                             [&](int i) { return key_row(a.v, i); });
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  // Where one block has all columns this is no register.
  const int first_column =
      Shape::kColumnParts == 1 ? 0 : static_cast<int>(blockIdx.z) * Shape::kColumns;
  ReadRows<T, kD> left_keys;
  left_keys.load(keys, 16 * warp);
  const SeenByKeys seen{
      {16 * warp + row_of_lane(0), 16 * warp + row_of_lane(1)}, source.window(), source.sinks()};
  const auto heads = static_cast<int>(a.map.count_of(kv_head));
  KeyGradientState<T, kD> state;
  clear(state.dk);
  clear(state.dv);
  while (heads > 0) {
    const int tokens = source.fill(attendees);
    if (tokens == 0) break;
    const BatchRows<T, kD> batch{
        a,     task,           attendees,     static_cast<int>(a.map.begin_of(kv_head)),
        heads, Divisor(heads), tokens * heads};
    absorb_batch(state, batch, left_keys, rows, other_rows, seen, first_column);
  }
  // A panel that no row sees comes here with its keys still under way, in a group that is open.
  close_copies();
  wait_for_copies<0>();
  if (task.partial != nullptr) return state.keep(task.partial, warp, first_column);
  __syncthreads();
  state.finish(a, task, warp, keys, values, first_column);
}

/// The sum of a task's chunks of kKeys keys each, in their order: a lane per column, keys in turn
/// by blockIdx.z.
inline constexpr int kSumParts = 8;
template <class T, int kD, int kKeys, class Source>
__global__ void __launch_bounds__(kD)
    add_key_chunks(BackwardOperands<T> a, typename Source::Arguments arguments) {
  const KeyTask task = Source::find(arguments, a, kKeys, KeyPass::kSums);
  const auto column = static_cast<int>(threadIdx.x);
  if (column >= a.d) return;
  for (int key = static_cast<int>(blockIdx.z); key < task.count; key += kSumParts) {
    float dk = 0;
    float dv = 0;
    for (int chunk = 0; chunk < task.chunks; ++chunk) {
      const float* const row = task.partial + (int64_t{chunk} * 2 * kKeys + key) * kD + column;
      dk += row[0];
      dv += row[kKeys * kD];
    }
    const int64_t to = a.key(task.row + key, a.groups.at[task.place]) + column;
    a.dk[to] = from_float<T>(dk * a.scale);
    a.dv[to] = from_float<T>(dv);
  }
}

template <class T, int kD, class Source>
void start_key_gradient(Stream& stream, const BackwardOperands<T>& operands,
                        const typename Source::Arguments& arguments, const KeyPassBlocks& blocks,
                        size_t groups) {
  using Shape = KeyGradientShape<T, kD>;
  const auto places = static_cast<unsigned>(groups);
  const auto start = [&](int64_t count, KeyPass pass) {
    launch(stream, attention_key_gradient<T, kD, Source>,
           dim3(static_cast<unsigned>(count), places, Shape::kColumnParts), Shape::kThreads,
           key_gradient_bytes<T, kD>(), operands, arguments, pass);
  };
  start(blocks.whole, KeyPass::kWhole);
  if (blocks.chunks == 0) return;
  start(blocks.chunks, KeyPass::kChunks);
  launch(stream, add_key_chunks<T, kD, Shape::kKeys, Source>,
         dim3(static_cast<unsigned>(blocks.sums), places, kSumParts), kD, 0, operands, arguments);
}

}  // namespace tessera::gpu
