#include <atomic>
#include <cstdio>
#include <string>
#include <vector>

#include "model/transformer.h"
#include "parallel/mesh.pb.h"
#include "parallel/thread_communicator.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/model_options.h"
#include "runtime/train/train_state.h"
#include "tests/checkpoint/save_together.h"

// What the ranks of a mesh read of a checkpoint that another mesh has saved: what all of them need,
// what each would read for itself, and what they read together. Ranks are threads. reshard_bench
// CONFIG DIRECTORY

namespace tessera {
namespace {

/// The state of one rank.
struct RankState {
  RankState(const TrainConfig& config, const MeshShape& shape, Communicator& world)
      : mesh(world, shape),
        model(config.model(), value_dtype(config), recompute_policy(config), store, place_in(mesh)),
        optimizer(config.optimizer(), allocated(), Device{}),
        state{.store = store,
              .optimizer = optimizer,
              .guard = {},
              .progress = {.step = 1},
              .hooks = {},
              .tokenizer_model = "none"} {}

  ParameterStore& allocated() {
    store.allocate(Device{}, /*gradients=*/true, places_in(mesh));
    return store;
  }

  ProcessMesh mesh;
  ParameterStore store;
  Transformer model;
  AdamwOptimizer optimizer;
  TrainState state;
};

void save(const TrainConfig& config, const MeshShape& shape, CheckpointStore& store) {
  run_ranks(shape.ranks(), [&](Communicator& world) {
    RankState one(config, shape, world);
    Stream stream(Device{}, 1);
    one.store.initialize(stream, config.seed());
    one.optimizer.take_values(stream);
    const StateContents mine = describe_state(one.mesh, one.state, config);
    const SaveReport report =
        support::save_together(world, world.rank() == 0 ? &store : nullptr, mine.contents);
    CHECK(report.committed, report.failure);
  });
}

std::string short_name(const MeshShape& shape) {
  return concat("data ", shape.data, " exp ", shape.expert, " seq ", shape.sequence, " ten ",
                shape.tensor);
}

int64_t needed_bytes(RankState& one) {
  const NamedParameters named = named_parameters(one.store);
  std::vector<TensorGroup> groups = saved_groups(one.optimizer, named.buffers);
  groups.front().tensors = named.trained;
  int64_t bytes = 0;
  for (const TensorGroup& group : groups) {
    for (const NamedTensor& tensor : group.tensors) bytes += tensor.data.bytes();
  }
  return bytes;
}

void load(const TrainConfig& config, const MeshShape& from, const MeshShape& to,
          const CheckpointReader& reader) {
  std::atomic<int64_t> together = 0;
  std::atomic<int64_t> alone = 0;
  std::atomic<int64_t> needed = 0;
  run_ranks(to.ranks(), [&](Communicator& world) {
    RankState one(config, to, world);
    Stream stream(Device{}, 1);
    const NamedParameters named = named_parameters(one.store);
    std::vector<TensorGroup> groups = saved_groups(one.optimizer, named.buffers);
    groups.front().tensors = named.trained;
    alone += reader.read(groups);
    together += load_state(reader, one.mesh, stream, config, one.state);
    needed += needed_bytes(one);
  });
  const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  std::printf("%-24s %-24s %10.1f %10.1f %10.1f %8.3f\n", short_name(from).c_str(),
              short_name(to).c_str(), mib(needed), mib(alone), mib(together),
              mib(together) / mib(needed));
  std::fflush(stdout);
}

void bench(const TrainConfig& config, const std::filesystem::path& directory) {
  std::printf("%-24s %-24s %10s %10s %10s %8s\n", "saved by", "loaded by", "needed MiB", "alone",
              "together", "ratio");
  const std::vector<MeshShape> shapes{{1, 1, 1, 1}, {1, 2, 2, 2}, {2, 1, 1, 2}, {1, 1, 1, 4}};
  for (const MeshShape& from : shapes) {
    const std::filesystem::path run = directory / to_string(from);
    CheckpointStore store(run);
    save(config, from, store);
    const CheckpointReader reader(find_checkpoint(run));
    for (const MeshShape& to : shapes) {
      if (!(to == from)) load(config, from, to, reader);
    }
    std::filesystem::remove_all(run);
  }
}

}  // namespace
}  // namespace tessera

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::vector<std::string> overrides{"mesh.data=1"};
  const tessera::TrainConfig config = tessera::load_train_config(argv[1], overrides);
  tessera::bench(config, argv[2]);
  return 0;
}
