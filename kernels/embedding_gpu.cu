#include "kernels/core/device_check.cuh"
#include "kernels/core/pointwise.cuh"
#include "kernels/core/radix_sort.cuh"
#include "kernels/core/workspace.h"
#include "kernels/embedding.h"

// Forward reads and writes a row per token. Backward sorts the tokens by their rows of the table,
// in token order among equals; then a row of the table is read and written once, and every token's
// gradient read once, in the order that the CPU adds them: the same bits.

namespace tessera::gpu {
namespace {

template <class T>
struct Forward {
  T* y;
  const T* table;
  const int32_t* ids;
  int64_t first;
  int64_t rows;
  int64_t vocabulary;
  int64_t dim;
  RowSplit split;  // of tokens
};

__device__ int64_t checked_id(int32_t id, int64_t vocabulary) {
  device_check(id >= 0 && id < vocabulary, "embedding: a token's id is not in the vocabulary");
  return id;
}

template <class T, int N>
__global__ void __launch_bounds__(kMapThreads) take_rows(Forward<T> a) {
  const RowPlace at = place_in(a.split);
  if (at.item < 0) return;
  const int64_t j = int64_t{at.item} * N;
  const int64_t row = checked_id(a.ids[at.row], a.vocabulary) - a.first;
  T* const to = a.y + at.row * a.dim + j;
  if (row >= 0 && row < a.rows) {
    copy_numbers<N>(to, a.table + row * a.dim + j);
  } else {
    store_floats(to, Floats<N>{});
  }
}

/// Rows of the table; `rows` for what another shard holds and for gaps.
__global__ void __launch_bounds__(kMapThreads)
    find_rows(int32_t* found, const int32_t* ids, int64_t first, int64_t rows, int64_t vocabulary,
              int64_t tokens, bool gaps) {
  const int64_t t = int64_t{blockIdx.x} * kMapThreads + threadIdx.x;
  if (t >= tokens) return;
  const bool gap = gaps && ids[t] == -1;
  const int64_t row = gap ? -1 : checked_id(ids[t], vocabulary) - first;
  found[t] = static_cast<int32_t>(row >= 0 && row < rows ? row : rows);
}

template <class T>
struct Backward {
  float* dtable;
  const T* dy;
  const T* scale;  // by column; read only where scaled
  SortedKeys sorted;
  int64_t rows;
  int64_t dim;
  RowSplit split;  // of sorted tokens
};

/// The lanes of the first token of a row add all of its tokens; others have nothing to do. Most
/// rows have one token: what the choice and its place need is read at once, and then row and
/// gradient.
template <class T, int N, bool kScaled>
__global__ void __launch_bounds__(kMapThreads, 6) add_tokens(Backward<T> a) {
  constexpr int kAhead = 4;  // tokens whose gradients are read before they are added
  const RowPlace at = place_in(a.split);
  if (at.item < 0) return;
  const int32_t row = a.sorted.keys[at.row];
  const int32_t before = at.row > 0 ? a.sorted.keys[at.row - 1] : -1;
  const int32_t after = at.row + 1 < a.split.rows ? a.sorted.keys[at.row + 1] : -1;
  const int64_t token = a.sorted.places[at.row];
  if (row >= a.rows || before == row) return;
  const int64_t j = int64_t{at.item} * N;
  float* const to = a.dtable + row * a.dim + j;
  Floats<N> scale{};
  if constexpr (kScaled) scale = load_floats<N>(a.scale + j);
  Floats<N> sum = load_floats<N>(to);
  const auto add = [&](const Floats<N>& gradient) {
    for (int i = 0; i < N; ++i) {
      sum.at[i] += kScaled ? scale.at[i] * gradient.at[i] : gradient.at[i];
    }
  };
  add(load_floats<N>(a.dy + token * a.dim + j));
  bool more = after == row;
  for (int64_t first = at.row + 1; more; first += kAhead) {
    int64_t tokens[kAhead];
    for (int k = 0; k < kAhead; ++k) {
      const bool mine = first + k < a.split.rows && a.sorted.keys[first + k] == row;
      tokens[k] = mine ? a.sorted.places[first + k] : -1;
    }
    Floats<N> ahead[kAhead] = {};
    for (int k = 0; k < kAhead; ++k) {
      if (tokens[k] >= 0) ahead[k] = load_floats<N>(a.dy + tokens[k] * a.dim + j);
    }
    for (int k = 0; k < kAhead; ++k) {
      if (tokens[k] >= 0) add(ahead[k]);
    }
    more = tokens[kAhead - 1] >= 0;
  }
  store_floats(to, sum);
}

}  // namespace

void embedding_forward(Stream& stream, const EmbeddingForward& a) {
  const int64_t tokens = a.ids.elements();
  const int64_t dim = a.table.shape()[1];
  with_float_type(a.table.dtype(), [&]<class T>() {
    constexpr int kN = kGroup<T>;
    T* const y = a.y.as<T>().data();
    const T* const table = a.table.as<T>().data();
    const bool packed = in_packs(y, dim) && in_packs(table, dim);
    const Forward<T> of{.y = y,
                        .table = table,
                        .ids = a.ids.as<int32_t>().data(),
                        .first = a.first,
                        .rows = a.table.shape()[0],
                        .vocabulary = a.vocabulary > 0 ? a.vocabulary : a.table.shape()[0],
                        .dim = dim,
                        .split = RowSplit(tokens, packed ? dim / kN : dim)};
    launch(stream, packed ? take_rows<T, kN> : take_rows<T, 1>, of.split.grid(), kMapThreads, 0,
           of);
  });
}

void embedding_backward(Stream& stream, const EmbeddingBackward& a) {
  const int64_t tokens = a.ids.elements();
  const int64_t rows = a.dtable.shape()[0];
  const int64_t dim = a.dtable.shape()[1];
  if (tokens == 0 || rows == 0 || dim == 0) return;
  Workspace workspace(stream, "embedding_backward");
  auto* const found = workspace.take<int32_t>(tokens);
  launch(stream, find_rows, dim3(blocks_for(tokens, kMapThreads)), kMapThreads, 0, found,
         a.ids.as<int32_t>().data(), a.first, rows, a.vocabulary > 0 ? a.vocabulary : rows, tokens,
         a.gaps);
  const SortedKeys sorted = sort_keys(stream, workspace, found, tokens, rows);
  with_float_type(a.dy.dtype(), [&]<class T>() {
    constexpr int kN = kGroup<float>;
    float* const dtable = a.dtable.as<float>().data();
    const T* const dy = a.dy.as<T>().data();
    const bool scaled = !a.scale.empty();
    const T* const scale = scaled ? a.scale.as<T>().data() : nullptr;
    const bool packed = aligned_to_packs(dtable, dy, scale) && dim % kN == 0;
    const Backward<T> of{.dtable = dtable,
                         .dy = dy,
                         .scale = scale,
                         .sorted = sorted,
                         .rows = rows,
                         .dim = dim,
                         .split = RowSplit(tokens, packed ? dim / kN : dim)};
    const auto kernel = scaled ? (packed ? add_tokens<T, kN, true> : add_tokens<T, 1, true>)
                               : (packed ? add_tokens<T, kN, false> : add_tokens<T, 1, false>);
    launch(stream, kernel, of.split.grid(), kMapThreads, 0, of);
  });
}

}  // namespace tessera::gpu
