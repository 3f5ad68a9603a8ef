#include <algorithm>
#include <bit>

#include "kernels/core/add_chunks.h"
#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/pointwise.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/rms_norm.h"

// Forward has a block per row, reads x and residual once and writes y and h once. Backward reads
// dy, h and dresidual once and writes dh, and keeps a block's part of the weight's gradient in
// registers for a fixed number of chunks of rows, which a second kernel adds up in a fixed order.
// Rows are in registers between the sum and what needs it. Rows that are too long or no packs are
// read twice, the second time from the L1 cache.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
/// The most where rows are in registers.
constexpr int kMostThreads = 512;
/// Whole warps that have `each` packs of a row at most per lane.
constexpr int lanes_for(int64_t packs, int each) {
  const auto lanes = static_cast<int>((packs + each - 1) / each);
  return (lanes + kWarpSize - 1) / kWarpSize * kWarpSize;
}

template <class T>
struct Forward {
  T* y;
  float* rstd;
  T* h;  // may be null
  const T* x;
  const T* residual;  // may be null
  const T* weight;
  float epsilon;
  int dim;
};

/// A pack as it lies in memory: half the registers of its bf16 one by one.
using Words = Chunk<uint32_t, 4>;
__device__ __forceinline__ Floats<4> unpacked(const float*, const Words& words) {
  return std::bit_cast<Floats<4>>(words);
}
__device__ __forceinline__ Floats<8> unpacked(const BF16*, const Words& words) {
  Floats<8> x;
  for (int i = 0; i < 4; ++i) {
    x.at[2 * i] = __uint_as_float(words.values[i] << 16);
    x.at[2 * i + 1] = __uint_as_float(words.values[i] & 0xFFFF0000u);
  }
  return x;
}
__device__ __forceinline__ Words packed(const float*, const Floats<4>& x) {
  return std::bit_cast<Words>(x);
}
__device__ __forceinline__ Words packed(const BF16*, const Floats<8>& x) {
  Words words;
  for (int i = 0; i < 4; ++i) words.values[i] = pack_bf16(x.at[2 * i], x.at[2 * i + 1]);
  return words;
}

/// Rows of any length, one number at a time.
template <class T>
__global__ void __launch_bounds__(kThreads) forward_row(Forward<T> a) {
  SharedMemory shared;
  float* const sums = shared.take<float>(kWarpSize);
  const int64_t row = int64_t{blockIdx.x} * a.dim;
  float squares = 0;
  for (int d = static_cast<int>(threadIdx.x); d < a.dim; d += kThreads) {
    T h = a.x[row + d];
    if (a.residual != nullptr) h = from_float<T>(to_float(h) + to_float(a.residual[row + d]));
    squares += to_float(h) * to_float(h);
    if (a.h != nullptr) a.h[row + d] = h;
  }
  const float rstd = rsqrtf(block_sum(squares, sums) / static_cast<float>(a.dim) + a.epsilon);
  if (threadIdx.x == 0) a.rstd[blockIdx.x] = rstd;
  const T* const again = (a.h != nullptr ? a.h : a.x) + row;
  for (int d = static_cast<int>(threadIdx.x); d < a.dim; d += kThreads) {
    a.y[row + d] = from_float<T>(to_float(again[d]) * rstd * to_float(a.weight[d]));
  }
}

/// The same where a row is at most kPacks packs of each lane. All of them are read before the first
/// is used: with one load of a lane at a time, too few bytes are under way for the memory's rate.
template <class T, int kPacks>
__global__ void __launch_bounds__(kMostThreads) forward_in_registers(Forward<T> a) {
  constexpr int kN = Pack<T>::kSize;
  SharedMemory shared;
  float* const sums = shared.take<float>(kWarpSize);
  const int64_t row = int64_t{blockIdx.x} * a.dim;
  const int step = static_cast<int>(blockDim.x) * kN;
  const int first = static_cast<int>(threadIdx.x) * kN;
  Words h[kPacks] = {};
  Words other[kPacks] = {};  // of residual, then of weight
  for (int p = 0; p < kPacks; ++p) {
    const int d = first + p * step;
    if (d >= a.dim) continue;
    h[p] = load_chunk<uint32_t, 4>(a.x + row + d);
    if (a.residual != nullptr) other[p] = load_chunk<uint32_t, 4>(a.residual + row + d);
  }
  float squares = 0;
  for (int p = 0; p < kPacks; ++p) {
    const int d = first + p * step;
    if (d >= a.dim) continue;
    Floats<kN> x = unpacked(a.x, h[p]);
    if (a.residual != nullptr) {
      const Floats<kN> residual = unpacked(a.x, other[p]);
      for (int i = 0; i < kN; ++i) x.at[i] += residual.at[i];
      h[p] = packed(a.x, x);
      x = unpacked(a.x, h[p]);
    }
    if (a.h != nullptr) store_chunk(a.h + row + d, h[p]);
    for (int i = 0; i < kN; ++i) squares += x.at[i] * x.at[i];
    other[p] = load_chunk<uint32_t, 4>(a.weight + d);
  }
  const float rstd = rsqrtf(block_sum(squares, sums) / static_cast<float>(a.dim) + a.epsilon);
  if (threadIdx.x == 0) a.rstd[blockIdx.x] = rstd;
  for (int p = 0; p < kPacks; ++p) {
    const int d = first + p * step;
    if (d >= a.dim) continue;
    Floats<kN> y = unpacked(a.x, h[p]);
    const Floats<kN> weight = unpacked(a.x, other[p]);
    for (int i = 0; i < kN; ++i) y.at[i] = y.at[i] * rstd * weight.at[i];
    store_floats(a.y + row + d, y);
  }
}

