#include "runtime/generate/generator.h"

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

/// A prompt's beginning, in host memory.
struct Beginning {
  explicit Beginning(std::span<const int32_t> prompt)
      : tokens(prompt.begin(), prompt.end()),
        targets(prompt.size(), -1),
        starts{0, static_cast<int32_t>(prompt.size())} {}
  Batch batch() const { return {host_view(tokens), host_view(targets), host_view(starts), 1}; }

  std::vector<int32_t> tokens, targets, starts;
};

// Decoding uses the same at every position: one planned step counts it.
int64_t arena_bytes(const LoadedModel& loaded, const SparsityPlan& plan,
                    std::span<const int64_t> kept_of_layers, const CacheSize& size,
                    int64_t prefilled) {
  const Device device{DeviceKind::kPlan};
  Stream stream(device);
  ParameterStore store;
  const Transformer model(loaded.config->model(), loaded.dtype, Recompute::kNothing, store);
  store.allocate(device, /*gradients=*/false);
  Arena arena(device, 0);
  StepSumsBuffer sums(device, model);
  std::vector<AttentionCache> caches = model.make_caches(stream, plan, size);
  SingleRank alone(model);
  Transformer::Run run = alone.run(stream, arena, plan, sums.views());
  run.kept_of_layers = kept_of_layers;
  const std::vector<int32_t> positions(static_cast<size_t>(size.sequences), 0);
  std::vector<int32_t> ids(static_cast<size_t>(size.sequences * (1 + model.smear_tokens())), 0);
  const Shape logits{size.sequences, loaded.config->model().vocabulary()};
  model.decode(run, {host_view(ids).reshape({size.sequences, 1 + model.smear_tokens()}), positions},
               caches, TensorView(nullptr, DType::kF32, logits, device));
  if (prefilled > 0) {
    const Beginning longest(std::vector<int32_t>(static_cast<size_t>(prefilled), 0));
    model.prefill(run, longest.batch(), 0, caches);
  }
  return arena.high_water() + 4 * Buffer::kAlignment * loaded.config->model().layers();
}

}  // namespace

Generator::Generator(const LoadedModel& loaded, Stream& stream, const CacheSize& size, int64_t step)
    : loaded_(loaded),
      stream_(stream),
      size_(size),
      plan_(decoding_plan(plan_of(loaded, step), size.tokens)),
      kept_of_layers_(plan_of(loaded, step).kept_of_layers),
      caches_(loaded.model->make_caches(stream, plan_, size)),
      sums_(stream.device(), *loaded.model),
      alone_(*loaded.model),
      graph_(stream, alone_.log(),
             loaded.config->runtime().graphs() ? "" : "runtime.graphs is false"),
      memory_(stream.device(), size.sequences * loaded.config->model().vocabulary() * 4),
      logits_(memory_.view(DType::kF32, {size.sequences, loaded.config->model().vocabulary()})) {
  CHECK(loaded.config->model().moe().capacity_factor() == 0,
        "the generator's model has experts with a capacity, which would drop tokens of one text "
        "for another's; load it without");
}

int32_t Generator::Place::token(int64_t at) const {
  const std::vector<int32_t>& prompt = request->prompt;
  if (at < std::ssize(prompt)) return prompt[static_cast<size_t>(at)];
  return text.tokens[static_cast<size_t>(at) - prompt.size()];
}

bool Generator::Place::draw(std::span<const float> logits, int32_t end_of_document) {
  const int32_t token = sample(logits, request->sampler, text.tokens.size());
  text.ended = token == end_of_document;
  if (!text.ended) text.tokens.push_back(token);
  return text.ended || std::ssize(text.tokens) == request->tokens;
}

