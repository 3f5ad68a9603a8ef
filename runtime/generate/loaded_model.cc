#include "runtime/generate/loaded_model.h"

#include <algorithm>

#include "checkpoint/candidates.h"
#include "checkpoint/reader.h"
#include "kernels/core/copy.h"
#include "kernels/elementwise.h"
#include "kernels/int4_weights.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"
#include "runtime/control/gate_control.h"
#include "runtime/train/model_options.h"
#include "runtime/train/schedule.h"
#include "runtime/train/train_state.h"

namespace tessera {

namespace {

DType stored_dtype(const CheckpointReader& reader, TensorKind kind, const std::string& name) {
  for (const TensorFacts& facts : reader.tensors()) {
    if (facts.kind == kind && facts.name == name) return facts.dtype;
  }
  throw Error(ExitCode::kBadData,
              concat(reader.directory().string(), " has no ", name_of(kind), " '", name, "'"));
}

/// Values of a matrix to 4 bits, on the host's threads.
void quantize(Stream& stream, Stream& host, ConstTensorView values, const Parameter& parameter) {
  const Shape& codes = parameter.codes.shape();
  const Buffer memory(Device{}, parameter.codes.bytes() + parameter.scales.bytes());
  const TensorView codes_here = memory.view(DType::kU8, codes);
  const TensorView scales_here =
      memory.view(DType::kBF16, parameter.scales.shape(), parameter.codes.bytes());
  quantize_int4(host, {.codes = codes_here,
                       .scales = scales_here,
                       .w = values.reshape({codes[0], codes[1], 2 * codes[2]})});
  copy(stream, codes_here, parameter.codes);
  copy(stream, scales_here, parameter.scales);
  stream.synchronize();
}

void load_parameter(Stream& stream, Stream& host, const CheckpointReader& reader,
                    const Parameter& parameter) {
  const bool exactly = parameter.dtype == DType::kF32 || !parameter.codes.empty();
  TensorKind kind = parameter.trained ? TensorKind::kParameter : TensorKind::kBuffer;
  if (exactly && reader.contains(TensorKind::kMaster, parameter.name)) kind = TensorKind::kMaster;
  const DType stored = stored_dtype(reader, kind, parameter.name);
  const Shape shape = parameter.shard.local();
  const Buffer read(Device{}, shape.elements() * size_of(stored));
  TensorView values = read.view(stored, shape);
  reader.read(kind, named_parts(parameter.name, parameter.shard, values));
  if (!parameter.codes.empty()) return quantize(stream, host, values, parameter);
  const Buffer converted(Device{}, stored == parameter.dtype ? 0 : parameter.value.bytes());
  if (stored != parameter.dtype) {
    const TensorView in_model = converted.view(parameter.dtype, shape);
    cast(host, {.y = in_model, .x = values});
    values = in_model;
  }
  copy(stream, values, parameter.value);
  stream.synchronize();
}

}  // namespace

TrainConfig stored_config(const CheckpointReader& reader) {
  const std::string name = (reader.directory() / kConfigBlob).string();
  return parse_train_config(reader.read_blob(kConfigBlob), name);
}

DType chosen_dtype(const std::string& precision, const TrainConfig& config,
                   const char* expected) {
  if (precision == "checkpoint") return value_dtype(config);
  if (precision == "f32") return DType::kF32;
  if (precision == "bf16") return DType::kBF16;
  throw Error(ExitCode::kUsage,
              concat("--precision is '", precision, "', expected ", expected));
}

// Here, where TrainConfig is complete.
LoadedModel::LoadedModel() = default;
LoadedModel::~LoadedModel() = default;
LoadedModel::LoadedModel(LoadedModel&&) noexcept = default;
LoadedModel& LoadedModel::operator=(LoadedModel&&) noexcept = default;

LoadedModel load_model(Stream& stream, const std::filesystem::path& path,
                       const LoadOptions& options) {
  const CheckpointReader reader(find_checkpoint(path));
  LoadedModel loaded;
  loaded.config = std::make_unique<TrainConfig>(stored_config(reader));
  ModelConfig& config = *loaded.config->mutable_model();
  if (!options.capacities && config.has_moe()) config.mutable_moe()->set_capacity_factor(0);
  loaded.step = reader.facts().id.step;
  if (const auto progress = saved_progress(reader)) loaded.held_steps = progress->held_steps;
  if (reader.contains_blob(kGateControlBlob)) {
    loaded.gate_control = reader.read_blob(kGateControlBlob);
  }
  const bool int4 = options.precision == "int4";
  loaded.dtype = int4 ? DType::kBF16
                      : chosen_dtype(options.precision, *loaded.config,
                                     "checkpoint, f32, bf16 or int4");
  if (int4 && options.gradients) {
    throw Error(ExitCode::kUsage,
                "--precision is int4: weights in 4 bits have no gradients, expected f32 or bf16");
  }
  loaded.store = std::make_unique<ParameterStore>();
  loaded.model = std::make_unique<Transformer>(loaded.config->model(), loaded.dtype,
                                               Recompute::kNothing, *loaded.store);
  if (int4) {
    loaded.store->allocate_int4(stream.device());
  } else {
    loaded.store->allocate(stream.device(), options.gradients);
  }
  Stream host(Device{}, stream.threads().threads());
  for (const Parameter& parameter : loaded.store->all()) {
    load_parameter(stream, host, reader, parameter);
  }
  return loaded;
}

StepPlan plan_of(const LoadedModel& loaded, int64_t step, int64_t sequence_length) {
  TrainConfig config = *loaded.config;
  if (sequence_length > 0) {
    config.mutable_batch()->set_sequence_length(sequence_length);
    config.mutable_curriculum()->clear_sequence_length();
  }
  StepPlan plan = step > 0
                      ? plan_step(config, step)
                      : plan_step(config, std::max<int64_t>(1, loaded.step), loaded.held_steps);
  apply_saved_budgets(config, loaded.gate_control, plan);
  return plan;
}

}  // namespace tessera
