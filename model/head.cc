#include "model/head.h"

#include <algorithm>
#include <utility>

#include "kernels/cross_entropy.h"
#include "kernels/matmul.h"
#include "model/token_region.h"

namespace tessera {

namespace {

// 256 MiB of f32 logits at most. Each chunk reads and writes the whole gradient of the weight, so
// chunks are as large as that allows.
constexpr int64_t kLogits = int64_t{64} << 20;

}  // namespace

Head::Head(Norm norm, Parameter& weight, int64_t vocabulary)
    : norm_(std::move(norm)), weight_(&weight), vocabulary_(vocabulary) {}

// From the whole vocabulary, so that all tensor ranks cut alike.
int64_t Head::chunk_tokens(int64_t tokens) const {
  const int64_t fit = std::max<int64_t>(64, kLogits / vocabulary_ / 64 * 64);
  return std::min(tokens, fit);
}

/// Logits and losses of a chunk, and what the gradient needs: the softmax of the whole vocabulary
/// in chunk.merged.
void Head::losses_of(StepContext& step, const Chunk& chunk) const {
  Communicator& ranks = step.mesh.along(Axis::kTensor);
  const int64_t tokens = chunk.x.shape()[0];
  const Arena::Scope scratch(step.arena);
  matmul(step.stream, {.c = chunk.logits, .a = chunk.x, .b = weight_->value, .transpose_b = true});
  const TensorView stats =
      step.arena.allocate(DType::kF32, {tokens, kSoftmaxStats}, "head.softmax_stats");
  const TensorView all = step.arena.allocate(DType::kF32, {ranks.size() * tokens, kSoftmaxStats},
                                             "head.all_softmax_stats");
  softmax_stats(step.stream, {.stats = stats,
                              .logits = chunk.logits,
                              .targets = chunk.targets,
                              .vocabulary = vocabulary_,
                              .first = weight_->shard.begin});
  ranks.all_gather(step.stream, stats, all);
  merge_softmax_stats(step.stream, {.losses = chunk.losses,
                                    .merged = chunk.merged,
                                    .stats = all.reshape({ranks.size(), tokens, kSoftmaxStats}),
                                    .targets = chunk.targets,
                                    .hits = chunk.hits});
}

void Head::forward_backward(StepContext& step, ConstTensorView x, ConstTensorView targets,
                            const LossScale& scale, TensorView losses, TensorView dx) const {
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const Norm::Output normed = norm_.forward(step, x);
  const TensorView dnormed = arena.allocate(x.dtype(), x.shape(), "head.dnormed");
  const ConstTensorView all = gather_tokens(step, normed.y);
  const TensorView partial = partial_of(step, dnormed);
  const int64_t tokens = all.shape()[0];
  const int64_t chunk = chunk_tokens(tokens);
  const TensorView logits = arena.allocate(DType::kF32, {chunk, columns()}, "head.logits");
  const TensorView merged = arena.allocate(DType::kF32, {chunk, kSoftmaxStats}, "head.softmax");
  const TensorView dlogits = x.dtype() == DType::kF32
                                 ? logits
                                 : arena.allocate(x.dtype(), {chunk, columns()}, "head.dlogits");
  for (int64_t first = 0; first < tokens; first += chunk) {
    const int64_t count = std::min(chunk, tokens - first);
    const Chunk part{.x = all.rows(first, count),
                     .targets = targets.rows(first, count),
                     .losses = losses.rows(first, count),
                     .logits = logits.rows(0, count),
                     .merged = merged.rows(0, count)};
    losses_of(step, part);
    const TensorView d = dlogits.rows(0, count);
    cross_entropy_gradient(step.stream, {.dlogits = d,
                                         .logits = part.logits,
                                         .merged = part.merged,
                                         .targets = part.targets,
                                         .vocabulary = vocabulary_,
                                         .scale = scale.value,
                                         .first = weight_->shard.begin,
                                         .scale_from = scale.from});
    matmul(step.stream,
           {.c = weight_->grad, .a = d, .b = part.x, .transpose_a = true, .accumulate = true});
    matmul(step.stream, {.c = partial.rows(first, count), .a = d, .b = weight_->value});
  }
  sum_partials(step, partial, dnormed);
  norm_.backward(step, normed.saved, dnormed, dx);
}

void Head::forward(StepContext& step, ConstTensorView x, ConstTensorView targets, TensorView losses,
                   TensorView hits) const {
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const ConstTensorView all = gather_tokens(step, norm_.forward(step, x).y);
  const int64_t tokens = all.shape()[0];
  const int64_t chunk = chunk_tokens(tokens);
  const TensorView logits = arena.allocate(DType::kF32, {chunk, columns()}, "head.logits");
  const TensorView merged = arena.allocate(DType::kF32, {chunk, kSoftmaxStats}, "head.softmax");
  for (int64_t first = 0; first < tokens; first += chunk) {
    const int64_t count = std::min(chunk, tokens - first);
    losses_of(step, {.x = all.rows(first, count),
                     .targets = targets.rows(first, count),
                     .losses = losses.rows(first, count),
                     .logits = logits.rows(0, count),
                     .merged = merged.rows(0, count),
                     .hits = hits.rows(first, count)});
  }
}

void Head::logits(StepContext& step, ConstTensorView x, TensorView logits) const {
  CHECK(columns() == vocabulary_, "head: this rank has ", columns(), " of ", vocabulary_,
        " columns of the logits, expected all");
  const Arena::Scope scratch(step.arena);
  const Norm::Output normed = norm_.forward(step, x);
  matmul(step.stream, {.c = logits, .a = normed.y, .b = weight_->value, .transpose_b = true});
}

}  // namespace tessera
