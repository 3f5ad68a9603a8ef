#include "runtime/score/score.h"

#include <algorithm>
#include <deque>
#include <map>
#include <numeric>
#include <vector>

#include "checkpoint/safetensors.h"
#include "kernels/block_selection.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/reduce.h"
#include "model/single_rank.h"
#include "model/step_sums.h"
#include "model/whole_parameters.h"
#include "runtime/config/train.pb.h"
#include "runtime/generate/loaded_model.h"
#include "runtime/train/global_batch.h"
#include "runtime/train/schedule.h"

namespace tessera {

namespace {

struct Input {
  Shape shape;  // [batch, time]
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;
  std::vector<int32_t> starts;
};

ConstTensorView view(const std::vector<int32_t>& values) {
  return {values.data(), DType::kI32, {static_cast<int64_t>(values.size())}, Device{}};
}

std::vector<int32_t> read_i32(const SafetensorsFile& file, const std::string& name,
                              const std::string& path) {
  const SafetensorsEntry& entry = file.find(name);
  if (entry.dtype != DType::kI32) {
    throw Error(ExitCode::kBadData,
                concat(path, ": ", name, " is ", name_of(entry.dtype), ", expected i32"));
  }
  std::vector<int32_t> values(static_cast<size_t>(entry.shape.elements()));
  file.read(name, TensorView(values.data(), DType::kI32, entry.shape, Device{}));
  return values;
}

void check_range(const std::vector<int32_t>& values, int64_t low, int64_t high,
                 const std::string& what) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] >= low && values[i] < high) continue;
    throw Error(ExitCode::kBadData,
                concat(what, "[", i, "] is ", values[i], ", expected ", low, " to ", high - 1));
  }
}

Input read_input(const std::filesystem::path& path, int64_t vocabulary) {
  const SafetensorsFile file(path);
  const std::string name = path.string();
  Input input;
  input.tokens = read_i32(file, "tokens", name);
  input.shape = file.find("tokens").shape;
  if (input.shape.rank() != 2 || input.shape.elements() == 0) {
    throw Error(ExitCode::kBadData, concat(name, ": tokens is ", input.shape,
                                           ", expected [batch, time], both at least 1"));
  }
  check_range(input.tokens, 0, vocabulary, name + ": tokens");
  const int64_t count = input.shape.elements();
  const int64_t time = input.shape[1];
  if (file.contains("targets")) {
    input.targets = read_i32(file, "targets", name);
    if (file.find("targets").shape != input.shape) {
      throw Error(ExitCode::kBadData, concat(name, ": targets is ", file.find("targets").shape,
                                             ", expected the shape of tokens, ", input.shape));
    }
    check_range(input.targets, INT32_MIN, vocabulary, name + ": targets");
  } else {
    input.targets = input.tokens;
    std::rotate(input.targets.begin(), input.targets.begin() + 1, input.targets.end());
    for (int64_t i = time - 1; i < count; i += time) input.targets[static_cast<size_t>(i)] = -1;
  }
  if (file.contains("starts")) {
    input.starts = read_i32(file, "starts", name);
    const bool ascending = std::is_sorted(input.starts.begin(), input.starts.end());
    if (input.starts.size() < 2 || !ascending || input.starts.front() != 0 ||
        input.starts.back() != count) {
      throw Error(ExitCode::kBadData,
                  concat(name, ": starts must ascend from 0 to ", count, ", batch times time"));
    }
  } else {
    for (int64_t i = 0; i <= count; i += time) input.starts.push_back(static_cast<int32_t>(i));
  }
  return input;
}

SparsityPlan plan_of(const LoadedModel& loaded, const Input& input, int64_t step) {
  TrainConfig config = *loaded.config;
  config.mutable_batch()->set_sequence_length(input.shape[1]);
  const StepPlan plan = plan_step(config, step > 0 ? step : std::max<int64_t>(1, loaded.step));
  const AttentionConfig& attention = config.model().attention();
  const BlockRule rule{.sink_blocks = attention.sink_blocks(),
                       .window_blocks = attention.window_blocks(),
                       .kept = std::max<int64_t>(1, plan.kept_blocks)};
  const int64_t rows = count_gate_rows(input.starts, attention.block(), rule);
  return sparsity_plan(plan, static_cast<double>(rows));
}

