#include "runtime/generate/generator.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/global_batch.h"

namespace tessera {

namespace {

// A text longer than the sequences of the run keeps the run's window and number of blocks.
SparsityPlan decoding_plan(const StepPlan& plan, int64_t max_tokens) {
  SparsityPlan decoding = sparsity_plan(plan, 0);
  const bool dense = plan.stage == Stage::kDense || plan.stage == Stage::kGateWarmup;
  if (dense) {
    decoding.gated = false;
    decoding.window = max_tokens;
  }
  return decoding;
}

// Decoding uses little, and the same at every position: one planned step counts it.
int64_t arena_bytes(const LoadedModel& loaded, const SparsityPlan& plan,
                    std::span<const int64_t> kept_of_layers, int64_t max_tokens) {
  const Device device{DeviceKind::kPlan};
  Stream stream(device);
  ParameterStore store;
  const Transformer model(loaded.config->model(), loaded.dtype, Recompute::kNothing, store);
  store.allocate(device, /*gradients=*/false);
  Arena arena(device, 0);
  StepSumsBuffer sums(device, model);
  std::vector<AttentionCache> caches = model.make_caches(stream, plan, max_tokens);
  SingleRank alone(model);
  Transformer::Run run = alone.run(stream, arena, plan, sums.views());
  run.kept_of_layers = kept_of_layers;
  const Shape logits{1, loaded.config->model().vocabulary()};
  // Late enough that every kind of span is there.
  const int64_t last = max_tokens - 1;
  const Shape recent{1 + std::min(last, model.smear_tokens())};
  model.decode(run, {nullptr, DType::kI32, recent, device}, last, caches,
               TensorView(nullptr, DType::kF32, logits, device));
  return arena.high_water() + 4 * Buffer::kAlignment * loaded.config->model().layers();
}

}  // namespace

Generator::Generator(const LoadedModel& loaded, Stream& stream, int64_t max_tokens, int64_t step)
    : loaded_(loaded),
      stream_(stream),
      max_tokens_(max_tokens),
      plan_(decoding_plan(plan_of(loaded, step), max_tokens)),
      kept_of_layers_(plan_of(loaded, step).kept_of_layers),
      caches_(loaded.model->make_caches(stream, plan_, max_tokens)),
      sums_(stream.device(), *loaded.model),
      alone_(*loaded.model),
      arena_(stream.device(), arena_bytes(loaded, plan_, kept_of_layers_, max_tokens)),
      logits_(stream.device(), loaded.config->model().vocabulary() * 4) {}

ConstTensorView Generator::next(int32_t token) {
  Transformer::Run run = alone_.run(stream_, arena_, plan_, sums_.views());
  run.kept_of_layers = kept_of_layers_;
  const TensorView logits = logits_.view(DType::kF32, {1, loaded_.config->model().vocabulary()});
  recent_.push_back(token);
  if (std::ssize(recent_) > 1 + loaded_.model->smear_tokens()) recent_.erase(recent_.begin());
  loaded_.model->decode(run, host_view(recent_), position_, caches_, logits);
  ++position_;
  return logits;
}

void Generator::run(const std::vector<int32_t>& prompt, int64_t count, int32_t end_of_document,
                    const SamplerOptions& options, const std::function<void(int32_t)>& on_token) {
  const auto length = static_cast<int64_t>(prompt.size());
  if (length < 1 || count < 0 || length + count > max_tokens_) {
    throw Error(ExitCode::kUsage, concat("the prompt has ", length, " tokens and ", count,
                                         " more were asked for, expected at least 1 and together ",
                                         "at most ", max_tokens_));
  }
  ConstTensorView logits;
  for (const int32_t token : prompt) {
    if (token < 0 || token >= loaded_.config->model().vocabulary()) {
      throw Error(ExitCode::kUsage, concat("token ", token, " of the prompt is not in the model's ",
                                           "vocabulary of ", loaded_.config->model().vocabulary()));
    }
    logits = next(token);
  }
  for (int64_t i = 0; i < count; ++i) {
    const std::vector<float> scores = to_vector<float>(stream_, logits);
    const int32_t token = sample(scores, options, static_cast<uint64_t>(i));
    if (token == end_of_document) return;
    on_token(token);
    if (i + 1 < count) logits = next(token);
  }
}

}  // namespace tessera
