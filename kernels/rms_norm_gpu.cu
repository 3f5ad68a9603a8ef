#include <algorithm>

#include "kernels/core/add_chunks.h"
#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/pointwise.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/rms_norm.h"

// A block per row. Forward reads x and residual once and writes y and h once: the row stays in
// shared memory between the sum of squares and the product. Backward reads dy, h and dresidual once
// and writes dh: rows stay in registers, and so does a block's part of the weight's gradient, for a
// fixed number of chunks of rows that a second kernel adds up in a fixed order. Rows that are too
// long or no packs are read twice, the second time from the L1 cache.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
/// Rows up to this many bytes are kept in shared memory.
constexpr int64_t kKeptBytes = 32 * 1024;

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
  bool keep;  // the row, in shared memory
};

/// x + residual, rounded to T.
template <class T>
__device__ Pack<T> summed(const Pack<T>& x, const Pack<T>& residual) {
  Pack<T> sum;
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    sum.values[i] = from_float<T>(to_float(x.values[i]) + to_float(residual.values[i]));
  }
  return sum;
}

/// One number at a time where rows are not whole packs.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kThreads) forward_row(Forward<T> a) {
  constexpr int kStep = kPacked ? Pack<T>::kSize : 1;
  using Value = std::conditional_t<kPacked, Pack<T>, T>;
  SharedMemory shared;
  float* const sums = shared.take<float>(kWarpSize);
  T* const kept = shared.take<T>(a.keep ? a.dim : 0);
  const int64_t row = int64_t{blockIdx.x} * a.dim;
  const T* const read_again = a.keep ? kept : (a.h != nullptr ? a.h + row : a.x + row);
  float squares = 0;
  for (int d = static_cast<int>(threadIdx.x) * kStep; d < a.dim; d += kThreads * kStep) {
    Value h = *reinterpret_cast<const Value*>(a.x + row + d);
    if constexpr (kPacked) {
      if (a.residual != nullptr) h = summed(h, load_pack(a.residual + row + d));
      for (const T& value : h.values) squares += to_float(value) * to_float(value);
    } else {
      if (a.residual != nullptr) h = from_float<T>(to_float(h) + to_float(a.residual[row + d]));
      squares += to_float(h) * to_float(h);
    }
    if (a.h != nullptr) *reinterpret_cast<Value*>(a.h + row + d) = h;
    if (a.keep) *reinterpret_cast<Value*>(kept + d) = h;
  }
  const float rstd = rsqrtf(block_sum(squares, sums) / static_cast<float>(a.dim) + a.epsilon);
  if (threadIdx.x == 0) a.rstd[blockIdx.x] = rstd;
  for (int d = static_cast<int>(threadIdx.x) * kStep; d < a.dim; d += kThreads * kStep) {
    Value y = *reinterpret_cast<const Value*>(read_again + d);
    const Value weight = *reinterpret_cast<const Value*>(a.weight + d);
    if constexpr (kPacked) {
      for (int i = 0; i < Pack<T>::kSize; ++i) {
        y.values[i] = from_float<T>(to_float(y.values[i]) * rstd * to_float(weight.values[i]));
      }
    } else {
      y = from_float<T>(to_float(y) * rstd * to_float(weight));
    }
    *reinterpret_cast<Value*>(a.y + row + d) = y;
  }
}

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

constexpr int kMostThreads = 512;
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
    const auto lanes = static_cast<int>((packs + each - 1) / each);
    threads = (lanes + kWarpSize - 1) / kWarpSize * kWarpSize;
  }
};

template <class T>
const T* data_or_null(const ConstTensorView& x) {
  return x.empty() ? nullptr : x.as<T>().data();
}

}  // namespace

void rms_norm_forward(Stream& stream, const RmsNormForward& a) {
  const int64_t dim = a.x.shape()[1];
  with_float_type(a.x.dtype(), [&]<class T>() {
    Forward<T> row{.y = a.y.as<T>().data(),
                   .rstd = a.rstd.as<float>().data(),
                   .h = a.h.empty() ? nullptr : a.h.as<T>().data(),
                   .x = a.x.as<T>().data(),
                   .residual = data_or_null<T>(a.residual),
                   .weight = a.weight.as<T>().data(),
                   .epsilon = a.epsilon,
                   .dim = static_cast<int>(dim),
                   .keep = dim * static_cast<int64_t>(sizeof(T)) <= kKeptBytes};
    const bool packed = in_packs(row.y, dim) && in_packs(row.x, dim) && in_packs(row.weight, dim) &&
                        in_packs(row.h, dim) && in_packs(row.residual, dim);
    const int64_t shared =
        shared_bytes_of<float>(kWarpSize) + shared_bytes_of<T>(row.keep ? dim : 0);
    launch(stream, packed ? forward_row<T, true> : forward_row<T, false>,
           dim3(static_cast<unsigned>(a.x.shape()[0])), kThreads, shared, row);
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