/// A free place computes too, for a token that nobody asks for, in a cache that nobody reads.
void Generator::decode(std::span<const Place> places) {
  const int64_t smear = loaded_.model->smear_tokens();
  std::vector<int32_t> positions, ids;
  for (const Place& place : places) {
    positions.push_back(static_cast<int32_t>(place.position));
    for (int64_t j = 0; j <= smear; ++j) {
      const bool known = place.request != nullptr && j <= place.position;
      ids.push_back(known ? place.token(place.position - j) : j == 0 ? 0 : -1);
    }
  }
  const Arena::Scope scratch(*arena_);
  const DecodePlan plan = plan_decoding(
      stream_, *arena_, {host_view(ids).reshape({size_.sequences, 1 + smear}), positions},
      loaded_.model->decode_options(caches_));
  Transformer::Run run = what_to_run();
  StepGraph::Key key = StepGraph::key_of(plan.tokens, plan_);
  key.kept_of_layers = kept_of_layers_;
  graph_.begin_step();
  graph_.run(key, [&] { loaded_.model->decode(run, plan, caches_, logits_); });
}

Transformer::Run Generator::what_to_run() {
  Transformer::Run run = alone_.run(stream_, *arena_, plan_, sums_.views());
  run.kept_of_layers = kept_of_layers_;
  return run;
}

int64_t Generator::prefilled(const GenerateRequest& request) const {
  const int64_t block = loaded_.model->block();
  return (std::ssize(request.prompt) - 1) / block * block;
}

/// A forward needs memory for each of its tokens.
void Generator::make_room(std::span<const GenerateRequest> requests) {
  int64_t longest = 0;
  for (const GenerateRequest& request : requests) longest = std::max(longest, prefilled(request));
  if (arena_ != nullptr && longest <= longest_prefill_) return;
  arena_.reset();
  arena_ = std::make_unique<Arena>(stream_.device(),
                                   arena_bytes(loaded_, plan_, kept_of_layers_, size_, longest));
  longest_prefill_ = longest;
}

void Generator::prefill(size_t number, Place& place) {
  place.position = prefilled(*place.request);
  if (place.position == 0) return;
  const std::span<const int32_t> prompt = place.request->prompt;
  const Beginning beginning(prompt.first(static_cast<size_t>(place.position)));
  Transformer::Run run = what_to_run();
  loaded_.model->prefill(run, beginning.batch(), static_cast<int64_t>(number), caches_);
}

void Generator::check(std::span<const GenerateRequest> requests) const {
  const int64_t vocabulary = loaded_.config->model().vocabulary();
  for (const GenerateRequest& request : requests) {
    const auto length = std::ssize(request.prompt);
    if (length < 1 || request.tokens < 1 || length + request.tokens > size_.tokens) {
      throw Error(ExitCode::kUsage,
                  concat("a prompt has ", length, " tokens and ", request.tokens,
                         " more were asked for, expected at least 1 of each and together at most ",
                         size_.tokens));
    }
    for (const int32_t token : request.prompt) {
      if (token >= 0 && token < vocabulary) continue;
      throw Error(ExitCode::kUsage, concat("token ", token, " of a prompt is not in the model's ",
                                           "vocabulary of ", vocabulary));
    }
  }
}

void Generator::run(std::span<const GenerateRequest> requests, int32_t end_of_document,
                    const std::function<void(size_t, const GeneratedText&)>& on_text) {
  check(requests);
  make_room(requests);
  std::vector<Place> places(static_cast<size_t>(size_.sequences));
  size_t next = 0;
  for (size_t ended = 0; ended < requests.size();) {
    for (size_t p = 0; p < places.size(); ++p) {
      if (places[p].request != nullptr || next == requests.size()) continue;
      places[p] = {.request = &requests[next], .number = next};
      prefill(p, places[p]);
      ++next;
    }
    decode(places);
    for (size_t p = 0; p < places.size(); ++p) {
      Place& place = places[p];
      if (place.request == nullptr || ++place.position < std::ssize(place.request->prompt))
        continue;
      const auto row = logits_.rows(static_cast<int64_t>(p), 1);
      if (!place.draw(to_vector<float>(stream_, row), end_of_document)) continue;
      on_text(place.number, place.text);
      place = {};
      ++ended;
    }
  }
}

}  // namespace tessera
