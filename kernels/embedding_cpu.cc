#include <algorithm>

#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/embedding.h"

namespace tessera::cpu {

void check_ids(std::span<const int32_t> ids, int32_t least, int64_t vocabulary) {
  for (size_t t = 0; t < ids.size(); ++t) {
    if (ids[t] >= least && ids[t] < vocabulary) continue;
    throw Error(ExitCode::kBadData, concat("embedding: token ", t, " has id ", ids[t],
                                           ", expected ", least, " to ", vocabulary - 1,
                                           "; use data of the model's tokenizer, or a model whose "
                                           "vocabulary holds it"));
  }
}

void embedding_forward(ThreadPool& threads, const EmbeddingForward& a) {
  const int64_t dim = a.table.shape()[1];
  const auto ids = a.ids.as<int32_t>();
  const int64_t rows = a.table.shape()[0];
  const int64_t first = a.first;
  check_ids(ids, 0, a.vocabulary > 0 ? a.vocabulary : rows);
  with_float_type(a.table.dtype(), [&]<class T>() {
    const T* const table = a.table.as<T>().data();
    T* const y = a.y.as<T>().data();
    threads.for_ranges(a.ids.elements(), row_grain(dim), [=](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t row = ids[static_cast<size_t>(t)] - first;
        if (row >= 0 && row < rows) {
          std::copy_n(table + row * dim, dim, y + t * dim);
        } else {
          std::fill_n(y + t * dim, dim, T{});
        }
      }
    });
  });
}

void embedding_backward(ThreadPool& threads, const EmbeddingBackward& a) {
  // Tasks are ranges of columns: each adds all tokens in order, however often an id occurs.
  constexpr int64_t kColumns = 128;
  const int64_t dim = a.dtable.shape()[1];
  const auto ids = a.ids.as<int32_t>();
  const int64_t rows = a.dtable.shape()[0];
  const int64_t first = a.first;
  check_ids(ids, a.gaps ? -1 : 0, a.vocabulary > 0 ? a.vocabulary : rows);
  with_float_type(a.dy.dtype(), [&]<class T>() {
    const T* const scale = a.scale.empty() ? nullptr : a.scale.as<T>().data();
    const T* const dy = a.dy.as<T>().data();
    float* const dtable = a.dtable.as<float>().data();
    threads.for_ranges(dim, kColumns, [=](int64_t begin, int64_t end) {
      for (size_t t = 0; t < ids.size(); ++t) {
        const int64_t row = ids[t] - first;
        if (ids[t] < 0 || row < 0 || row >= rows) continue;
        const T* const from = dy + static_cast<int64_t>(t) * dim + begin;
        float* const to = dtable + row * dim + begin;
        for_lanes(end - begin, [=](int64_t i, int64_t lanes) {
          F32x16 x = load_first(from + i, lanes);
          if (scale != nullptr) x *= load_first(scale + begin + i, lanes);
          store_first(to + i, load_first(to + i, lanes) + x, lanes);
        });
      }
    });
  });
}

}  // namespace tessera::cpu
