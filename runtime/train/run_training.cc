#include "runtime/train/run_training.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <optional>
#include <thread>

#include "kernels/core/log.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"
#include "runtime/data/dataset.h"
#include "runtime/train/flops.h"
#include "runtime/train/log_hook.h"
#include "runtime/train/memory_plan.h"
#include "runtime/train/model_options.h"

namespace tessera {

namespace {

Device compute_device(const TrainConfig& config) {
  if (config.runtime().device() == RuntimeConfig::GPU) {
    throw Error(ExitCode::kUsage,
                "runtime.device is GPU, but this version has no CUDA kernels yet; set "
                "runtime.device to CPU");
  }
  return {DeviceKind::kCpu};
}

// A rank that its launcher has bound to some cores uses these; otherwise the ranks of the job
// share the cores of the host.
int default_threads(int ranks) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const int all = static_cast<int>(std::thread::hardware_concurrency());
  const int mine = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : all;
  return mine < all ? std::max(1, mine) : std::max(1, all / ranks);
}

int threads_of(const TrainConfig& config, int ranks) {
  return config.runtime().threads() > 0 ? config.runtime().threads() : default_threads(ranks);
}

void check_mesh_is_trained(const TrainConfig& config) {
  const MeshConfig& mesh = config.mesh();
  if (mesh.expert() * mesh.sequence() * mesh.tensor() == 1) return;
  throw Error(ExitCode::kUsage,
              concat("mesh is data ", mesh.data(), " x expert ", mesh.expert(), " x sequence ",
                     mesh.sequence(), " x tensor ", mesh.tensor(),
                     ", but this version trains on the data axis only: set mesh.expert, "
                     "mesh.sequence and mesh.tensor to 1"));
}

void write_resolved_config(const TrainConfig& config) {
  const std::filesystem::path path =
      std::filesystem::path(config.run_dir()) / "config.resolved.textproto";
  const std::filesystem::path temporary = path.string() + ".tmp";
  std::ofstream out(temporary);
  out << to_text(config) << std::flush;
  if (!out) {
    throw Error(ExitCode::kUsage,
                concat("cannot write ", temporary.string(), "; check that run_dir is writable"));
  }
  out.close();
  std::filesystem::rename(temporary, path);
}

DataLoaderOptions loader_options(const TrainConfig& config, bool shuffle) {
  return {.sequence_length = config.batch().sequence_length(),
          .document_boundaries = config.data().document_boundaries(),
          .max_documents = config.data().max_documents(),
          .shuffle = shuffle,
          .seed = config.seed()};
}

/// `text` of rank 0, on every rank.
std::string broadcast_text(Communicator& world, Stream& stream, std::string text) {
  std::array<double, 1> size{world.rank() == 0 ? static_cast<double>(text.size()) : 0};
  world.all_reduce_values(size);
  text.resize(static_cast<size_t>(size[0]));
  if (!text.empty()) {
    const TensorView view(text.data(), DType::kU8, {static_cast<int64_t>(text.size())}, Device{});
    world.broadcast(stream, view, 0);
  }
  return text;
}

/// Rank 0 chooses a checkpoint and loads it; the others load the same one.
void resume(const ResumeFrom& from, CheckpointStore* checkpoints, Communicator& world,
            Stream& stream, TrainState& state) {
  std::string chosen;
  if (checkpoints != nullptr) {
    const auto load = [&](const CheckpointReader& reader) {
      load_state(reader, state);
      chosen = reader.directory().string();
    };
    if (from.kind == ResumeFrom::Kind::kDirectory) {
      checkpoints->restore_from(from.directory, load);
    } else if (from.kind == ResumeFrom::Kind::kAuto) {
      checkpoints->restore(load);
    } else if (!checkpoints->list().empty()) {
      throw Error(ExitCode::kUsage,
                  concat("--resume none was asked for, but ", checkpoints->directory().string(),
                         " has checkpoints; choose another run_dir, or --resume auto"));
    }
  }
  chosen = broadcast_text(world, stream, chosen);
  if (chosen.empty()) return;
  if (world.rank() > 0) load_state(CheckpointReader(chosen), state);
  log_once(concat("resumed from ", chosen, " after step ", state.progress.step));
}

}  // namespace

