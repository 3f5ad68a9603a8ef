#include "model/head.h"

#include <algorithm>
#include <utility>

#include "kernels/cross_entropy.h"
#include "kernels/matmul.h"

namespace tessera {

namespace {

// 256 MiB of f32 logits at most. Each chunk reads and writes the whole gradient of the weight, so
// chunks are as large as that allows.
constexpr int64_t kLogits = int64_t{64} << 20;

}  // namespace

Head::Head(Norm norm, Parameter& weight, int64_t vocabulary)
    : norm_(std::move(norm)), weight_(&weight), vocabulary_(vocabulary) {}

int64_t Head::chunk_tokens(int64_t tokens) const {
  const int64_t fit = std::max<int64_t>(64, kLogits / vocabulary_ / 64 * 64);
  return std::min(tokens, fit);
}

void Head::token_losses(StepContext& step, ConstTensorView logits, ConstTensorView targets,
                        TensorView stats, TensorView losses) const {
  softmax_stats(step.stream,
                {.stats = stats, .logits = logits, .targets = targets, .vocabulary = vocabulary_});
  const Shape& shape = stats.shape();
  merge_softmax_stats(step.stream, {.losses = losses,
                                    .merged = stats,
                                    .stats = stats.reshape({1, shape[0], shape[1]}),
                                    .targets = targets});
}

void Head::forward_backward(StepContext& step, ConstTensorView x, ConstTensorView targets,
                            float scale, TensorView losses, TensorView dx) const {
  const int64_t tokens = x.shape()[0];
  const int64_t chunk = chunk_tokens(tokens);
  Arena& arena = step.arena;
  const Arena::Scope scratch(arena);
  const Norm::Output normed = norm_.forward(step, x);
  const TensorView dnormed = arena.allocate(x.dtype(), x.shape(), "head.dnormed");
  const TensorView logits = arena.allocate(DType::kF32, {chunk, vocabulary_}, "head.logits");
  const TensorView stats = arena.allocate(DType::kF32, {chunk, kSoftmaxStats}, "head.stats");
  const TensorView dlogits = x.dtype() == DType::kF32
                                 ? logits
                                 : arena.allocate(x.dtype(), {chunk, vocabulary_}, "head.dlogits");
  for (int64_t first = 0; first < tokens; first += chunk) {
    const int64_t count = std::min(chunk, tokens - first);
    const ConstTensorView rows = normed.y.rows(first, count);
    matmul(step.stream,
           {.c = logits.rows(0, count), .a = rows, .b = weight_->value, .transpose_b = true});
    token_losses(step, logits.rows(0, count), targets.rows(first, count), stats.rows(0, count),
                 losses.rows(first, count));
    cross_entropy_gradient(step.stream, {.dlogits = dlogits.rows(0, count),
                                         .logits = logits.rows(0, count),
                                         .merged = stats.rows(0, count),
                                         .targets = targets.rows(first, count),
                                         .vocabulary = vocabulary_,
                                         .scale = scale});
    matmul(step.stream, {.c = weight_->grad,
                         .a = dlogits.rows(0, count),
                         .b = rows,
                         .transpose_a = true,
                         .accumulate = true});
    matmul(step.stream,
           {.c = dnormed.rows(first, count), .a = dlogits.rows(0, count), .b = weight_->value});
  }
  norm_.backward(step, normed.saved, dnormed, dx);
}

void Head::forward(StepContext& step, ConstTensorView x, ConstTensorView targets,
                   TensorView losses) const {
  const int64_t tokens = x.shape()[0];
  const int64_t chunk = chunk_tokens(tokens);
  const Arena::Scope scratch(step.arena);
  const Norm::Output normed = norm_.forward(step, x);
  const TensorView logits = step.arena.allocate(DType::kF32, {chunk, vocabulary_}, "head.logits");
  const TensorView stats = step.arena.allocate(DType::kF32, {chunk, kSoftmaxStats}, "head.stats");
  for (int64_t first = 0; first < tokens; first += chunk) {
    const int64_t count = std::min(chunk, tokens - first);
    matmul(step.stream, {.c = logits.rows(0, count),
                         .a = normed.y.rows(first, count),
                         .b = weight_->value,
                         .transpose_b = true});
    token_losses(step, logits.rows(0, count), targets.rows(first, count), stats.rows(0, count),
                 losses.rows(first, count));
  }
}

void Head::logits(StepContext& step, ConstTensorView x, TensorView logits) const {
  const Arena::Scope scratch(step.arena);
  const Norm::Output normed = norm_.forward(step, x);
  matmul(step.stream, {.c = logits, .a = normed.y, .b = weight_->value, .transpose_b = true});
}

}  // namespace tessera
