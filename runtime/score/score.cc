#include "runtime/score/score.h"

#include <algorithm>
#include <deque>
#include <map>
#include <numeric>
#include <vector>

#include "checkpoint/safetensors.h"
#include "kernels/block_selection.h"
#include "kernels/core/copy.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/reduce.h"
#include "model/single_rank.h"
#include "model/step_sums.h"
#include "model/whole_parameters.h"
#include "runtime/config/train.pb.h"
#include "runtime/generate/loaded_model.h"
#include "runtime/score/pass_memory.h"
#include "runtime/train/global_batch.h"

namespace tessera {

namespace {

struct Input {
  Shape shape;  // [batch, time]
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;
  std::vector<int32_t> starts;
};

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

SparsityPlan sparsity_of(const LoadedModel& loaded, const Input& input, const StepPlan& plan) {
  const AttentionConfig& attention = loaded.config->model().attention();
  const BlockRule rule{.sink_blocks = attention.sink_blocks(),
                       .window_blocks = attention.window_blocks(),
                       .kept = std::max<int64_t>(1, plan.kept_blocks)};
  const int64_t rows = count_gate_rows(input.starts, attention.block(), rule);
  return sparsity_plan(plan, static_cast<double>(rows));
}

// Everything that was computed, in host memory, waiting to be written.
class Output {
 public:
  explicit Output(Stream& stream) : stream_(stream) {}

  /// A tensor of f32, to be filled.
  TensorView add(const std::string& name, Shape shape) {
    const TensorView data =
        buffers_.emplace_back(Device{}, shape.elements() * 4).view(DType::kF32, shape);
    tensors_.push_back({.name = name, .data = data});
    return data;
  }
  /// `x`, f32 or bf16, wherever it lies.
  void add_copy(const std::string& name, ConstTensorView x) {
    Buffer memory;
    cast(host_, {.y = add(name, x.shape()), .x = on_host(stream_, x, memory)});
  }
  void write(const std::filesystem::path& path, const std::map<std::string, std::string>& facts) {
    write_safetensors(path, tensors_, facts);
  }

 private:
  Stream& stream_;
  Stream host_{Device{}};
  std::deque<Buffer> buffers_;
  std::vector<SafetensorsTensor> tensors_;
};

/// Logits and losses of every token; returns the sum of the losses.
double add_losses(Stream& stream, const Transformer& model, Transformer::Run& run,
                  const Batch& batch, const Shape& logits_shape, Output& output) {
  const int64_t count = batch.tokens.elements();
  const int64_t vocabulary = logits_shape[2];
  const Device device = stream.device();
  const Buffer of_logits(device, count * vocabulary * 4);
  const Buffer of_losses(device, count * 4);
  const Buffer of_stats(device, count * kSoftmaxStats * 4);
  const Buffer of_targets(device, count * 4);
  const Buffer of_total(device, 8);
  const TensorView logits = of_logits.view(DType::kF32, {count, vocabulary});
  const TensorView losses = of_losses.view(DType::kF32, {count});
  const TensorView stats = of_stats.view(DType::kF32, {count, kSoftmaxStats});
  const TensorView targets = of_targets.view(DType::kI32, {count});
  const TensorView total = of_total.view(DType::kF64, {1});
  copy(stream, batch.targets, targets);
  model.logits(run, batch, logits);
  softmax_stats(stream,
                {.stats = stats, .logits = logits, .targets = targets, .vocabulary = vocabulary});
  merge_softmax_stats(stream, {.losses = losses,
                               .merged = stats,
                               .stats = stats.reshape({1, count, kSoftmaxStats}),
                               .targets = targets});
  add_sum(stream, {.total = total, .x = losses});
  output.add_copy("logits", logits.reshape(logits_shape));
  output.add_copy("losses", losses.reshape({logits_shape[0], logits_shape[1]}));
  return to_vector<double>(stream, total)[0];
}

}  // namespace

ScoreResult score(Stream& stream, const ScoreOptions& options) {
  const LoadedModel loaded = load_model(
      stream, options.checkpoint, {.precision = options.precision, .gradients = options.gradients});
  const int64_t vocabulary = loaded.config->model().vocabulary();
  const Input input = read_input(options.input, vocabulary);
  const StepPlan step_plan = plan_of(loaded, options.step, input.shape[1]);
  const SparsityPlan plan = sparsity_of(loaded, input, step_plan);
  Arena arena(stream.device(),
              pass_memory(loaded.config->model(), {.dtype = loaded.dtype,
                                                   .sequences = input.shape[0],
                                                   .length = input.shape[1],
                                                   .segments = std::ssize(input.starts) - 1,
                                                   .sparsity = plan,
                                                   .kept_of_layers = step_plan.kept_of_layers,
                                                   .gradients = options.gradients}));
  StepSumsBuffer sums(stream.device(), *loaded.model);
  SingleRank alone(*loaded.model);
  Transformer::Run run = alone.run(stream, arena, plan, sums.views());
  run.kept_of_layers = step_plan.kept_of_layers;
  const Batch batch{.tokens = host_view(input.tokens),
                    .targets = host_view(input.targets),
                    .starts = host_view(input.starts),
                    .sequences = input.shape[0]};

  Output output(stream);
  ScoreResult result;
  result.targets = std::count_if(input.targets.begin(), input.targets.end(),
                                 [](int32_t target) { return target >= 0; });
  const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, result.targets));
  result.loss = share * add_losses(stream, *loaded.model, run, batch,
                                   {input.shape[0], input.shape[1], vocabulary}, output);
  output.add("loss", {1}).as<float>()[0] = static_cast<float>(result.loss);
  const StepSums& read = sums.read(stream);
  const auto auxiliary = output.add("auxiliary", {5}).as<float>();
  std::ranges::copy(read.gate_losses.as<float>(), auxiliary.begin());
  std::ranges::copy(read.router_losses.as<float>(), auxiliary.begin() + 3);
  result.auxiliary = std::accumulate(auxiliary.begin(), auxiliary.end(), 0.0);
  if (options.gradients) {
    loaded.model->forward_backward(run, batch, static_cast<float>(share));
    const WholeParameters values(stream, *loaded.store, WholeParameters::Of::kValues);
    const WholeParameters gradients(stream, *loaded.store, WholeParameters::Of::kGradients);
    for (const auto& [name, data] : values.all()) {
      output.add_copy("parameter." + name, data);
    }
    for (const auto& [name, data] : gradients.all()) {
      output.add_copy("gradient." + name, data);
    }
  }
  output.write(options.output,
               {{"checkpoint", options.checkpoint.string()}, {"precision", name_of(loaded.dtype)}});
  return result;
}

}  // namespace tessera
