#include <algorithm>
#include <climits>
#include <limits>

#include "kernels/core/device_math.cuh"
#include "kernels/core/exact_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/route.h"

// A warp per token, lane l has the experts l, l + 32, ... Forward keeps the keys of a token in
// registers, takes the largest k times, and counts: in shared memory those of the scope that its
// block begins in, in whole numbers, so that the order of the additions does not matter. The last
// block writes the counts as floats. Logits are read from memory once (the L1 cache has them
// afterwards), 4 bytes per token and expert; the gradients read and write as much again. Keys have
// the bits of the CPU's: see exact_math.cuh.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTokensOfBlock = 32;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// As on the CPU.
constexpr float kTinyScore = 1e-20f;

__device__ __forceinline__ int lane_of_warp() {
  return static_cast<int>(threadIdx.x) % kWarpSize;
}

struct Scopes {
  const int* starts;  // may be null
  int count;
  int64_t each;  // tokens, without starts

  /// Always one of them, whatever the starts are.
  __device__ int of(int64_t token) const {
    if (starts == nullptr) return static_cast<int>(token / each);
    int low = 0;
    int high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (starts[middle] <= token ? low : high) = middle;
    }
    return low;
  }
};
Scopes scopes_of(const ConstTensorView& starts, int64_t count, int64_t tokens) {
  return {starts.empty() ? nullptr : starts.as<int32_t>().data(), static_cast<int>(count),
          tokens / count};
}

/// One token and what was chosen for it.
struct Token {
  RouterMode mode;
  const float* logits;
  int number;  // of experts
  const int* chosen;
  int k;

  /// The expert in slot s, -1 where it is none.
  __device__ int expert(int s) const {
    const int e = chosen[s];
    return e >= 0 && e < number ? e : -1;
  }
};

/// Weight of an expert with logit l: factor e^(l - largest), or factor sigmoid(l).
struct Weighing {
  bool sigmoid;
  float largest;
  float factor;

  __device__ float operator()(float l) const {
    return (sigmoid ? exact_sigmoid(l) : exact_exp(l - largest)) * factor;
  }
};
__device__ Weighing weigh(const Token& t, float scale) {
  // kSoftmax sums over all experts, the others over the chosen.
  const bool all = t.mode == RouterMode::kSoftmax;
  const int count = all ? t.number : t.k;
  Weighing w{t.mode == RouterMode::kSigmoid, -kInfinity, 1};
  for (int i = lane_of_warp(); i < count && !w.sigmoid; i += kWarpSize) {
    const int e = all ? i : t.expert(i);
    if (e >= 0) w.largest = fmaxf(w.largest, t.logits[e]);
  }
  w.largest = warp_max(w.largest);
  float sum = 0;
  for (int i = lane_of_warp(); i < count; i += kWarpSize) {
    const int e = all ? i : t.expert(i);
    if (e >= 0) sum += w(t.logits[e]);
  }
  sum = warp_sum(sum);
  w.factor = w.sigmoid ? scale / (sum + kTinyScore) : 1 / sum;
  return w;
}

struct Forward {
  int* experts;
  float* weights;
  float* counts;
  int* found;  // [scopes, experts]: the counts, zero at first
  int* done;   // blocks that are, zero at first
  const float* logits;
  const float* bias;  // may be null
  RouterMode mode;
  float scale;
  int64_t tokens;
  int number;
  int k;
  Scopes scopes;
};

/// Whole numbers in the order of floats; -0 is 0, NaN is -infinity; none is 0.
__device__ __forceinline__ unsigned ordered(float key) {
  const unsigned bits = __float_as_uint(key != key ? -kInfinity : key + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

/// The largest keys one after the other, the lower expert first among equals. Slot s is written by
/// lane s % 32. Returns whether a key was NaN.
template <int kEach>
__device__ bool choose(const Forward& a, const float* logits, int* chosen) {
  const int lane = lane_of_warp();
  unsigned keys[kEach];
  bool found_nan = false;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int e = lane + j * kWarpSize;
    float key = e < a.number ? logits[e] : 0;
    if (a.mode == RouterMode::kSigmoid) key = exact_sigmoid(key);
    if (a.bias != nullptr && e < a.number) key = __fadd_rn(key, a.bias[e]);
    found_nan = found_nan || key != key;
    keys[j] = e < a.number ? ordered(key) : 0;
  }
  for (int s = 0; s < a.k; ++s) {
    unsigned best = 0;
    int expert = INT_MAX;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (keys[j] > best) {
        best = keys[j];
        expert = lane + j * kWarpSize;
      }
    }
    const bool among = best == __reduce_max_sync(kWholeWarp, best);
    expert = __reduce_min_sync(kWholeWarp, among ? expert : INT_MAX);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (lane + j * kWarpSize == expert) keys[j] = 0;
    }
    if (lane == s % kWarpSize) chosen[s] = expert;
  }
  return __any_sync(kWholeWarp, found_nan) != 0;
}

