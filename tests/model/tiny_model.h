#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/core/random.h"
#include "model/model.pb.h"
#include "model/single_rank.h"
#include "model/step_sums.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"
#include "tests/support/random_tensor.h"

namespace tessera::support {

/// A resolved configuration of a model of a few thousand parameters that has every kind of layer.
inline TrainConfig tiny_config(const std::vector<std::string>& overrides = {}) {
  const char* text = R"(
    model {
      vocabulary: 61 hidden: 32 layers: 2 heads: 4 kv_heads: 2 head_dim: 8 intermediate: 40
      attention {
        global_groups: 1 block: 16 gate_dim: 8 gate_keys: 2 window: 24 sink_tokens: 2
        sink_blocks: 1 window_blocks: 1 kept_blocks: 2 sink_logit: true
      }
      qk_norm: true output_gate: true init_std: 0.2 smear_tokens: 2
      moe { experts: 4 experts_per_token: 2 intermediate: 24 shared_experts: 1 dense_layers: 1
            router: SIGMOID balance_bias_rate: 0.01 balance_loss: 0.1 z_loss: 0.01 }
    }
    mesh { data: 1 }
    data { path: "unused" }
    batch { sequences: 2 micro_sequences: 2 sequence_length: 112 }
    optimizer { learning_rate: 0.01 }
    sparsity { dense_steps: 4 gate_warmup_steps: 2 transition_steps: 2 }
    runtime { precision: F32 threads: 1 }
    run_dir: "unused"
    steps: 8
  )";
  return parse_train_config(text, "tiny", overrides);
}

/// Kernels of a GPU may be interpreted, which takes a thousand times as long: tests then take less
/// of the same.
inline bool takes_less() {
  return device().kind == DeviceKind::kGpu;
}
/// All of the cases, or the first.
template <class T>
std::vector<T> fewer(std::vector<T> all) {
  if (takes_less()) all.erase(all.begin() + 1, all.end());
  return all;
}
/// A tiny configuration whose batch is smaller where takes_less().
inline TrainConfig tiny_batch_config(std::vector<std::string> overrides = {}) {
  if (takes_less()) {
    overrides.insert(overrides.end(), {"batch.sequences=1", "batch.sequence_length=80"});
  }
  return tiny_config(overrides);
}

/// A gated plan with everything on: some blocks dropped, some on the ramp.
inline SparsityPlan tiny_plan() {
  return {.gated = true,
          .kept = 2,
          .window = 24,
          .strength = 0.9f,
          .kl = 0.01f,
          .entropy = 0.002f,
          .z_loss = 0.001f};
}

/// Random tokens in a fixed pattern of documents, and the views of a Batch.
struct TinyBatch {
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;
  std::vector<int32_t> starts;
  int64_t sequences;

  TinyBatch(const TrainConfig& config, uint64_t seed) : sequences(config.batch().sequences()) {
    const int64_t length = config.batch().sequence_length();
    for (int64_t i = 0; i < sequences * length; ++i) {
      const auto words = philox(seed, 0, static_cast<uint64_t>(i));
      const auto vocabulary = static_cast<uint32_t>(config.model().vocabulary());
      tokens.push_back(static_cast<int32_t>(words[0] % vocabulary));
      targets.push_back(i % 11 == 7 ? -1 : static_cast<int32_t>(words[1] % vocabulary));
    }
    // The first sequence is two documents, the others one; a segment at the end is empty.
    starts = {0, 13};
    for (int64_t s = 1; s <= sequences; ++s) starts.push_back(static_cast<int32_t>(s * length));
    starts.push_back(starts.back());
  }

  Batch view() const {
    const auto of = [](const std::vector<int32_t>& v) {
      return ConstTensorView(v.data(), DType::kI32, {static_cast<int64_t>(v.size())}, Device{});
    };
    return {
        .tokens = of(tokens), .targets = of(targets), .starts = of(starts), .sequences = sequences};
  }
};

/// A model with its parameters, sums and arena on support::bare_device().
class TinyModel {
 public:
  explicit TinyModel(const TrainConfig& config, int threads = 1,
                     Recompute recompute = Recompute::kNothing, int64_t arena_bytes = 64 << 20)
      : stream(bare_device(), threads),
        model(config.model(),
              config.runtime().precision() == RuntimeConfig::F32 ? DType::kF32 : DType::kBF16,
              recompute, store),
        alone(model),
        arena(bare_device(), arena_bytes),
        buffer(bare_device(), model),
        sums(buffer.views()) {
    store.allocate(bare_device());
    store.initialize(stream, config.seed());
  }

  Transformer::Run run(const SparsityPlan& plan) {
    buffer.clear(stream);
    return alone.run(stream, arena, plan, sums);
  }
  /// Everything that the gradient is of: token losses / scale and auxiliary losses.
  double objective(const SparsityPlan& plan, const TinyBatch& batch, float scale) {
    Transformer::Run now = run(plan);
    model.forward(now, batch.view());
    return loss() * scale + auxiliary();
  }
  /// Of the tokens since the last run().
  double loss() const { return elements<double>(sums.loss)[0]; }
  double auxiliary() const {
    double sum = 0;
    for (const TensorView& losses : {sums.gate_losses, sums.router_losses}) {
      for (const float loss : elements<float>(losses)) sum += loss;
    }
    return sum;
  }

  Stream stream;
  ParameterStore store;
  Transformer model;
  SingleRank alone;
  Arena arena;
  StepSumsBuffer buffer;
  StepSums& sums;
};

}  // namespace tessera::support
