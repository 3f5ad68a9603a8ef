#include "kernels/core/pointwise.cuh"
#include "kernels/elementwise.h"

// Every element is read once and written once, 16 bytes at a time: the time is that of the bytes.

namespace tessera::gpu {
namespace {

template <class T>
struct FillOp {
  static constexpr int kGroup = gpu::kGroup<T>;
  T* x;
  T value;

  template <int N>
  __device__ int load(int64_t) const {
    return 0;
  }
  template <int N>
  __device__ void store(int64_t i, int) const {
    Chunk<T, N> chunk;
    for (T& one : chunk.values) one = value;
    store_chunk(x + i, chunk);
  }
};

template <class T>
void fill_as(Stream& stream, const TensorView& x, T value) {
  T* const to = x.as<T>().data();
  launch_map(stream, FillOp<T>{to, value}, x.elements(), aligned_to_packs(to));
}

/// The wider of the two types has 16 bytes in a group.
template <class To, class From>
struct CastOp {
  static constexpr int kGroup = gpu::kGroup<float>;
  To* y;
  const From* x;

  template <int N>
  __device__ Floats<N> load(int64_t i) const {
    return load_floats<N>(x + i);
  }
  template <int N>
  __device__ void store(int64_t i, const Floats<N>& value) const {
    store_floats(y + i, value);
  }
};

/// y = a + b, where y and a are of type Y.
template <class Y, class B>
struct AddOp {
  static constexpr int kGroup = gpu::kGroup<Y>;
  Y* y;
  const Y* a;
  const B* b;

  template <int N>
  __device__ Floats<N> load(int64_t i) const {
    Floats<N> sum = load_floats<N>(a + i);
    const Floats<N> more = load_floats<N>(b + i);
    for (int k = 0; k < N; ++k) sum.at[k] += more.at[k];
    return sum;
  }
  template <int N>
  __device__ void store(int64_t i, const Floats<N>& sum) const {
    store_floats(y + i, sum);
  }
};

template <class T>
struct GateForwardOp {
  static constexpr int kGroup = gpu::kGroup<T>;
  T* y;
  const T* x;
  const T* g;

  template <int N>
  __device__ Floats<N> load(int64_t i) const {
    Floats<N> value = load_floats<N>(x + i);
    const Floats<N> gate = load_floats<N>(g + i);
    for (int k = 0; k < N; ++k) value.at[k] *= device_sigmoid(gate.at[k]);
    return value;
  }
  template <int N>
  __device__ void store(int64_t i, const Floats<N>& value) const {
    store_floats(y + i, value);
  }
};

template <class T>
struct GateBackwardOp {
  static constexpr int kGroup = gpu::kGroup<T>;
  T* dx;
  T* dg;
  const T* dy;
  const T* x;
  const T* g;

  template <int N>
  struct Gradients {
    Floats<N> dx;
    Floats<N> dg;
  };
  template <int N>
  __device__ Gradients<N> load(int64_t i) const {
    const Floats<N> value = load_floats<N>(x + i);
    const Floats<N> gate = load_floats<N>(g + i);
    Gradients<N> d{load_floats<N>(dy + i), {}};
    for (int k = 0; k < N; ++k) {
      const float s = device_sigmoid(gate.at[k]);
      d.dx.at[k] *= s;
      d.dg.at[k] = d.dx.at[k] * value.at[k] * (1.0f - s);
    }
    return d;
  }
  template <int N>
  __device__ void store(int64_t i, const Gradients<N>& d) const {
    store_floats(dx + i, d.dx);
    store_floats(dg + i, d.dg);
  }
};

}  // namespace

void fill(Stream& stream, const Fill& a) {
  if (a.x.dtype() == DType::kI32) return fill_as(stream, a.x, static_cast<int32_t>(a.value));
  with_float_type(a.x.dtype(), [&]<class T>() { fill_as(stream, a.x, from_float<T>(a.value)); });
}

void cast(Stream& stream, const Cast& a) {
  if (a.x.dtype() == a.y.dtype()) {
    CUDA_CHECK(cudaMemcpyAsync(a.y.data(), a.x.data(), static_cast<size_t>(a.x.bytes()),
                               cudaMemcpyDeviceToDevice,
                               static_cast<cudaStream_t>(stream.handle())));
    return;
  }
  const auto cast_as = [&]<class To, class From>(To* y, const From* x) {
    launch_map(stream, CastOp<To, From>{y, x}, a.x.elements(), aligned_to_packs(y, x));
  };
  if (a.y.dtype() == DType::kBF16) {
    cast_as(a.y.as<BF16>().data(), a.x.as<float>().data());
  } else {
    cast_as(a.y.as<float>().data(), a.x.as<BF16>().data());
  }
}

void add(Stream& stream, const Add& a) {
  with_float_type(a.y.dtype(), [&]<class T>() {
    const AddOp<T, T> op{a.y.as<T>().data(), a.a.as<T>().data(), a.b.as<T>().data()};
    launch_map(stream, op, a.y.elements(), aligned_to_packs(op.y, op.a, op.b));
  });
}

void accumulate(Stream& stream, const Accumulate& a) {
  with_float_type(a.x.dtype(), [&]<class T>() {
    float* const y = a.y.as<float>().data();
    const AddOp<float, T> op{y, y, a.x.as<T>().data()};
    launch_map(stream, op, a.y.elements(), aligned_to_packs(op.y, op.b));
  });
}

void sigmoid_gate_forward(Stream& stream, const SigmoidGateForward& a) {
  with_float_type(a.x.dtype(), [&]<class T>() {
    const GateForwardOp<T> op{a.y.as<T>().data(), a.x.as<T>().data(), a.g.as<T>().data()};
    launch_map(stream, op, a.x.elements(), aligned_to_packs(op.y, op.x, op.g));
  });
}

void sigmoid_gate_backward(Stream& stream, const SigmoidGateBackward& a) {
  with_float_type(a.x.dtype(), [&]<class T>() {
    const GateBackwardOp<T> op{a.dx.as<T>().data(), a.dg.as<T>().data(), a.dy.as<T>().data(),
                               a.x.as<T>().data(), a.g.as<T>().data()};
    launch_map(stream, op, a.x.elements(), aligned_to_packs(op.dx, op.dg, op.dy, op.x, op.g));
  });
}

}  // namespace tessera::gpu
