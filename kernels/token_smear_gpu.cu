#include <algorithm>

#include "kernels/core/add_chunks.h"
#include "kernels/core/device_check.cuh"
#include "kernels/core/pointwise.cuh"
#include "kernels/core/workspace.h"
#include "kernels/token_smear.h"

// Forward reads and writes a row per token and reads n of the table. The weights' gradient is a sum
// over tokens: a block has a chunk of them and some columns of one place, which stay in registers;
// chunks are added in a fixed order.

namespace tessera::gpu {
namespace {

/// Where the entries of the table are.
struct Rows {
  const int32_t* before;  // [n, tokens]
  int64_t tokens;
  int64_t first;
  int64_t rows;
  int64_t vocabulary;

  /// -1: another shard's, or none.
  __device__ int64_t of(int64_t j, int64_t t) const {
    const int32_t id = before[j * tokens + t];
    device_check(id >= -1 && id < vocabulary, "embedding: a token's id is not in the vocabulary");
    const int64_t row = id - first;
    return id >= 0 && row >= 0 && row < rows ? row : -1;
  }
};

template <class Args>
Rows rows_of(const Args& a) {
  const int64_t rows = a.table.shape()[0];
  return {.before = a.before.template as<int32_t>().data(),
          .tokens = a.before.shape()[1],
          .first = a.first,
          .rows = rows,
          .vocabulary = a.vocabulary > 0 ? a.vocabulary : rows};
}

template <class T>
struct Forward {
  T* y;
  const T* table;
  const T* weight;
  Rows rows;
  int n;
  int64_t dim;
  RowSplit split;  // of tokens
};

template <class T, int N>
__global__ void __launch_bounds__(kMapThreads) take_up_rows(Forward<T> a) {
  const RowPlace at = place_in(a.split);
  if (at.item < 0) return;
  const int64_t d = int64_t{at.item} * N;
  T* const y = a.y + at.row * a.dim + d;
  Floats<N> sum = load_floats<N>(y);
  for (int j = 0; j < a.n; ++j) {
    const int64_t row = a.rows.of(j, at.row);
    if (row < 0) continue;
    const Floats<N> weight = load_floats<N>(a.weight + j * a.dim + d);
    const Floats<N> entry = load_floats<N>(a.table + row * a.dim + d);
    for (int i = 0; i < N; ++i) sum.at[i] += weight.at[i] * entry.at[i];
  }
  store_floats(y, sum);
}

template <class T>
struct Weights {
  float* parts;  // [chunks, n, dim]
  const T* dy;
  const T* table;
  Rows rows;
  int64_t dim;
};

/// Grid: chunks of tokens, columns, places.
template <class T, int N>
__global__ void __launch_bounds__(kMapThreads) sum_weights(Weights<T> a) {
  constexpr int kAhead = 4;  // tokens that are read before they are added
  const int64_t d = (int64_t{blockIdx.y} * kMapThreads + threadIdx.x) * N;
  if (d >= a.dim) return;
  const int64_t end = (int64_t{blockIdx.x} + 1) * a.rows.tokens / gridDim.x;
  Floats<N> sum{};
  for (int64_t t = int64_t{blockIdx.x} * a.rows.tokens / gridDim.x; t < end; t += kAhead) {
    Floats<N> gradient[kAhead] = {};
    Floats<N> entry[kAhead] = {};
    for (int k = 0; k < kAhead; ++k) {
      const int64_t row = t + k < end ? a.rows.of(blockIdx.z, t + k) : -1;
      if (row < 0) continue;
      gradient[k] = load_floats<N>(a.dy + (t + k) * a.dim + d);
      entry[k] = load_floats<N>(a.table + row * a.dim + d);
    }
    for (int k = 0; k < kAhead; ++k) {
      for (int i = 0; i < N; ++i) sum.at[i] += gradient[k].at[i] * entry[k].at[i];
    }
  }
  store_floats(a.parts + (int64_t{blockIdx.x} * gridDim.z + blockIdx.z) * a.dim + d, sum);
}

}  // namespace

void token_smear_forward(Stream& stream, const TokenSmearForward& a) {
  const int64_t dim = a.table.shape()[1];
  with_float_type(a.table.dtype(), [&]<class T>() {
    constexpr int kN = kGroup<T>;
    T* const y = a.y.as<T>().data();
    const T* const table = a.table.as<T>().data();
    const T* const weight = a.weight.as<T>().data();
    const bool packed = in_packs(y, dim) && in_packs(table, dim) && in_packs(weight, dim);
    const Forward<T> of{.y = y,
                        .table = table,
                        .weight = weight,
                        .rows = rows_of(a),
                        .n = static_cast<int>(a.weight.shape()[0]),
                        .dim = dim,
                        .split = RowSplit(a.before.shape()[1], packed ? dim / kN : dim)};
    launch(stream, packed ? take_up_rows<T, kN> : take_up_rows<T, 1>, of.split.grid(), kMapThreads,
           0, of);
  });
}

void token_smear_weights(Stream& stream, const TokenSmearBackward& a) {
  const int64_t n = a.weight.shape()[0];
  const int64_t tokens = a.before.shape()[1];
  const int64_t dim = a.table.shape()[1];
  if (n == 0 || tokens == 0 || dim == 0) return;
  // A function of the shape alone, so that the sum is the same on every GPU.
  constexpr int64_t kMostChunks = 512;
  constexpr int64_t kPartBytes = Stream::kWorkspaceBytes / 2;
  const int64_t chunks = std::clamp<int64_t>(kPartBytes / (n * dim * int64_t{sizeof(float)}), 1,
                                             std::min(kMostChunks, tokens));
  float* const parts = Workspace(stream, "token_smear_backward").take<float>(chunks * n * dim);
  with_float_type(a.table.dtype(), [&]<class T>() {
    constexpr int kN = kGroup<T>;
    const T* const dy = a.dy.as<T>().data();
    const T* const table = a.table.as<T>().data();
    const bool packed = in_packs(dy, dim) && in_packs(table, dim) && in_packs(parts, dim);
    const Weights<T> of{.parts = parts, .dy = dy, .table = table, .rows = rows_of(a), .dim = dim};
    const dim3 grid(static_cast<unsigned>(chunks), blocks_for(packed ? dim / kN : dim, kMapThreads),
                    static_cast<unsigned>(n));
    launch(stream, packed ? sum_weights<T, kN> : sum_weights<T, 1>, grid, kMapThreads, 0, of);
  });
  add_chunks(stream, a.dweight.as<float>().data(), parts, n * dim, chunks);
}

}  // namespace tessera::gpu
