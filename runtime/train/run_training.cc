#include "runtime/train/run_training.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>
#include <thread>

#include "kernels/core/log.h"
#include "parallel/agreement.h"
#include "parallel/gpu_world.h"
#include "runtime/config/config.h"
#include "runtime/config/differences.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"
#include "runtime/control/gate_control.h"
#include "runtime/data/dataset.h"
#include "runtime/hooks/library_hook.h"
#include "runtime/train/flops.h"
#include "runtime/train/log_hook.h"
#include "runtime/train/memory_plan.h"
#include "runtime/train/mesh_plan.h"
#include "runtime/train/model_options.h"
#include "runtime/train/training_data.h"

namespace tessera {

namespace {

/// Where a run takes place: tensors on GPUs may have a communicator of their own.
struct Place {
  Place(const TrainConfig& config, Communicator& host)
      : device(config.runtime().device() == RuntimeConfig::GPU ? choose_gpu(host) : Device{}),
        gpu_world(device.kind == DeviceKind::kGpu ? make_gpu_world(host, device) : nullptr),
        world(gpu_world != nullptr ? *gpu_world : host) {}

  Device device;
  std::unique_ptr<Communicator> gpu_world;
  Communicator& world;
};

// Early and in one sentence, rather than by an allocation somewhere in the middle.
MemoryPlan plan_that_fits(const TrainConfig& config, Device device, Communicator& world) {
  const MemoryPlan memory = plan_memory(config, world.rank());
  const int64_t free = free_bytes(device);
  const auto gib = [](int64_t bytes) {
    return concat(static_cast<double>(bytes * 100 >> 30) / 100, " GiB");
  };
  std::optional<Failure> failure;
  if (memory.total() > free) {
    failure = {.reason = concat("the run needs ", gib(memory.total()), " of the memory of GPU ",
                                device.index, ", which has ", gib(free),
                                " free; use more ranks (tessera plan finds a mesh), set "
                                "batch.micro_sequences lower, or runtime.recompute to BLOCK"),
               .code = ExitCode::kUsage};
  }
  failure = first_failure(world, failure);
  if (failure) throw Error(failure->code, to_text(*failure, world));
  return memory;
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

WatchLimits watch_limits(const WatchConfig& config) {
  return {.setup = config.setup(),
          .step = config.step(),
          .validation = config.validation(),
          .checkpoint = config.checkpoint(),
          .between = config.between(),
          .stopped = config.stopped(),
          .silence = config.silence(),
          .lease = config.lease(),
          .report = config.report()};
}

std::optional<DataSplit> validation_split(const TrainConfig& config) {
  if (config.runtime().validate_every() == 0) return std::nullopt;
  return std::optional<DataSplit>(std::in_place, config, config.data().path(), kValidationSplit);
}

/// Where the parts of a run that resumes are.
struct Resuming {
  const ProcessMesh& mesh;
  Stream& stream;
  const TrainConfig& config;
  TrainState& state;
};

/// Where the run's settings are others than the checkpoint's; nothing of configurations that this
/// version cannot read.
std::vector<std::string> changed_settings(const CheckpointReader& reader, const TrainConfig& now) {
  try {
    return config_differences(parse_train_config(reader.read_blob(kConfigBlob), kConfigBlob), now);
  } catch (const Error&) {
    return {};
  }
}

/// The same in words, behind why a checkpoint does not fit: those of the model.
std::string why_it_may_not_fit(const CheckpointReader& reader, const TrainConfig& now) {
  std::string words;
  for (const std::string& change : changed_settings(reader, now)) {
    if (change.starts_with("model.")) words += (words.empty() ? "" : ", ") + change;
  }
  if (words.empty()) return "";
  return concat("; the model is another than the checkpoint's (", words,
                "): set these back, or choose another run_dir");
}

// Every rank reads its part of the checkpoint that rank 0 has chosen, and has a reader for; the
// others rely on its checks of the files. Collective: returns on every rank what went wrong on any.
std::optional<Failure> load_chosen(const Resuming& run, const std::string& directory,
                                   const CheckpointReader* chosen) {
  const auto begin = std::chrono::steady_clock::now();
  Communicator& world = run.mesh.world();
  std::optional<CheckpointReader> own;
  std::optional<Failure> failure = first_failure(world, failure_of([&] {
                                                   if (chosen != nullptr) return;
                                                   own.emplace(directory, FileChecks::kNone);
                                                 }));
  if (failure) return failure;
  const CheckpointReader& reader = chosen != nullptr ? *chosen : *own;
  int64_t bytes = 0;
  failure =
      failure_of([&] { bytes = load_state(reader, run.mesh, run.stream, run.config, run.state); });
  failure = first_failure(world, failure);
  if (failure) {
    failure->reason += why_it_may_not_fit(reader, run.config);
  } else {
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    log_once(concat("resumed from ", directory, " after step ", run.state.progress.step, ": read ",
                    bytes >> 20, " MiB", world.size() > 1 ? " of it" : "", " in ",
                    std::lround(1000 * spent.count()), " ms"));
    if (chosen != nullptr) {
      for (const std::string& change : changed_settings(reader, run.config)) {
        log_once(concat("changed since the checkpoint: ", change));
      }
    }
  }
  return failure;
}

StoreOptions store_options(const TrainConfig& config, const StageObserver& on_stage) {
  StoreOptions options;
  options.retention = {.keep_last = config.checkpoint().keep_last(),
                       .keep_every = config.checkpoint().keep_every()};
  options.on_stage = on_stage;
  return options;
}

// Rank 0 chooses a checkpoint, and every rank loads its own part of it. What only another rank
// finds damaged makes rank 0 choose again.
void choose_and_load(const ResumeFrom& from, CheckpointStore& checkpoints, const Resuming& run) {
  Communicator& world = run.mesh.world();
  const auto load = [&](const CheckpointReader& reader) {
    const std::string directory = broadcast_text(world, reader.directory().string(), 0);
    const std::optional<Failure> failure = load_chosen(run, directory, &reader);
    if (failure) throw Error(failure->code, failure->reason);
  };
  if (from.kind == ResumeFrom::Kind::kDirectory) {
    checkpoints.restore_from(from.directory, load);
  } else if (from.kind == ResumeFrom::Kind::kAuto) {
    checkpoints.restore(load);
  } else if (!checkpoints.list().empty()) {
    throw Error(ExitCode::kUsage,
                concat("--resume none was asked for, but ", checkpoints.directory().string(),
                       " has checkpoints; choose another run_dir, or --resume auto"));
  }
  broadcast_text(world, "", 0);  // no more to load
}

/// `checkpoints` is rank 0's, nullptr elsewhere.
void resume(const ResumeFrom& from, CheckpointStore* checkpoints, const Resuming& run) {
  Communicator& world = run.mesh.world();
  if (checkpoints != nullptr) {
    choose_and_load(from, *checkpoints, run);
  } else {
    for (std::string directory = broadcast_text(world, "", 0); !directory.empty();
         directory = broadcast_text(world, "", 0)) {
      (void)load_chosen(run, directory, nullptr);
    }
  }
}

// Every rank loads its own; when one of them cannot, none starts.
std::vector<std::unique_ptr<Hook>> configured_hooks(const TrainConfig& config,
                                                    Communicator& world) {
  std::vector<std::unique_ptr<Hook>> hooks;
  std::optional<Failure> failure =
      failure_of([&] { hooks = make_hooks(config, world.rank(), world.size()); });
  failure = first_failure(world, failure);
  if (failure) throw Error(failure->code, to_text(*failure, world));
  return hooks;
}

TrainState first_state(const TrainConfig& config, ParameterStore& store,
                       AdamwOptimizer& optimizer) {
  return {.store = store,
          .optimizer = optimizer,
          .guard = {},
          .progress = {},
          .hooks = {},
          .tokenizer_model = load_tokenizer_model(config.data().path()),
          .quality = QualityGuard(QualityGuard::options_of(config.sparsity()))};
}

std::unique_ptr<Hook> log_hook(const TrainConfig& config, int ranks, const Transformer& model) {
  LogHook::Options options{.run_directory = config.run_dir(),
                           .log_every = config.runtime().log_every(),
                           .terminal = isatty(STDERR_FILENO) == 1,
                           .ranks = ranks,
                           .peak_tflops = config.runtime().peak_tflops(),
                           .flops_per_token = {},
                           .tensorboard = config.monitor().tensorboard(),
                           .experts_every = config.monitor().experts_every(),
                           .heat_map_every = config.monitor().heat_map_every()};
  options.flops_per_token = [&](const StepPlan& plan) {
    return flops_per_token(config, plan, model.active_parameters());
  };
  return std::make_unique<LogHook>(std::move(options));
}

/// The global batches that come next, if all steps are as in `plan`.
std::vector<GlobalBatch::FillRows> next_batches(const TrainConfig& config, const DataMixture& data,
                                                DataPosition position, const StepPlan& plan) {
  std::vector<GlobalBatch::FillRows> batches;
  for (int i = 0; i < config.gate_control().probe_batches(); ++i) {
    DataMixture::Taken taken = take_batch(data, position, config, plan);
    batches.push_back(rows_of(std::move(taken.windows), size_of(config, plan).sequence_length));
    position = std::move(taken.next);
  }
  return batches;
}

/// Where layers may keep other numbers of blocks than the plan. A search tries out what it thinks
/// of on the batches that come next. After the hooks of users: whatever these make of the kept
/// blocks, budgets are multiples of it.
void add_gate_control(const TrainConfig& config, const Communicator& world, GlobalBatch& batch,
                      const DataMixture& data, TrainState& state) {
  const GateControlConfig& control = config.gate_control();
  if (control.method() == GateControlConfig::NONE && control.budgets().empty()) return;
  const auto probe = [&](const StepPlan& plan) {
    return batch.losses(next_batches(config, data, state.progress.data, plan), plan);
  };
  GateChangeLog log = world.rank() == 0 ? GateChangeLog(config.run_dir()) : GateChangeLog();
  state.hooks.push_back(std::make_unique<GateControl>(config, std::move(log), probe));
}

void begin_watch(const TrainConfig& config, RankWatch* watch, Communicator& world) {
  if (watch == nullptr) return;
  // A watcher that is not told to leave takes the whole run for its start, and ends it.
  if (!config.watch().enabled()) return watch->end();
  watch->begin(config.run_dir(), watch_limits(config.watch()), world);
}

}  // namespace

std::string dry_run(const TrainConfig& config) {
  const MeshConfig& mesh = config.mesh();
  const MeshShape shape{mesh.data(), mesh.expert(), mesh.sequence(), mesh.tensor()};
  const RankPlan largest = plan_largest_rank(config);
  return concat("mesh: ", to_string(shape), " = ", shape.ranks(), " ranks\n",
                to_text(largest.memory), to_text(first_and_last(largest.steps)));
}

TrainingEnd run_training(const TrainConfig& config, const ResumeFrom& from,
                         Communicator& host_world, const StopSignal& stop,
                         const RunExtras& extras) {
  const MeshShape shape = mesh_shape(config.mesh(), host_world.size());
  const Place place(config, host_world);
  const Device device = place.device;
  Communicator& world = place.world;
  const ProcessMesh mesh(world, shape);
  std::vector<std::unique_ptr<Hook>> hooks = configured_hooks(config, world);
  RunTrace trace(mesh, config.run_dir(), extras.traced);
  const StageObserver stages = trace.watch(extras.on_stage);
  Stream stream(device, threads_of(config, world.size()));
  const std::filesystem::path run_directory = config.run_dir();
  const TrainingData data(config);
  const std::optional<DataSplit> validation = validation_split(config);
  const MemoryPlan memory = plan_that_fits(config, device, world);

  std::filesystem::create_directories(run_directory);
  begin_watch(config, extras.watch, world);
  std::optional<CheckpointStore> checkpoints;
  if (world.rank() == 0) {
    write_resolved_config(config);
    also_log_to(run_directory / "log.txt");
    checkpoints.emplace(run_directory, store_options(config, stages));
    log_line(concat("ranks ", world.size(), ", threads per rank ", stream.threads().threads(), ", ",
                    name_of(value_dtype(config)), "\n", to_text(memory)));
  }

  ParameterStore store;
  const Transformer model(config.model(), value_dtype(config), recompute_policy(config), store,
                          place_in(mesh));
  store.allocate(device, /*gradients=*/true, places_in(mesh));
  store.initialize(stream, config.seed());
  AdamwOptimizer optimizer(config.optimizer(), store, device);
  optimizer.take_values(stream);
  BucketExchange exchange(store.buckets(), mesh);
  Arena arena(device, memory.activations);
  GlobalBatch batch(config, model, mesh, exchange, stream, arena);
  TrainState state = first_state(config, store, optimizer);
  state.hooks = std::move(hooks);
  add_gate_control(config, world, batch, data.mixture(), state);
  if (world.rank() == 0) state.hooks.push_back(log_hook(config, world.size(), model));
  resume(from, checkpoints ? &*checkpoints : nullptr,
         {.mesh = mesh, .stream = stream, .config = config, .state = state});
  RunSaver saver({.config = config,
                  .mesh = mesh,
                  .stream = stream,
                  .exchange = exchange,
                  .state = state,
                  .checkpoints = checkpoints ? &*checkpoints : nullptr,
                  .on_stage = stages});
  Training training{.config = config,
                    .mesh = mesh,
                    .stream = stream,
                    .model = model,
                    .batch = batch,
                    .state = state,
                    .exchange = exchange,
                    .data = data.mixture(),
                    .validation = validation ? &validation->loader : nullptr,
                    .saver = saver,
                    .trace = trace,
                    .stop = stop};
  return train(training);
}

}  // namespace tessera