/// Adds what the block counted in its own scope; the last block of all writes the floats.
__device__ void give_counts(const Forward& a, const int* own, int scope, int* is_last) {
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < a.number; e += kThreads) {
    if (own[e] != 0) atomicAdd(&a.found[int64_t{scope} * a.number + e], own[e]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *is_last = atomicAdd(a.done, 1) + 1 == static_cast<int>(gridDim.x);
  __syncthreads();
  if (*is_last == 0) return;
  __threadfence();
  const int64_t all = int64_t{a.scopes.count} * a.number;
  for (int64_t i = threadIdx.x; i < all; i += kThreads) {
    a.counts[i] = static_cast<float>(atomicAdd(&a.found[i], 0));
  }
}

template <int kEach>
__global__ void __launch_bounds__(kThreads) choose_experts(Forward a) {
  SharedMemory shared;
  int* const own = shared.take<int>(a.number);
  int* const is_last = shared.take<int>(1);
  for (int e = static_cast<int>(threadIdx.x); e < a.number; e += kThreads) own[e] = 0;
  __syncthreads();
  const int64_t first = int64_t{blockIdx.x} * kTokensOfBlock;
  const int64_t end = std::min(first + kTokensOfBlock, a.tokens);
  const int own_scope = a.scopes.of(first);
  for (int64_t t = first + threadIdx.x / kWarpSize; t < end; t += kWarps) {
    const float* const logits = a.logits + t * a.number;
    int* const chosen = a.experts + t * a.k;
    const bool found_nan = choose<kEach>(a, logits, chosen);
    const Weighing weight = weigh({a.mode, logits, a.number, chosen, a.k}, a.scale);
    const int scope = a.scopes.of(t);
    int* const counts = scope == own_scope ? own : a.found + int64_t{scope} * a.number;
    for (int s = lane_of_warp(); s < a.k; s += kWarpSize) {
      const int e = chosen[s];
      a.weights[t * a.k + s] = found_nan ? __int_as_float(0x7FC00000) : weight(logits[e]);
      atomicAdd(&counts[e], 1);
    }
  }
  give_counts(a, own, own_scope, is_last);
}

struct Backward {
  float* dlogits;
  const float* dweights;
  const float* logits;
  const int* experts;
  RouterMode mode;
  float scale;
  int64_t tokens;
  int number;
  int k;
};

/// The chosen experts' part of a row is put together in shared memory.
__global__ void __launch_bounds__(kThreads) weights_backward(Backward a) {
  SharedMemory shared;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  float* const row = shared.take<float>(kWarps * a.number) + warp * a.number;
  const int64_t t = int64_t{blockIdx.x} * kWarps + warp;
  if (t >= a.tokens) return;
  const Token token{a.mode, a.logits + t * a.number, a.number, a.experts + t * a.k, a.k};
  const Weighing weight = weigh(token, 1);
  const bool softmax = a.mode == RouterMode::kSoftmax;
  for (int e = lane_of_warp(); e < a.number; e += kWarpSize) row[e] = 0;
  float dot = 0;  // sum_S dw * w
  for (int s = lane_of_warp(); s < a.k; s += kWarpSize) {
    const int e = token.expert(s);
    if (e >= 0) dot += a.dweights[t * a.k + s] * weight(token.logits[e]);
  }
  dot = warp_sum(dot);
  __syncwarp();
  for (int s = lane_of_warp(); s < a.k; s += kWarpSize) {
    const int e = token.expert(s);
    if (e < 0) continue;
    const float dw = a.dweights[t * a.k + s];
    // dw / ds times ds / dl: 1 for a softmax, 1 - s for a sigmoid.
    const float slope =
        a.mode == RouterMode::kSigmoid ? a.scale * exact_sigmoid(-token.logits[e]) : 1;
    row[e] = weight(token.logits[e]) * (softmax ? dw : (dw - dot) * slope);
  }
  __syncwarp();
  for (int e = lane_of_warp(); e < a.number; e += kWarpSize) {
    a.dlogits[t * a.number + e] = row[e] - (softmax ? weight(token.logits[e]) * dot : 0);
  }
}

struct Loss {
  double* partials;  // [blocks, 2]
  float* dlogits;
  const float* logits;
  const float* counts;
  bool sigmoid;
  float balance;  // coefficient E / (k T^2)
  float z;        // coefficient / T
  int64_t tokens;
  int64_t tokens_of_block;
  int number;
  Scopes scopes;
};

/// (balance, z) of one token; their gradient is added to dlogits.
__device__ float2 add_token(const Loss& a, int64_t t) {
  const float* const l = a.logits + t * a.number;
  const float* const counts = a.counts + int64_t{a.scopes.of(t)} * a.number;
  float* const dlogits = a.dlogits + t * a.number;
  const Weighing softmax = weigh({RouterMode::kSoftmax, l, a.number, nullptr, 0}, 1);
  const float lse = softmax.largest - logf(softmax.factor);
  Weighing p = softmax;
  if (a.sigmoid) {
    p = {true, 0, 1};
    float sum = 0;
    for (int e = lane_of_warp(); e < a.number; e += kWarpSize) sum += p(l[e]);
    p.factor = 1 / warp_sum(sum);
  }
  float dot = 0;
  for (int e = lane_of_warp(); e < a.number; e += kWarpSize) dot += counts[e] * p(l[e]);
  dot = warp_sum(dot);
  const float dz = 2 * a.z * lse;
  for (int e = lane_of_warp(); e < a.number; e += kWarpSize) {
    const float slope = a.sigmoid ? exact_sigmoid(-l[e]) : 1;
    dlogits[e] += dz * softmax(l[e]) + a.balance * p(l[e]) * (counts[e] - dot) * slope;
  }
  return {a.balance * dot, a.z * lse * lse};
}

__global__ void __launch_bounds__(kThreads) add_losses(Loss a) {
  SharedMemory shared;
  double* const sums = shared.take<double>(2 * kWarps);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t first = int64_t{blockIdx.x} * a.tokens_of_block;
  const int64_t end = std::min(first + a.tokens_of_block, a.tokens);
  double balance = 0;
  double z = 0;
  for (int64_t t = first + warp; t < end; t += kWarps) {
    const float2 part = add_token(a, t);
    balance += static_cast<double>(part.x);
    z += static_cast<double>(part.y);
  }
  if (lane_of_warp() == 0) {
    sums[2 * warp] = balance;
    sums[2 * warp + 1] = z;
  }
  __syncthreads();
  if (threadIdx.x >= 2) return;
  double sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += sums[2 * w + threadIdx.x];
  a.partials[2 * blockIdx.x + threadIdx.x] = sum;
}

/// Sum over the block, a tree, in every lane.
__device__ double block_sum_of(double value, double* scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  scratch[thread] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) scratch[thread] += scratch[thread + half];
  }
  __syncthreads();
  return scratch[0];
}