/// The kernel for rows of `dim`, with how many lanes a block has.
template <class T>
struct ForwardKernel {
  void (*kernel)(Forward<T>) = forward_row<T>;
  int threads = kThreads;

  explicit ForwardKernel(const Forward<T>& a) {
    const int64_t packs = a.dim / Pack<T>::kSize;
    const bool packed = in_packs(a.y, a.dim) && in_packs(a.x, a.dim) && in_packs(a.weight, a.dim) &&
                        in_packs(a.h, a.dim) && in_packs(a.residual, a.dim);
    if (!packed || packs > 4 * kMostThreads) return;
    const int each = packs <= 2 * kMostThreads ? 2 : 4;
    kernel = each == 2 ? forward_in_registers<T, 2> : forward_in_registers<T, 4>;
    threads = lanes_for(packs, each);
  }
};

template <class T>
struct Backward {
  T* dh;
  float* partials;  // [chunks, dim]
  const T* dy;
  const T* h;
  const T* weight;
  const float* rstd;
  const T* dresidual;  // may be null
  int64_t tokens;
  int dim;
};

/// With n = h rstd and g = dy weight: dh = rstd (g - n mean(g n)), dweight += dy n.
/// A block does a chunk of rows; a lane always has the same columns. Rows of any length.
template <class T>
__global__ void __launch_bounds__(kThreads) backward_chunk(Backward<T> a) {
  SharedMemory shared;
  float* const scratch = shared.take<float>(kWarpSize);
  float* const sums = a.partials + int64_t{blockIdx.x} * a.dim;
  for (int d = static_cast<int>(threadIdx.x); d < a.dim; d += kThreads) sums[d] = 0;
  const int64_t end = (int64_t{blockIdx.x} + 1) * a.tokens / gridDim.x;
  for (int64_t t = int64_t{blockIdx.x} * a.tokens / gridDim.x; t < end; ++t) {
    const int64_t row = t * a.dim;
    const float rstd = a.rstd[t];
    float product = 0;
    for (int d = static_cast<int>(threadIdx.x); d < a.dim; d += kThreads) {
      const float dy = to_float(a.dy[row + d]);
      const float n = to_float(a.h[row + d]) * rstd;
      product += dy * to_float(a.weight[d]) * n;
      sums[d] += dy * n;
    }
    const float mean = block_sum(product, scratch) / static_cast<float>(a.dim);
    for (int d = static_cast<int>(threadIdx.x); d < a.dim; d += kThreads) {
      const float g = to_float(a.dy[row + d]) * to_float(a.weight[d]);
      float dh = rstd * (g - to_float(a.h[row + d]) * rstd * mean);
      if (a.dresidual != nullptr) dh += to_float(a.dresidual[row + d]);
      a.dh[row + d] = from_float<T>(dh);
    }
    __syncthreads();  // scratch is used again
  }
}

