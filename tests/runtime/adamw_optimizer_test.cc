#include "runtime/train/adamw_optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "checkpoint/box.h"
#include "runtime/config/train.pb.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

using support::Tensor;

OptimizerConfig optimizer_config() {
  OptimizerConfig config;
  config.set_beta1(0.9);
  config.set_beta2(0.95);
  config.set_epsilon(1e-8);
  config.set_weight_decay(0.3);
  return config;
}

/// What one rank of `ranks` replicas holds, all with the same values and (summed) gradients.
struct Replica {
  Replica(int rank, int ranks) : stream(Device{}, 1) {
    store.declare({.name = "a", .shard = Shard::replicated({7, 9, 5}), .dtype = DType::kBF16});
    store.declare({.name = "b", .shard = Shard::replicated({40}), .decay = false});
    store.declare({.name = "bias", .shard = Shard::replicated({6}), .trained = false});
    store.declare({.name = "c", .shard = Shard::split({6, 50}, 0, 1, 2), .dtype = DType::kBF16});
    store.declare({.name = "d", .shard = Shard::replicated({3, 4, 5, 6})});
    GroupPlaces places;
    places.by_placement.fill({rank, ranks});
    store.allocate(Device{}, /*gradients=*/true, places);
    store.initialize(stream, 5);
    uint64_t seed = 0;
    for (const Parameter& parameter : store.all()) {
      if (!parameter.trained) continue;
      const Tensor gradient = support::random_tensor(DType::kF32, parameter.grad.shape(), ++seed);
      std::ranges::copy(gradient.as<float>(), parameter.grad.as<float>().begin());
    }
    optimizer.emplace(optimizer_config(), store, Device{});
    optimizer->take_values(stream);
  }
  void update() {
    for (int64_t number = 1; number <= 3; ++number) {
      for (size_t bucket = 0; bucket < store.buckets().size(); ++bucket) {
        optimizer->update(stream, bucket,
                          {.number = number, .learning_rate = 0.01, .gradient_scale = 0.5});
      }
    }
  }

  Stream stream;
  ParameterStore store;
  std::optional<AdamwOptimizer> optimizer;
};

using State = std::map<std::string, std::vector<double>>;

void add(const char* kind, const std::vector<NamedTensor>& tensors, State& state,
         std::map<std::string, std::vector<Box>>& boxes) {
  for (const NamedTensor& tensor : tensors) {
    const std::string key = concat(kind, " ", tensor.name);
    std::vector<double>& whole = state[key];
    whole.resize(static_cast<size_t>(tensor.whole.elements()));
    boxes[key].push_back(tensor.box);
    const std::vector<double> part = support::to_doubles(tensor.data);
    for_each_stretch(tensor.box, tensor.box, whole_box(tensor.whole), [&](const Stretch& s) {
      std::copy_n(part.begin() + s.in_first, s.length, whole.begin() + s.in_second);
    });
  }
}

/// What all ranks together own after three updates, each element once.
State state_of(int ranks) {
  State state;
  std::map<std::string, std::vector<Box>> boxes;
  for (int rank = 0; rank < ranks; ++rank) {
    Replica replica(rank, ranks);
    replica.update();
    add("value", replica.optimizer->owned().values, state, boxes);
    add("master", replica.optimizer->owned().masters, state, boxes);
    add("m", replica.optimizer->owned().m, state, boxes);
    add("v", replica.optimizer->owned().v, state, boxes);
  }
  EXPECT_EQ(boxes.size(), 4u * 3 + 2) << "masters of a and c only";
  const Replica one(0, 1);
  for (const auto& [key, parts] : boxes) {
    const std::string name = key.substr(key.find(' ') + 1);
    const auto& all = one.store.all();
    const auto of_name = std::ranges::find(all, name, &Parameter::name);
    EXPECT_TRUE(covers_exactly(parts, box_of(of_name->shard))) << key << " on " << ranks;
  }
  return state;
}

TEST(AdamwOptimizer, RanksTogetherOwnAllOnceAndUpdateLikeOne) {
  const State one = state_of(1);
  for (const int ranks : {2, 3, 5}) {
    const State many = state_of(ranks);
    ASSERT_EQ(many.size(), one.size());
    for (const auto& [key, values] : one) {
      support::expect_close(many.at(key), values, 1e-13, concat(key, " on ", ranks, " ranks"));
    }
  }
}

TEST(AdamwOptimizer, StateIsSharedOutAndTheRestStays) {
  const int64_t whole = Replica(0, 1).optimizer->bytes();
  Replica replica(1, 4);
  EXPECT_LT(replica.optimizer->bytes(), whole / 3);
  const Replica before(1, 4);
  replica.update();
  for (size_t i = 0; i < replica.store.buckets().size(); ++i) {
    const Bucket& bucket = replica.store.buckets()[i];
    const std::vector<double> now = support::to_doubles(bucket.values);
    const std::vector<double> then = support::to_doubles(before.store.buckets()[i].values);
    for (int64_t k = 0; k < std::ssize(now); ++k) {
      const bool owned = k >= bucket.owned_begin && k < bucket.owned_end();
      const auto at = static_cast<size_t>(k);
      EXPECT_TRUE(owned || now[at] == then[at]) << "bucket " << i << ", element " << k;
    }
    EXPECT_NE(now, then);
  }
}

TEST(AdamwOptimizer, OnlyMatricesDecay) {
  Replica replica(0, 1);
  for (const Parameter& parameter : replica.store.all()) {
    if (parameter.trained) std::ranges::fill(parameter.grad.as<float>(), 0.0f);
  }
  const Replica before(0, 1);
  replica.update();
  const auto change = [&](const std::string& name) {
    return support::error(support::to_doubles(replica.store.find(name).value),
                          support::to_doubles(const_cast<Replica&>(before).store.find(name).value));
  };
  EXPECT_EQ(change("b"), 0);
  EXPECT_GT(change("d"), 0);
}

}  // namespace
}  // namespace tessera