__global__ void __launch_bounds__(kThreads)
    sum_losses(float* losses, const double* partials, int blocks) {
  SharedMemory shared;
  double* const scratch = shared.take<double>(kThreads);
  for (int which = 0; which < 2; ++which) {
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) {
      sum += partials[2 * i + which];
    }
    sum = block_sum_of(sum, scratch);
    if (threadIdx.x == 0) losses[which] += static_cast<float>(sum);
    __syncthreads();  // scratch is used again
  }
}

__global__ void __launch_bounds__(kThreads)
    move_bias(float* bias, const float* counts, float rate, int number) {
  SharedMemory shared;
  double* const scratch = shared.take<double>(kThreads);
  double sum = 0;
  for (int e = static_cast<int>(threadIdx.x); e < number; e += kThreads) {
    sum += static_cast<double>(counts[e]);
  }
  const double mean = block_sum_of(sum, scratch) / number;
  for (int e = static_cast<int>(threadIdx.x); e < number; e += kThreads) {
    const auto count = static_cast<double>(counts[e]);
    // Nothing for an exact mean, and nothing when a count is NaN.
    if (count < mean) bias[e] += rate;
    if (count > mean) bias[e] -= rate;
  }
}

void clear(Stream& stream, void* data, int64_t bytes) {
  CUDA_CHECK(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes),
                             static_cast<cudaStream_t>(stream.handle())));
}

}  // namespace

