#include "runtime/choose/probe.h"

#include <algorithm>

#include "kernels/core/copy.h"
#include "runtime/config/train.pb.h"
#include "runtime/score/pass_memory.h"

namespace tessera {

namespace {

constexpr int64_t kValidationBatches = 8;

int64_t length_of(const TrainConfig& config, const ProbeOptions& options) {
  if (options.length > 0) return options.length;
  const DatasetDescription content = read_description(options.data);
  return content.task ? content.task->length : config.batch().sequence_length();
}

void expect_fits(const TokenDataset& data, const ProbeOptions& options, int64_t length,
                 bool learned) {
  const auto& task = data.description().task;
  if (task && length % task->length != 0) {
    throw Error(ExitCode::kUsage,
                concat("--sequence-length is ", length, ", but the samples of ", data.name(),
                       " have ", task->length, " tokens: set it to that or to a multiple"));
  }
  const int64_t sequences = (data.tokens() - 1) / length;
  const int64_t wanted = learned ? options.sequences : 1;
  if (sequences >= wanted) return;
  throw Error(ExitCode::kUsage, concat(data.name(), " has ", sequences, " sequences of ", length,
                                       " tokens, and ", wanted,
                                       " are asked for: prepare more data, or give a smaller "
                                       "--sequence-length or --batch"));
}

/// Of the training split, of which is learned, or of the validation split.
DataLoaderOptions loader_options(const TrainConfig& config, const TokenDataset& data,
                                 const ProbeOptions& options, int64_t length, bool learned) {
  expect_fits(data, options, length, learned);
  return {.sequence_length = length,
          .document_boundaries = config.data().document_boundaries(),
          .max_documents = config.data().max_documents(),
          .shuffle = learned,
          .seed = options.seed};
}

Shape groups_shape(const ModelConfig& model) {
  return {model.layers(), model.kv_heads()};
}

int64_t arena_bytes(const LoadedModel& loaded, const ProbeOptions& options, const DataLoader& data,
                    int64_t window) {
  const ModelConfig& model = loaded.config->model();
  const Device plan{DeviceKind::kPlan};
  const Shape groups = groups_shape(model);
  const GroupMix mix{.window = window,
                     .shares = TensorView(nullptr, DType::kF32, groups, plan),
                     .slopes = TensorView(nullptr, DType::kF64, groups, plan)};
  return pass_memory(model, {.dtype = loaded.dtype,
                             .sequences = options.sequences,
                             .length = data.sequence_length(),
                             .segments = options.sequences * data.segments_per_sequence(),
                             .sparsity = {.window = data.sequence_length()},
                             .gradients = true,
                             .mix = &mix});
}

Batch view_of(const MicroBatch& batch, int64_t sequences) {
  return {.tokens = host_view(batch.tokens),
          .targets = host_view(batch.targets),
          .starts = host_view(batch.starts),
          .sequences = sequences};
}

int64_t targets_of(const MicroBatch& batch) {
  return std::ranges::count_if(batch.targets, [](int32_t target) { return target >= 0; });
}

}  // namespace

Probe::Probe(Stream& stream, const LoadedModel& loaded, const ProbeOptions& options)
    : stream_(stream),
      loaded_(loaded),
      options_(options),
      length_(length_of(*loaded.config, options)),
      training_data_(options.data, kTrainSplit, loaded.config->model().vocabulary()),
      validation_data_(options.data, kValidationSplit, loaded.config->model().vocabulary()),
      training_(training_data_,
                loader_options(*loaded.config, training_data_, options, length_, true)),
      validation_(validation_data_,
                  loader_options(*loaded.config, validation_data_, options, length_, false)),
      shares_(stream.device(), groups_shape(loaded.config->model()).elements() * 4),
      slopes_(stream.device(), groups_shape(loaded.config->model()).elements() * 8),
      mix_{.window = loaded.config->model().attention().window(),
           .shares = shares_.view(DType::kF32, groups_shape(loaded.config->model())),
           .slopes = slopes_.view(DType::kF64, groups_shape(loaded.config->model()))},
      arena_(stream.device(), arena_bytes(loaded, options, training_, mix_.window)),
      sums_(stream.device(), *loaded.model),
      alone_(*loaded.model) {
  if (length_ > mix_.window) return;
  throw Error(ExitCode::kUsage,
              concat("the sequences of ", options.data.string(), " have ", length_,
                     " tokens, and local groups will see a window of ", mix_.window,
                     " (model.attention.window): all groups would see the same; give longer "
                     "samples, or a larger --sequence-length"));
}

Transformer::Run Probe::start(const GroupShares& shares) {
  std::vector<float> flat;
  for (const std::vector<double>& layer : shares)
    flat.insert(flat.end(), layer.begin(), layer.end());
  const Shape shape{std::ssize(flat)};
  copy(stream_, host_view(flat), shares_.view(DType::kF32, shape));
  copy(stream_, host_view(std::vector<double>(flat.size())), slopes_.view(DType::kF64, shape));
  stream_.synchronize();
  Transformer::Run run = alone_.run(stream_, arena_, {.window = length_}, sums_.views());
  run.mix = &mix_;
  return run;
}

double Probe::learn(int64_t number, const GroupShares& shares, GroupShares& slopes) {
  training_.fill(number * options_.sequences, options_.sequences, batch_);
  const auto targets = static_cast<double>(std::max<int64_t>(1, targets_of(batch_)));
  Transformer::Run run = start(shares);
  sums_.clear(stream_);
  // The gradients of the parameters pile up, and nobody reads them.
  loaded_.model->forward_backward(run, view_of(batch_, options_.sequences),
                                  static_cast<float>(1 / targets));
  const auto flat = to_vector<double>(stream_, mix_.slopes);
  slopes.resize(shares.size());
  auto from = flat.begin();
  for (std::vector<double>& layer : slopes) {
    const auto groups = loaded_.config->model().kv_heads();
    layer.assign(from, from + groups);
    from += groups;
  }
  return sums_.read(stream_).loss.as<double>()[0] / targets;
}

ProbeLoss Probe::validate(const GroupShares& shares) {
  Transformer::Run run = start(shares);
  sums_.clear(stream_);
  int64_t targets = 0;
  const int64_t rows = std::min(validation_.windows(), kValidationBatches * options_.sequences);
  for (int64_t first = 0; first < rows; first += options_.sequences) {
    const int64_t count = std::min(options_.sequences, rows - first);
    validation_.fill(first, count, batch_);
    targets += targets_of(batch_);
    loaded_.model->forward(run, view_of(batch_, count));
  }
  const StepSums& sums = sums_.read(stream_);
  const auto all = static_cast<double>(std::max<int64_t>(1, targets));
  return {.loss = sums.loss.as<double>()[0] / all, .accuracy = sums.hits.as<double>()[0] / all};
}

}  // namespace tessera
