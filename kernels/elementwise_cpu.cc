#include <algorithm>
#include <cstring>

#include "kernels/core/fast_math.h"
#include "kernels/core/grain.h"
#include "kernels/core/simd.h"
#include "kernels/elementwise.h"

namespace tessera::cpu {

namespace {

template <class T>
void fill_as(ThreadPool& threads, const TensorView& x, T value) {
  T* const to = x.as<T>().data();
  threads.for_ranges(x.elements(), kGrain,
                     [=](int64_t begin, int64_t end) { std::fill(to + begin, to + end, value); });
}

}  // namespace

void fill(ThreadPool& threads, const Fill& a) {
  if (a.x.dtype() == DType::kI32) return fill_as(threads, a.x, static_cast<int32_t>(a.value));
  with_float_type(a.x.dtype(), [&]<class T>() { fill_as(threads, a.x, from_float<T>(a.value)); });
}

void cast(ThreadPool& threads, const Cast& a) {
  with_float_type(a.x.dtype(), [&]<class From>() {
    with_float_type(a.y.dtype(), [&]<class To>() {
      const From* const x = a.x.as<From>().data();
      To* const y = a.y.as<To>().data();
      threads.for_ranges(a.x.elements(), kGrain, [=](int64_t begin, int64_t end) {
        if constexpr (std::is_same_v<From, To>) {
          std::copy(x + begin, x + end, y + begin);
        } else {
          for_lanes(end - begin, [=](int64_t i, int64_t lanes) {
            store_first(y + begin + i, load_first(x + begin + i, lanes), lanes);
          });
        }
      });
    });
  });
}

void add(ThreadPool& threads, const Add& a) {
  with_float_type(a.y.dtype(), [&]<class T>() {
    const T* const left = a.a.as<T>().data();
    const T* const right = a.b.as<T>().data();
    T* const y = a.y.as<T>().data();
    threads.for_ranges(a.y.elements(), kGrain, [=](int64_t begin, int64_t end) {
      for_lanes(end - begin, [=](int64_t i, int64_t lanes) {
        const F32x16 x = load_first(left + begin + i, lanes);
        store_first(y + begin + i, x + load_first(right + begin + i, lanes), lanes);
      });
    });
  });
}

void accumulate(ThreadPool& threads, const Accumulate& a) {
  with_float_type(a.x.dtype(), [&]<class T>() {
    const T* const x = a.x.as<T>().data();
    float* const y = a.y.as<float>().data();
    threads.for_ranges(a.x.elements(), kGrain, [=](int64_t begin, int64_t end) {
      for_lanes(end - begin, [=](int64_t i, int64_t lanes) {
        const F32x16 sum = load_first(y + begin + i, lanes) + load_first(x + begin + i, lanes);
        store_first(y + begin + i, sum, lanes);
      });
    });
  });
}

void sigmoid_gate_forward(ThreadPool& threads, const SigmoidGateForward& a) {
  with_float_type(a.x.dtype(), [&]<class T>() {
    const T* const x = a.x.as<T>().data();
    const T* const g = a.g.as<T>().data();
    T* const y = a.y.as<T>().data();
    threads.for_ranges(a.x.elements(), kGrain, [=](int64_t begin, int64_t end) {
      for_lanes(end - begin, [=](int64_t i, int64_t lanes) {
        const F32x16 gate = fast_sigmoid(load_first(g + begin + i, lanes));
        store_first(y + begin + i, load_first(x + begin + i, lanes) * gate, lanes);
      });
    });
  });
}

void sigmoid_gate_backward(ThreadPool& threads, const SigmoidGateBackward& a) {
  with_float_type(a.x.dtype(), [&]<class T>() {
    const T* const dy = a.dy.as<T>().data();
    const T* const x = a.x.as<T>().data();
    const T* const g = a.g.as<T>().data();
    T* const dx = a.dx.as<T>().data();
    T* const dg = a.dg.as<T>().data();
    threads.for_ranges(a.x.elements(), kGrain, [=](int64_t begin, int64_t end) {
      for_lanes(end - begin, [=](int64_t first, int64_t lanes) {
        const int64_t i = begin + first;
        const F32x16 gate = fast_sigmoid(load_first(g + i, lanes));
        const F32x16 dgated = load_first(dy + i, lanes) * gate;
        const F32x16 dgate = dgated * load_first(x + i, lanes) * (1.0f - gate);
        store_first(dx + i, dgated, lanes);
        store_first(dg + i, dgate, lanes);
      });
    });
  });
}

}  // namespace tessera::cpu
