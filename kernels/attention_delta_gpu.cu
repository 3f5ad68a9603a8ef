#include <algorithm>

#include "kernels/attention_backward.cuh"
#include "kernels/core/workspace.h"

// delta: bound by reading d_o and o once, 16 bytes per lane. The gradient of the sink logits is
// summed over chunks of tokens, whose size is fixed, and then over the chunks, in double.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTokensPerChunk = 4096;

/// Head `i` of those of a call, which has `map.group_heads` places per group; -1: q lacks it.
__device__ int head_of(const GroupList& groups, const HeadMap& map, int i) {
  const auto group_heads = static_cast<int>(map.group_heads);
  const int kv_head = groups.at[i / group_heads];
  const int in_group = i % group_heads;
  return in_group < map.count_of(kv_head) ? static_cast<int>(map.begin_of(kv_head)) + in_group : -1;
}

/// `width` lanes per token, a power of two; blockIdx.y is a head.
template <class T>
__global__ void __launch_bounds__(kThreads)
    delta_rows(float* delta, const T* d_o, const T* o, GroupList groups, HeadMap map,
               int64_t tokens, int d, int width) {
  const int head = head_of(groups, map, static_cast<int>(blockIdx.y));
  if (head < 0) return;
  const int64_t token =
      (int64_t{blockIdx.x} * kThreads + threadIdx.x) / static_cast<unsigned>(width);
  const int lane = static_cast<int>(threadIdx.x) % width;
  const int64_t row = (std::min(token, tokens - 1) * map.heads + head) * d;
  float sum = 0;
  for (int i = lane * Pack<T>::kSize; i < d; i += width * Pack<T>::kSize) {
    const Pack<T> x = load_pack(d_o + row + i);
    const Pack<T> y = load_pack(o + row + i);
    for (int j = 0; j < Pack<T>::kSize; ++j) sum += to_float(x.values[j]) * to_float(y.values[j]);
  }
  for (int bits = width / 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, bits);
  if (lane == 0 && token < tokens) delta[head * tokens + token] = sum;
}

/// Sum over a warp, in every lane.
__device__ double warp_total(double value) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, bits);
  }
  return value;
}

/// partials[place of the head, chunk] = sum_i exp(a_h - L_i) delta_i.
__global__ void __launch_bounds__(kThreads)
    sink_chunk(double* partials, const float* delta, const float* lse, const float* sink_logits,
               GroupList groups, HeadMap map, int64_t tokens) {
  SharedMemory shared;
  double* const sums = shared.take<double>(kWarps);
  const int head = head_of(groups, map, static_cast<int>(blockIdx.y));
  if (head < 0) return;
  const int64_t end = std::min(tokens, (int64_t{blockIdx.x} + 1) * kTokensPerChunk);
  double total = 0;
  for (int64_t t = int64_t{blockIdx.x} * kTokensPerChunk + threadIdx.x; t < end; t += kThreads) {
    const float log_weight = fminf(sink_logits[head] - lse[head * tokens + t], 0);
    total += static_cast<double>(expf(log_weight) * delta[head * tokens + t]);
  }
  total = warp_total(total);
  if (threadIdx.x % kWarpSize == 0) sums[threadIdx.x / kWarpSize] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kWarps; ++i) total += sums[i];
  partials[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = total;
}

/// A warp per head.
__global__ void add_sink_chunks(float* dsink_logits, const double* partials, GroupList groups,
                                HeadMap map, int chunks) {
  const int head = head_of(groups, map, static_cast<int>(blockIdx.x));
  if (head < 0) return;
  double total = 0;
  for (int i = static_cast<int>(threadIdx.x); i < chunks; i += kWarpSize) {
    total += partials[int64_t{blockIdx.x} * chunks + i];
  }
  total = warp_total(total);
  if (threadIdx.x == 0) dsink_logits[head] -= static_cast<float>(total);
}

}  // namespace

void attention_delta(Stream& stream, const AttentionDelta& a) {
  const int64_t tokens = a.d_o.shape()[0];
  const int64_t d = a.d_o.shape()[2];
  const GroupList groups = group_list(a.groups, "attention_delta");
  const auto heads =
      static_cast<unsigned>(static_cast<int64_t>(a.groups.size()) * a.map.group_heads);
  float* const delta = a.delta.as<float>().data();
  with_float_type(a.d_o.dtype(), [&]<class T>() {
    int width = 1;
    while (width < kWarpSize && width * Pack<T>::kSize < d) width *= 2;
    launch(stream, delta_rows<T>, dim3(blocks_for(tokens * width, kThreads), heads), kThreads, 0,
           delta, a.d_o.as<T>().data(), a.o.as<T>().data(), groups, a.map, tokens,
           static_cast<int>(d), width);
  });
  if (a.sink_logits.empty() || heads == 0 || tokens == 0) return;
  const unsigned chunks = blocks_for(tokens, kTokensPerChunk);
  double* const partials =
      Workspace(stream, "attention_delta").take<double>(int64_t{heads} * chunks);
  launch(stream, sink_chunk, dim3(chunks, heads), kThreads, shared_bytes_of<double>(kWarps),
         partials, delta, a.lse.as<float>().data(), a.sink_logits.as<float>().data(), groups, a.map,
         tokens);
  launch(stream, add_sink_chunks, dim3(heads), kWarpSize, 0, a.dsink_logits.as<float>().data(),
         partials, groups, a.map, static_cast<int>(chunks));
}

}  // namespace tessera::gpu