/// The arena that one pass over `input` needs: counted, not guessed.
int64_t arena_bytes(const LoadedModel& loaded, const Input& input, const SparsityPlan& plan,
                    bool gradients) {
  const Device device{DeviceKind::kPlan};
  Stream stream(device);
  ParameterStore store;
  const Transformer model(loaded.config->model(), loaded.dtype, Recompute::kNothing, store);
  store.allocate(device, gradients);
  Arena arena(device, 0);
  StepSumsBuffer sums(device, model);
  SingleRank alone(model);
  Transformer::Run run = alone.run(stream, arena, plan, sums.views());
  const Shape tokens{input.shape.elements()};
  const Batch batch{.tokens = {nullptr, DType::kI32, tokens, device},
                    .targets = {nullptr, DType::kI32, tokens, device},
                    .starts = {nullptr, DType::kI32, view(input.starts).shape(), device},
                    .sequences = input.shape[0]};
  const Shape logits{tokens[0], loaded.config->model().vocabulary()};
  model.logits(run, batch, TensorView(nullptr, DType::kF32, logits, device));
  if (gradients) (void)model.forward_backward(run, batch, 1);
  return arena.high_water();
}

// Everything that was computed, waiting to be written.
class Output {
 public:
  TensorView add(const std::string& name, Shape shape) {
    buffers_.emplace_back(Device{}, shape.elements() * 4);
    const TensorView data = buffers_.back().view(DType::kF32, shape);
    tensors_.push_back({.name = name, .data = data});
    return data;
  }
  void add_copy(Stream& stream, const std::string& name, ConstTensorView x) {
    cast(stream, {.y = add(name, x.shape()), .x = x});
  }
  void write(const std::filesystem::path& path, const std::map<std::string, std::string>& facts) {
    write_safetensors(path, tensors_, facts);
  }

 private:
  std::deque<Buffer> buffers_;
  std::vector<SafetensorsTensor> tensors_;
};

}  // namespace

ScoreResult score(Stream& stream, const ScoreOptions& options) {
  const LoadedModel loaded = load_model(
      stream, options.checkpoint, {.precision = options.precision, .gradients = options.gradients});
  const int64_t vocabulary = loaded.config->model().vocabulary();
  const Input input = read_input(options.input, vocabulary);
  const int64_t count = input.shape.elements();
  const SparsityPlan plan = plan_of(loaded, input, options.step);
  Arena arena(Device{}, arena_bytes(loaded, input, plan, options.gradients));
  StepSumsBuffer sums(Device{}, *loaded.model);
  SingleRank alone(*loaded.model);
  Transformer::Run run = alone.run(stream, arena, plan, sums.views());
  const Batch batch{.tokens = view(input.tokens),
                    .targets = view(input.targets),
                    .starts = view(input.starts),
                    .sequences = input.shape[0]};

  Output output;
  const TensorView logits = output.add("logits", {input.shape[0], input.shape[1], vocabulary});
  const TensorView losses = output.add("losses", input.shape);
  loaded.model->logits(run, batch, logits.reshape({count, vocabulary}));
  const Buffer memory(Device{}, count * kSoftmaxStats * size_of(DType::kF32));
  const TensorView stats = memory.view(DType::kF32, {count, kSoftmaxStats});
  softmax_stats(stream, {.stats = stats,
                         .logits = logits.reshape({count, vocabulary}),
                         .targets = batch.targets,
                         .vocabulary = vocabulary});
  merge_softmax_stats(stream, {.losses = losses.reshape({count}),
                               .merged = stats,
                               .stats = stats.reshape({1, count, kSoftmaxStats}),
                               .targets = batch.targets});
  ScoreResult result;
  result.targets = std::count_if(input.targets.begin(), input.targets.end(),
                                 [](int32_t target) { return target >= 0; });
  const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, result.targets));
  result.loss = sum(stream, losses) * share;
  output.add("loss", {1}).as<float>()[0] = static_cast<float>(result.loss);
  const auto auxiliary = output.add("auxiliary", {5}).as<float>();
  std::ranges::copy(sums.views().gate_losses.as<float>(), auxiliary.begin());
  std::ranges::copy(sums.views().router_losses.as<float>(), auxiliary.begin() + 3);
  result.auxiliary = std::accumulate(auxiliary.begin(), auxiliary.end(), 0.0);
  if (options.gradients) {
    (void)loaded.model->forward_backward(run, batch, static_cast<float>(share));
    const WholeParameters values(*loaded.store, WholeParameters::Of::kValues);
    const WholeParameters gradients(*loaded.store, WholeParameters::Of::kGradients);
    for (const auto& [name, data] : values.all()) {
      output.add_copy(stream, "parameter." + name, data);
    }
    for (const auto& [name, data] : gradients.all()) {
      output.add_copy(stream, "gradient." + name, data);
    }
  }
  output.write(options.output,
               {{"checkpoint", options.checkpoint.string()}, {"precision", name_of(loaded.dtype)}});
  return result;
}

}  // namespace tessera