std::string dry_run(const TrainConfig& config) {
  const MeshConfig& mesh = config.mesh();
  const int model_axes = mesh.expert() * mesh.sequence() * mesh.tensor();
  const MemoryPlan plan = plan_memory(config, mesh.data() * mesh.expert());
  std::string text = concat("mesh: data ", mesh.data(), " x expert ", mesh.expert(), " x sequence ",
                            mesh.sequence(), " x tensor ", mesh.tensor(), " = ",
                            mesh.data() * model_axes, " ranks\n");
  if (model_axes == 1) return text + to_text(plan);
  return text + concat("parameters: ", plan.parameter_count, ", of which one token meets ",
                       plan.active_parameters,
                       "\nmemory of one rank: not known yet for meshes with expert, sequence or "
                       "tensor above 1\n");
}

TrainingEnd run_training(const TrainConfig& config, const ResumeFrom& from, Communicator& world,
                         const StopSignal& stop) {
  check_mesh_is_trained(config);
  const Device device = compute_device(config);
  Stream stream(device, threads_of(config, world.size()));
  const std::filesystem::path run_directory = config.run_dir();
  const TokenDataset train_tokens(config.data().path(), kTrainSplit, config.model().vocabulary());
  const DataLoader data(train_tokens, loader_options(config, /*shuffle=*/true));
  std::optional<TokenDataset> validation_tokens;
  std::optional<DataLoader> validation;
  if (config.runtime().validate_every() > 0) {
    validation_tokens.emplace(config.data().path(), kValidationSplit, config.model().vocabulary());
    validation.emplace(*validation_tokens, loader_options(config, /*shuffle=*/false));
  }
  const MemoryPlan memory = plan_memory(config, world.size());

  std::filesystem::create_directories(run_directory);
  std::optional<CheckpointStore> checkpoints;
  if (world.rank() == 0) {
    also_log_to(run_directory / "log.txt");
    StoreOptions options;
    options.retention = {.keep_last = config.checkpoint().keep_last(),
                         .keep_every = config.checkpoint().keep_every()};
    checkpoints.emplace(run_directory, std::move(options));
    log_line(concat("ranks ", world.size(), ", threads per rank ", stream.threads().threads(), ", ",
                    name_of(value_dtype(config)), "\n", to_text(memory)));
  }

  ParameterStore store;
  const Transformer model(config.model(), value_dtype(config), recompute_policy(config), store);
  store.allocate(device);
  store.initialize(stream, config.seed());
  AdamwOptimizer optimizer(config.optimizer(), store, device);
  optimizer.take_values(stream);
  Arena arena(device, memory.activations);
  GlobalBatch batch(config, model, world, stream, arena);
  TrainState state{.store = store,
                   .optimizer = optimizer,
                   .guard = {},
                   .progress = {},
                   .hooks = {},
                   .tokenizer_model = load_tokenizer(config.data().path()).model()};
  if (world.rank() == 0) {
    write_resolved_config(config);
    state.hooks.push_back(std::make_unique<LogHook>(
        LogHook::Options{.run_directory = run_directory,
                         .log_every = config.runtime().log_every(),
                         .terminal = isatty(STDERR_FILENO) == 1,
                         .ranks = world.size(),
                         .peak_tflops = config.runtime().peak_tflops(),
                         .flops_per_token = [&](const StepPlan& plan) {
                           return flops_per_token(config, plan, model.active_parameters());
                         }}));
  }
  resume(from, checkpoints ? &*checkpoints : nullptr, world, stream, state);
  Training training{.config = config,
                    .world = world,
                    .stream = stream,
                    .model = model,
                    .batch = batch,
                    .state = state,
                    .data = data,
                    .validation = validation ? &*validation : nullptr,
                    .checkpoints = checkpoints ? &*checkpoints : nullptr,
                    .stop = stop};
  return train(training);
}

}  // namespace tessera
