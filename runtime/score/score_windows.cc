#include "runtime/score/score_windows.h"

#include <algorithm>

#include "checkpoint/candidates.h"
#include "checkpoint/reader.h"
#include "kernels/core/copy.h"
#include "model/single_rank.h"
#include "model/step_sums.h"
#include "runtime/config/train.pb.h"
#include "runtime/generate/loaded_model.h"
#include "runtime/train/global_batch.h"
#include "runtime/train/train_state.h"

namespace tessera {

namespace {

/// The arena that one window needs: counted, not guessed.
int64_t arena_bytes(const LoadedModel& loaded, const StepPlan& plan, int64_t sequence_length) {
  const Device device{DeviceKind::kPlan};
  Stream stream(device);
  ParameterStore store;
  const Transformer model(loaded.config->model(), loaded.dtype, Recompute::kNothing, store);
  store.allocate(device, /*gradients=*/false);
  Arena arena(device, 0);
  StepSumsBuffer sums(device, model);
  SingleRank alone(model);
  Transformer::Run run = alone.run(stream, arena, sparsity_plan(plan, 0), sums.views());
  run.kept_of_layers = plan.kept_of_layers;
  model.forward(run, planned_batch(*loaded.config, {1, sequence_length}, 1));
  return arena.high_water();
}

void expect_same_tokenizer(const WindowScoring& options) {
  if (read_description(options.data).task) return;  // it has none
  const CheckpointReader reader(find_checkpoint(options.checkpoint));
  if (!reader.contains_blob(kTokenizerBlob)) return;  // nothing to compare with
  if (reader.read_blob(kTokenizerBlob) == load_tokenizer_model(options.data)) return;
  throw Error(
      ExitCode::kBadData,
      concat(options.data.string(), " was prepared with another tokenizer than the data of ",
             options.checkpoint.string(), "; prepare it again with --tokenizer of that"));
}

}  // namespace

WindowScores score_by_loss(Stream& stream, const WindowScoring& options) {
  expect_same_tokenizer(options);
  const LoadedModel loaded = load_model(stream, options.checkpoint, {});
  const TrainConfig& config = *loaded.config;
  const TokenDataset dataset(options.data, kTrainSplit, config.model().vocabulary());
  const int64_t length =
      options.sequence_length > 0 ? options.sequence_length : config.batch().sequence_length();
  const DataLoader loader(dataset, {.sequence_length = length,
                                    .document_boundaries = config.data().document_boundaries(),
                                    .max_documents = config.data().max_documents(),
                                    .shuffle = false});
  const StepPlan plan = plan_of(loaded, 0, length);
  Arena arena(stream.device(), arena_bytes(loaded, plan, length));
  StepSumsBuffer sums(stream.device(), *loaded.model);
  SingleRank alone(*loaded.model);
  Transformer::Run run = alone.run(stream, arena, sparsity_plan(plan, 0), sums.views());
  run.kept_of_layers = plan.kept_of_layers;
  WindowScores result{
      .by = "loss", .sequence_length = length, .tokens = dataset.tokens(), .scores = {}};
  MicroBatch window;
  for (int64_t i = 0; i < loader.windows(); ++i) {
    loader.fill(i, 1, window);
    sums.clear(stream);
    loaded.model->forward(run, {.tokens = host_view(window.tokens),
                                .targets = host_view(window.targets),
                                .starts = host_view(window.starts),
                                .sequences = 1});
    const auto targets = std::count_if(window.targets.begin(), window.targets.end(),
                                       [](int32_t target) { return target >= 0; });
    const double loss = sums.read(stream).loss.as<double>()[0];
    result.scores.push_back(static_cast<float>(loss / std::max<double>(1, targets)));
    if (options.progress) options.progress(i + 1, loader.windows());
  }
  return result;
}

}  // namespace tessera
