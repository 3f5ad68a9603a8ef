#include "model/embedding.h"

#include "kernels/embedding.h"
#include "kernels/token_smear.h"
#include "model/token_region.h"

namespace tessera {

namespace {

// Apart by channel, so that attention can tell a token from the one before it from the first step.
constexpr double kSmearInitStd = 0.5;

}  // namespace

Embedding::Embedding(ParameterStore& store, const Options& options, const RankPlace& place)
    : weight_(&store.declare({.name = "embedding.weight",
                              .shard = Shard::split({options.vocabulary, options.hidden}, 0,
                                                    place.tensor, place.tensor_ranks),
                              .placement = Placement::kTensor,
                              .dtype = options.dtype,
                              .init = options.init_std})),
      vocabulary_(options.vocabulary) {
  if (options.smear_tokens == 0) return;
  smear_ = &store.declare({.name = "embedding.smear.weight",
                           .shard = Shard::replicated({options.smear_tokens, options.hidden}),
                           .dtype = options.dtype,
                           .init = kSmearInitStd,
                           .decay = false});
}

/// Each tensor rank looks up the entries that it has. Of a token alone that is one vector and
/// zeros, whose sum is exact; a smear's parts are each rounded before they are added.
TensorView Embedding::forward(StepContext& step) const {
  const ConstTensorView ids = step.tokens.ids;
  const int64_t share = ids.shape()[0] / step.mesh.size(Axis::kTensor);
  const int64_t hidden = weight_->shard.whole[1];
  const TensorView x = step.arena.allocate(weight_->dtype, {share, hidden}, "embedding.x");
  const Arena::Scope scratch(step.arena);
  const TensorView partial = partial_of(step, x);
  embedding_forward(step.stream, {.y = partial,
                                  .table = weight_->value,
                                  .ids = ids,
                                  .first = weight_->shard.begin,
                                  .vocabulary = vocabulary_});
  if (smear_ != nullptr) {
    token_smear_forward(step.stream, {.y = partial,
                                      .table = weight_->value,
                                      .weight = smear_->value,
                                      .before = step.tokens.before,
                                      .first = weight_->shard.begin,
                                      .vocabulary = vocabulary_});
  }
  sum_partials(step, partial, x);
  return x;
}

void Embedding::backward(StepContext& step, ConstTensorView dx) const {
  const Arena::Scope scratch(step.arena);
  const ConstTensorView dy = gather_tokens(step, dx);
  embedding_backward(step.stream, {.dtable = weight_->grad,
                                   .dy = dy,
                                   .ids = step.tokens.ids,
                                   .first = weight_->shard.begin,
                                   .vocabulary = vocabulary_});
  if (smear_ == nullptr) return;
  token_smear_backward(step.stream, {.dtable = weight_->grad,
                                     .dweight = smear_->grad,
                                     .dy = dy,
                                     .table = weight_->value,
                                     .weight = smear_->value,
                                     .before = step.tokens.before,
                                     .first = weight_->shard.begin,
                                     .vocabulary = vocabulary_});
}

}  // namespace tessera