/// The same where a row is at most kPacks packs of each lane, which all are read before the first
/// is used.
template <class T, int kPacks>
__global__ void __launch_bounds__(kMostThreads) backward_in_registers(Backward<T> a) {
  constexpr int kN = Pack<T>::kSize;
  SharedMemory shared;
  float* const scratch = shared.take<float>(kWarpSize);
  const int step = static_cast<int>(blockDim.x) * kN;
  const int first = static_cast<int>(threadIdx.x) * kN;
  Floats<kN> sums[kPacks] = {};
  const int64_t end = (int64_t{blockIdx.x} + 1) * a.tokens / gridDim.x;
  for (int64_t t = int64_t{blockIdx.x} * a.tokens / gridDim.x; t < end; ++t) {
    const int64_t row = t * a.dim;
    const float rstd = a.rstd[t];
    Floats<kN> g[kPacks] = {};
    Floats<kN> n[kPacks] = {};
    Floats<kN> more[kPacks] = {};
    for (int p = 0; p < kPacks; ++p) {
      const int d = first + p * step;
      if (d >= a.dim) continue;
      g[p] = load_floats<kN>(a.dy + row + d);
      n[p] = load_floats<kN>(a.h + row + d);
      if (a.dresidual != nullptr) more[p] = load_floats<kN>(a.dresidual + row + d);
    }
    float product = 0;
    for (int p = 0; p < kPacks; ++p) {
      const int d = first + p * step;
      if (d >= a.dim) continue;
      const Floats<kN> weight = load_floats<kN>(a.weight + d);
      for (int i = 0; i < kN; ++i) {
        n[p].at[i] *= rstd;
        sums[p].at[i] += g[p].at[i] * n[p].at[i];
        g[p].at[i] *= weight.at[i];
        product += g[p].at[i] * n[p].at[i];
      }
    }
    const float mean = block_sum(product, scratch) / static_cast<float>(a.dim);
    for (int p = 0; p < kPacks; ++p) {
      const int d = first + p * step;
      if (d >= a.dim) continue;
      for (int i = 0; i < kN; ++i) {
        more[p].at[i] += rstd * (g[p].at[i] - n[p].at[i] * mean);
      }
      store_floats(a.dh + row + d, more[p]);
    }
    __syncthreads();  // scratch is used again
  }
  for (int p = 0; p < kPacks; ++p) {
    const int d = first + p * step;
    if (d < a.dim) store_floats(a.partials + int64_t{blockIdx.x} * a.dim + d, sums[p]);
  }
}

/// The kernel for rows of `dim`, with how many lanes a block has.
template <class T>
struct BackwardKernel {
  void (*kernel)(Backward<T>) = backward_chunk<T>;
  int threads = kThreads;

  explicit BackwardKernel(const Backward<T>& a) {
    const int64_t packs = a.dim / Pack<T>::kSize;
    const bool packed = in_packs(a.dh, a.dim) && in_packs(a.dy, a.dim) && in_packs(a.h, a.dim) &&
                        in_packs(a.weight, a.dim) && in_packs(a.dresidual, a.dim);
    if (!packed || packs > 2 * kMostThreads) return;
    const int each = packs <= kMostThreads ? 1 : 2;
    kernel = each == 1 ? backward_in_registers<T, 1> : backward_in_registers<T, 2>;
    threads = lanes_for(packs, each);
  }
};

template <class T>
const T* data_or_null(const ConstTensorView& x) {
  return x.empty() ? nullptr : x.as<T>().data();
}

}  // namespace

void rms_norm_forward(Stream& stream, const RmsNormForward& a) {
  with_float_type(a.x.dtype(), [&]<class T>() {
    const Forward<T> of{.y = a.y.as<T>().data(),
                        .rstd = a.rstd.as<float>().data(),
                        .h = a.h.empty() ? nullptr : a.h.as<T>().data(),
                        .x = a.x.as<T>().data(),
                        .residual = data_or_null<T>(a.residual),
                        .weight = a.weight.as<T>().data(),
                        .epsilon = a.epsilon,
                        .dim = static_cast<int>(a.x.shape()[1])};
    const ForwardKernel<T> chosen(of);
    launch(stream, chosen.kernel, dim3(static_cast<unsigned>(a.x.shape()[0])), chosen.threads,
           shared_bytes_of<float>(kWarpSize), of);
  });
}

void rms_norm_backward(Stream& stream, const RmsNormBackward& a) {
  const int64_t tokens = a.h.shape()[0];
  const int64_t dim = a.h.shape()[1];
  if (tokens == 0 || dim == 0) return;
  // A function of the shape alone, so that the sum is the same on every GPU.
  constexpr int64_t kMostChunks = 512;
  constexpr int64_t kPartialBytes = Stream::kWorkspaceBytes / 2;
  const int64_t chunks =
      std::min({kMostChunks, tokens, kPartialBytes / (dim * int64_t{sizeof(float)})});
  float* const partials = Workspace(stream, "rms_norm_backward").take<float>(chunks * dim);
  with_float_type(a.h.dtype(), [&]<class T>() {
    const Backward<T> of{.dh = a.dh.as<T>().data(),
                         .partials = partials,
                         .dy = a.dy.as<T>().data(),
                         .h = a.h.as<T>().data(),
                         .weight = a.weight.as<T>().data(),
                         .rstd = a.rstd.as<float>().data(),
                         .dresidual = data_or_null<T>(a.dresidual),
                         .tokens = tokens,
                         .dim = static_cast<int>(dim)};
    const BackwardKernel<T> chosen(of);
    launch(stream, chosen.kernel, dim3(static_cast<unsigned>(chunks)), chosen.threads,
           shared_bytes_of<float>(kWarpSize), of);
  });
  add_chunks(stream, a.dweight.as<float>().data(), partials, dim, chunks);
}

}  // namespace tessera::gpu
