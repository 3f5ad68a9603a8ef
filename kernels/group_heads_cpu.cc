#include <algorithm>

#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/group_heads.h"

namespace tessera::cpu {

void take_groups(ThreadPool& threads, const TakeGroups& a) {
  const int64_t tokens = a.x.shape()[0];
  const int64_t row = a.x.shape()[1] * a.x.shape()[2];  // of x
  const int64_t width = a.y.shape()[2];                 // of one group
  with_float_type(a.x.dtype(), [&]<class T>() {
    const T* const x = a.x.as<T>().data();
    T* const y = a.y.as<T>().data();
    threads.for_ranges(tokens, row_grain(row), [&, x, y](int64_t begin, int64_t end) {
      for (size_t c = 0; c < a.groups.size(); ++c) {
        T* const to = y + static_cast<int64_t>(c) * tokens * width;
        for (int64_t t = begin; t < end; ++t) {
          std::copy_n(x + t * row + a.groups[c] * width, width, to + t * width);
        }
      }
    });
  });
}

void add_groups(ThreadPool& threads, const AddGroups& a) {
  const int64_t tokens = a.x.shape()[0];
  const int64_t row = a.x.shape()[1] * a.x.shape()[2];
  const int64_t width = a.y.shape()[2];
  with_float_type(a.x.dtype(), [&]<class X>() {
    with_float_type(a.y.dtype(), [&]<class Y>() {
      X* const x = a.x.as<X>().data();
      const Y* const y = a.y.as<Y>().data();
      threads.for_ranges(tokens, row_grain(row), [&, x, y](int64_t begin, int64_t end) {
        for (size_t c = 0; c < a.groups.size(); ++c) {
          const Y* const from = y + static_cast<int64_t>(c) * tokens * width;
          for (int64_t t = begin; t < end; ++t) {
            X* const to = x + t * row + a.groups[c] * width;
            for_lanes(width, [&](int64_t i, int64_t lanes) {
              const F32x16 more = load_first(from + t * width + i, lanes);
              store_first(to + i, load_first(to + i, lanes) + more, lanes);
            });
          }
        }
      });
    });
  });
}

}  // namespace tessera::cpu
