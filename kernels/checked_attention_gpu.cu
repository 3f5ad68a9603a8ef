#include <algorithm>
#include <vector>

#include "kernels/attention_tile.cuh"
#include "kernels/checked_attention.h"
#include "kernels/core/buffer.h"
#include "kernels/core/cuda_check.h"
#include "kernels/core/launch.cuh"
#include "kernels/core/log.h"
#include "kernels/core/workspace.h"

// What a plan needs besides its operands: numbers of the segments, 1 KB, and for several segments
// lse in our order, 8 bytes per token and head.

namespace tessera::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kComparers = 1024 * kThreads / kWarpSize;  // at most so many warps compare

/// Of the segments of a plan; those beyond `pieces` are empty.
struct SegmentNumbers {
  int32_t* lengths;    // [segments]
  int32_t* q_offsets;  // [segments + 1] and so on
  int32_t* k_offsets;
  int32_t* lse_offsets;
};

__global__ void segment_numbers(SegmentNumbers out, const int32_t* starts, int pieces,
                                AttentionPlanShape shape) {
  const int i = static_cast<int>(threadIdx.x);
  const int begin = starts[std::min(i, pieces)];
  if (i < shape.segments) out.lengths[i] = starts[std::min(i + 1, pieces)] - begin;
  if (i > shape.segments) return;
  out.q_offsets[i] = begin * static_cast<int>(shape.row_heads * shape.d);
  out.k_offsets[i] = begin * static_cast<int>(shape.row_kv_heads * shape.d);
  out.lse_offsets[i] = begin * static_cast<int>(shape.heads);
}

/// to[h, t] = from[t, h]; blockIdx.y is h.
__global__ void __launch_bounds__(kThreads)
    lse_by_head(float* to, const float* from, int64_t tokens, int heads) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t < tokens) to[blockIdx.y * tokens + t] = from[t * heads + blockIdx.y];
}

struct Results {
  BF16* o;     // [tokens, row_heads, d], of the first head
  float* lse;  // [heads, tokens]
};

/// The larger error, and NaN above all.
constexpr float worse(float a, float b) {
  return b > a || b != b ? b : a;
}

/// Errors of `x` against `y`: worst[warp] of o, worst[kComparers + warp] of lse. A warp per row.
__global__ void __launch_bounds__(kThreads)
    compare_results(float* worst, Results x, Results y, AttentionPlanShape shape) {
  const int warp = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / kWarpSize);
  const int warps = static_cast<int>(gridDim.x * blockDim.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float o_error = 0;
  float lse_error = 0;
  for (int64_t row = warp; row < shape.tokens * shape.heads; row += warps) {
    const int64_t token = row / shape.heads;
    const int64_t head = row % shape.heads;
    const int64_t at = (token * shape.row_heads + head) * shape.d;
    float difference = 0;
    float norm = 0;
    for (int i = lane; i < shape.d; i += kWarpSize) {
      const float value = to_float(y.o[at + i]);
      const float delta = to_float(x.o[at + i]) - value;
      difference += delta * delta;
      norm += value * value;
    }
    for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
      difference += __shfl_xor_sync(kWholeWarp, difference, bits);
      norm += __shfl_xor_sync(kWholeWarp, norm, bits);
    }
    if (difference != 0) o_error = worse(o_error, sqrtf(difference / norm));
    const float lse = y.lse[head * shape.tokens + token];
    const float delta = fabsf(x.lse[head * shape.tokens + token] - lse);
    lse_error = worse(lse_error, delta / fmaxf(1, fabsf(lse)));
  }
  if (lane != 0) return;
  worst[warp] = o_error;
  worst[kComparers + warp] = lse_error;
}

struct Errors {
  float o = 0;
  float lse = 0;
};

/// Waits for the device.
Errors compare(Stream& stream, float* worst, const Results& x, const Results& y,
               const AttentionPlanShape& shape) {
  const int64_t rows = shape.tokens * shape.heads;
  const unsigned blocks = std::min(1024u, blocks_for(rows, kThreads / kWarpSize));
  const size_t warps = size_t{blocks} * kThreads / kWarpSize;
  launch(stream, compare_results, dim3(blocks), kThreads, 0, worst, x, y, shape);
  std::vector<float> host(kComparers + warps);
  CUDA_CHECK(cudaMemcpyAsync(host.data(), worst, host.size() * sizeof(float),
                             cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream.handle())));
  stream.synchronize();
  Errors found;
  for (size_t i = 0; i < warps; ++i) {
    found.o = worse(found.o, host[i]);
    found.lse = worse(found.lse, host[kComparers + i]);
  }
  return found;
}

/// Where results of a call go: in its own tensors, or elsewhere.
struct Places {
  TensorView o;    // [tokens, heads of q, d]
  TensorView lse;  // [heads of q, tokens]
};

Results results_of(const Places& places, const PlannedAttention& how) {
  return {places.o.as<BF16>().data() + how.first_head * how.shape.d,
          places.lse.as<float>().data() + how.first_head * how.shape.tokens};
}

/// Scratch memory of run_plan besides the plan's own.
int64_t scratch_bytes(const AttentionPlanShape& shape) {
  if (shape.segments == 1) return 0;
  return 4 * aligned((shape.segments + 1) * int64_t{sizeof(int32_t)}) +
         aligned(shape.tokens * shape.heads * int64_t{sizeof(float)});
}