void route_forward(Stream& stream, const RouteForward& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t number = a.logits.shape()[1];
  const int64_t all = a.counts.elements();
  if (tokens == 0) return clear(stream, a.counts.data(), a.counts.bytes());
  int* const found = Workspace(stream, "route_forward").take<int>(all + 1);
  clear(stream, found, (all + 1) * int64_t{sizeof(int)});
  const Forward forward{.experts = a.experts.as<int32_t>().data(),
                        .weights = a.weights.as<float>().data(),
                        .counts = a.counts.as<float>().data(),
                        .found = found,
                        .done = found + all,
                        .logits = a.logits.as<float>().data(),
                        .bias = a.bias.empty() ? nullptr : a.bias.as<float>().data(),
                        .mode = a.mode,
                        .scale = a.scale,
                        .tokens = tokens,
                        .number = static_cast<int>(number),
                        .k = static_cast<int>(a.experts.shape()[1]),
                        .scopes = scopes_of(a.scope_starts, a.counts.shape()[0], tokens)};
  auto* const kernel = number <= 64    ? choose_experts<2>
                       : number <= 256 ? choose_experts<8>
                                       : choose_experts<kMaxExperts / kWarpSize>;
  launch(stream, kernel, dim3(blocks_for(tokens, kTokensOfBlock)), kThreads,
         shared_bytes_of<int>(number) + shared_bytes_of<int>(1), forward);
}

void route_backward(Stream& stream, const RouteBackward& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t number = a.logits.shape()[1];
  launch(stream, weights_backward, dim3(blocks_for(tokens, kWarps)), kThreads,
         shared_bytes_of<float>(kWarps * number),
         Backward{.dlogits = a.dlogits.as<float>().data(),
                  .dweights = a.dweights.as<float>().data(),
                  .logits = a.logits.as<float>().data(),
                  .experts = a.experts.as<int32_t>().data(),
                  .mode = a.mode,
                  .scale = a.scale,
                  .tokens = tokens,
                  .number = static_cast<int>(number),
                  .k = static_cast<int>(a.experts.shape()[1])});
}

void router_loss(Stream& stream, const RouterLoss& a) {
  const int64_t tokens = a.logits.shape()[0];
  const int64_t number = a.logits.shape()[1];
  if (tokens == 0) return;
  // A function of the shape alone, so that the sum is the same on every GPU.
  constexpr int64_t kMostBlocks = 1024;
  const int64_t each = std::max(int64_t{kTokensOfBlock}, (tokens + kMostBlocks - 1) / kMostBlocks);
  const unsigned blocks = blocks_for(tokens, each);
  const auto scope_tokens = static_cast<float>(a.scope_tokens);
  const Loss loss{
      .partials = Workspace(stream, "router_loss").take<double>(2 * int64_t{blocks}),
      .dlogits = a.dlogits.as<float>().data(),
      .logits = a.logits.as<float>().data(),
      .counts = a.counts.as<float>().data(),
      .sigmoid = a.mode == RouterMode::kSigmoid,
      .balance = a.balance_coefficient * static_cast<float>(number) /
                 (static_cast<float>(a.experts_per_token) * scope_tokens * scope_tokens),
      .z = a.z_coefficient / scope_tokens,
      .tokens = tokens,
      .tokens_of_block = each,
      .number = static_cast<int>(number),
      .scopes = scopes_of(a.scope_starts, a.counts.shape()[0], tokens)};
  launch(stream, add_losses, dim3(blocks), kThreads, shared_bytes_of<double>(2 * kWarps), loss);
  launch(stream, sum_losses, dim3(1), kThreads, shared_bytes_of<double>(kThreads),
         a.losses.as<float>().data(), loss.partials, static_cast<int>(blocks));
}

void balance_bias(Stream& stream, const BalanceBias& a) {
  launch(stream, move_bias, dim3(1), kThreads, shared_bytes_of<double>(kThreads),
         a.bias.as<float>().data(), a.counts.as<float>().data(), a.rate,
         static_cast<int>(a.bias.elements()));
}

}  // namespace tessera::gpu
