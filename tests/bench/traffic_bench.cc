#include <cstdio>
#include <cstdlib>

#include "model/attention_layer.h"
#include "parallel/self_communicator.h"

// Bytes that the ranks of a sequence axis send for one attention layer, forward and backward,
// beside the formula and beside ring attention. Planned: nothing is computed, every exchange is
// counted.
//   traffic_bench [TOKENS] [RANKS]    default 32768 and 8

namespace tessera {
namespace {

constexpr int64_t kGroups = 8;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kBlock = 64;
constexpr int64_t kGateDim = 64;
constexpr int64_t kWindow = 1024;
constexpr int64_t kSinks = 4;
constexpr int64_t kKept = 36;
constexpr int64_t kValue = 2;  // bytes of a bf16

AttentionLayer::Options options() {
  return {.heads = {.hidden = 4096,
                    .heads = 4 * kGroups,
                    .kv_heads = kGroups,
                    .head_dim = kHeadDim,
                    .rope_base = 10000,
                    .output_gate = false,
                    .sink_logit = false,
                    .dtype = DType::kBF16,
                    .init_std = 0.02,
                    .out_init_std = 0.02},
          .global_groups = 1,
          .sink_tokens = kSinks,
          .norm_epsilon = 1e-5f,
          .qk_norm = false,
          .gate = {.groups = 1,
                   .group_heads = 4,
                   .head_dim = kHeadDim,
                   .gate_dim = kGateDim,
                   .gate_keys = 1,
                   .sink_blocks = 1,
                   .window_blocks = 2,
                   .trunk_gradient = true,
                   .dtype = DType::kBF16}};
}

struct Sent {
  double forward = 0;
  double backward = 0;
  double received = 0;  ///< in forward
};

/// What rank `rank` sends; the layer sees one sequence of `tokens` tokens.
Sent planned(int64_t tokens, int ranks, int rank, SequenceOrder order) {
  const Device device{DeviceKind::kPlan};
  SelfCommunicator world(rank, ranks);
  const ProcessMesh mesh(world, {1, 1, ranks, 1});
  Stream stream(device);
  ParameterStore store;
  const AttentionLayer layer(store, "layer", options(), place_in(mesh));
  store.allocate(device);
  Arena arena(device, 0);
  TokenPlanner planner(mesh, {.order = order, .block = kBlock, .sink_tokens = kSinks});
  const SparsityPlan sparsity{
      .gated = true, .kept = kKept, .window = kWindow, .strength = 0.999f, .kl = 1};
  const RouterPlan router;
  const auto view = [&](DType dtype, Shape shape) {
    return TensorView(nullptr, dtype, shape, device);
  };
  StepSums sums{.loss = view(DType::kF64, {1}),
                .hits = view(DType::kF64, {1}),
                .squares = view(DType::kF64, {1}),
                .gate_losses = view(DType::kF32, {3}),
                .gate_stats = view(DType::kF32, {6}),
                .router_losses = view(DType::kF32, {2}),
                .dropped_pairs = view(DType::kF32, {1}),
                .expert_counts = view(DType::kF32, {1, 1})};
  const Batch batch{.tokens = view(DType::kI32, {tokens}),
                    .targets = view(DType::kI32, {tokens}),
                    .starts = view(DType::kI32, {2}),
                    .sequences = 1};
  const TokenPlan& plan = planner.plan(stream, arena, batch, sparsity);
  StepContext step{.stream = stream,
                   .arena = arena,
                   .mesh = mesh,
                   .tokens = plan,
                   .sparsity = sparsity,
                   .router = router,
                   .sums = sums};
  const TensorView x = view(DType::kBF16, {tokens / ranks, 4096});
  const auto total = [&](int64_t Traffic::*bytes) {
    int64_t sum = 0;
    for (const std::string& name : world.log().communicators()) {
      sum += world.log().traffic(name).*bytes;
    }
    return static_cast<double>(sum);
  };
  const AttentionLayer::Saved saved = layer.forward(step, x, layer.allocate_decision(step), x);
  const double forward = total(&Traffic::sent);
  const double received = total(&Traffic::received);
  layer.backward(step, saved, x, x);
  return {forward, total(&Traffic::sent) - forward, received};
}

/// The mean over the ranks by docs/parallelism.md, contiguous: halos of P - 1 borders and sinks,
/// keys and values of the global group to all later ranks, keys to pool, gate keys.
double formula(int64_t tokens, int ranks) {
  const double p = ranks;
  const double share = static_cast<double>(tokens) / p;
  const double local = (kGroups - 1) * kHeadDim * kValue;
  // The first tokens are in the window of the second rank already.
  const double sinks = p > 2 ? (p - 2) * kSinks : 0;
  const double window = 2 * local * ((p - 1) * (kWindow - 1) + sinks);
  const double global = 2 * kHeadDim * kValue * share * p * (p - 1) / 2;
  const double pool = kHeadDim * kValue * (p - 1) * (kBlock - 1);
  return (window + global + pool) / p;
}

/// What the last rank receives in forward: one halo, the keys and values of the global group of all
/// others, the keys of one block to pool, and sinks when they are out of its window.
double last_receives(int64_t tokens, int ranks) {
  const double p = ranks;
  const double local = (kGroups - 1) * kHeadDim * kValue;
  const double sinks = ranks > 2 ? kSinks : 0;
  return 2 * local * (kWindow - 1 + sinks) +
         2 * kHeadDim * kValue * static_cast<double>(tokens) * (p - 1) / p +
         kHeadDim * kValue * (kBlock - 1);
}

double gate_keys(int64_t tokens, int ranks) {
  const double blocks = static_cast<double>(tokens / kBlock + 1);
  return 2 * (ranks - 1.0) / ranks * blocks * kGateDim * 4;
}

void print(int64_t tokens, int ranks, SequenceOrder order) {
  Sent most;
  Sent sum;
  for (int rank = 0; rank < ranks; ++rank) {
    const Sent sent = planned(tokens, ranks, rank, order);
    sum.forward += sent.forward;
    sum.backward += sent.backward;
    most.forward = std::max(most.forward, sent.forward);
    most.backward = std::max(most.backward, sent.backward);
    most.received = std::max(most.received, sent.received);
  }
  const double mib = 1 << 20;
  const double ring =
      2.0 * kGroups * kHeadDim * kValue * static_cast<double>(tokens) * (ranks - 1) / ranks;
  std::printf("%-10s  mean %.2f + %.2f MiB  most %.2f + %.2f MiB  ring %.2f + %.2f MiB  %.1fx\n",
              order == SequenceOrder::kZigzag ? "zigzag" : "contiguous", sum.forward / ranks / mib,
              sum.backward / ranks / mib, most.forward / mib, most.backward / mib, ring / mib,
              2 * ring / mib, 3 * ring * ranks / (sum.forward + sum.backward));
  if (order == SequenceOrder::kZigzag) return;
  std::printf("  formula   mean %.2f MiB forward: %.2f rows, %.2f gate keys\n",
              (formula(tokens, ranks) + gate_keys(tokens, ranks)) / mib,
              formula(tokens, ranks) / mib, gate_keys(tokens, ranks) / mib);
  std::printf("  the last rank receives %.2f MiB forward, by the formula %.2f\n",
              most.received / mib, (last_receives(tokens, ranks) + gate_keys(tokens, ranks)) / mib);
}

}  // namespace
}  // namespace tessera

int main(int count, char** arguments) {
  const int64_t tokens = count > 1 ? std::atoll(arguments[1]) : 32768;
  const int ranks = count > 2 ? std::atoi(arguments[2]) : 8;
  std::printf(
      "%ld tokens, %d sequence ranks, 8 KV groups of 128, 1 global, window 1024, bf16; "
      "sent by a rank, forward + backward\n",
      tokens, ranks);
  for (const auto order : {tessera::SequenceOrder::kContiguous, tessera::SequenceOrder::kZigzag}) {
    tessera::print(tokens, ranks, order);
  }
  return 0;
}