void run_plan(Stream& stream, AttentionPlan& plan, const AttentionForward& a,
              const PlannedAttention& how, const Places& to) {
  const AttentionPlanShape& shape = how.shape;
  const Results results = results_of(to, how);
  const int64_t first_key = how.first_kv_head * shape.d;
  Workspace workspace(stream, "attention_forward");
  AttentionPlanTensors tensors{.o = results.o,
                               .lse = results.lse,
                               .q = a.q.as<BF16>().data() + how.first_head * shape.d,
                               .k = a.k.as<BF16>().data() + first_key,
                               .v = a.v.as<BF16>().data() + first_key,
                               .lengths = nullptr,
                               .q_offsets = nullptr,
                               .k_offsets = nullptr,
                               .lse_offsets = nullptr,
                               .scale = a.scale,
                               .workspace = workspace.take<char>(plan.workspace_bytes())};
  if (shape.segments == 1) return plan.run(stream, tensors);
  const auto take = [&] { return workspace.take<int32_t>(shape.segments + 1); };
  const SegmentNumbers numbers{take(), take(), take(), take()};
  launch(stream, segment_numbers, dim3(1), static_cast<int>(2 * kMostPlannedSegments), 0, numbers,
         a.grid.starts.as<int32_t>().data(), static_cast<int>(a.grid.pieces()), shape);
  tensors.lengths = numbers.lengths;
  tensors.q_offsets = numbers.q_offsets;
  tensors.k_offsets = numbers.k_offsets;
  tensors.lse_offsets = numbers.lse_offsets;
  tensors.lse = workspace.take<float>(shape.tokens * shape.heads);
  plan.run(stream, tensors);
  launch(stream, lse_by_head,
         dim3(blocks_for(shape.tokens, kThreads), static_cast<unsigned>(shape.heads)), kThreads, 0,
         results.lse, tensors.lse, shape.tokens, static_cast<int>(shape.heads));
}

/// Runs the plan twice, the second time into the call's own tensors, and our kernel.
CheckedAttention::Verdict compare_with_own(Stream& stream, AttentionPlan& plan,
                                           const AttentionForward& a, const PlannedAttention& how) {
  const int64_t lse_at = aligned(a.o.bytes());
  const int64_t worst_at = lse_at + aligned(a.lse.bytes());
  const Buffer buffer(stream.device(), worst_at + 2 * kComparers * int64_t{sizeof(float)});
  CUDA_CHECK(cudaDeviceSynchronize());  // the buffer was cleared on another stream
  const Places elsewhere{buffer.view(DType::kBF16, a.o.shape()),
                         buffer.view(DType::kF32, a.lse.shape(), lse_at)};
  const Places own{a.o, a.lse};
  float* const worst = buffer.view(DType::kF32, {2 * kComparers}, worst_at).as<float>().data();
  run_plan(stream, plan, a, how, elsewhere);
  run_plan(stream, plan, a, how, own);
  const auto against_elsewhere = [&] {
    return compare(stream, worst, results_of(own, how), results_of(elsewhere, how), how.shape);
  };
  const Errors repeat = against_elsewhere();
  AttentionForward again = a;
  again.o = elsewhere.o;
  again.lse = elsewhere.lse;
  own_attention_forward(stream, again);
  const Errors errors = against_elsewhere();
  return {errors.o, errors.lse, worse(repeat.o, repeat.lse)};
}

}  // namespace

CheckedAttention::Entry CheckedAttention::first_use(Stream& stream, const AttentionForward& a,
                                                    const PlannedAttention& how) {
  Entry entry;
  try {
    CUDA_CHECK(cudaSetDevice(stream.device().index));
    entry.plan = make_(how.shape, Stream::kWorkspaceBytes - scratch_bytes(how.shape) - 256);
    if (entry.plan == nullptr) return {};
    entry.verdict = std::make_unique<Verdict>(compare_with_own(stream, *entry.plan, a, how));
  } catch (const Error& e) {
    log_line(concat("attention_forward: our own kernel for ", how.shape, ": ", e.what()));
    return {};
  }
  const Verdict& verdict = *entry.verdict;
  log_line(concat("attention_forward: ",
                  verdict.believed() ? "a library's plan" : "our own kernel, not a library's plan,",
                  " for ", how.shape, ": against our kernel o differs by ", verdict.o_error,
                  " of at most ", kMostOutputError, ", lse by ", verdict.lse_error, " of at most ",
                  kMostLseError, ", and a second run by ", verdict.repeat_error));
  if (!verdict.believed()) entry.plan = nullptr;
  return entry;
}

bool CheckedAttention::forward(Stream& stream, const AttentionForward& a) {
  const std::optional<PlannedAttention> how = planned_attention(a);
  if (!how) return false;
  const Key key{stream.device().index, how->shape};
  const auto found = entries_.find(key);
  if (found == entries_.end()) {
    if (entries_.size() >= kMostShapes) return false;
    return entries_.emplace(key, first_use(stream, a, *how)).first->second.plan != nullptr;
  }
  Entry& entry = found->second;
  if (entry.plan == nullptr) return false;
  try {
    run_plan(stream, *entry.plan, a, *how, {a.o, a.lse});
    return true;
  } catch (const Error& e) {
    log_line(
        concat("attention_forward: from now on our own kernel for ", how->shape, ": ", e.what()));
    entry.plan = nullptr;
    return false;
  }
}

const CheckedAttention::Verdict* CheckedAttention::verdict(const Stream& stream,
                                                           const AttentionForward& a) const {
  const std::optional<PlannedAttention> how = planned_attention(a);
  if (!how) return nullptr;
  const auto found = entries_.find({stream.device().index, how->shape});
  return found == entries_.end() ? nullptr : found->second.verdict.get();
}

}  // namespace tessera::gpu
