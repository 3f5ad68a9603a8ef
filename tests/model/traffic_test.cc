#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "tests/model/mesh_model.h"

// What an attention layer sends over the sequence axis, against a count from its definition.

namespace tessera {
namespace {

using support::MeshModel;
using support::tiny_config;
using support::tiny_plan;
using support::TinyBatch;

constexpr int kRanks = 4;

/// Which rank of the axis has a token, by the definition of the orders.
int owner(int64_t token, int64_t length, SequenceOrder order) {
  const int64_t at = token % length;
  if (order == SequenceOrder::kContiguous) return static_cast<int>(at * kRanks / length);
  const auto part = static_cast<int>(at * 2 * kRanks / length);
  return std::min(part, 2 * kRanks - 1 - part);
}

/// (key token, rank that needs and does not have it), counted one by one.
struct Pairs {
  int64_t window = 0;
  int64_t segment = 0;
  int64_t block = 0;
};

Pairs count_pairs(const TrainConfig& config, const TinyBatch& batch, const SparsityPlan& plan,
                  SequenceOrder order) {
  const int64_t length = config.batch().sequence_length();
  const int64_t sinks = config.model().attention().sink_tokens();
  const int64_t block = config.model().attention().block();
  Pairs pairs;
  for (size_t s = 0; s + 1 < batch.starts.size(); ++s) {
    const int64_t begin = batch.starts[s];
    const int64_t end = batch.starts[s + 1];
    for (int64_t key = begin; key < end; ++key) {
      for (int rank = 0; rank < kRanks; ++rank) {
        if (owner(key, length, order) == rank) continue;
        bool window = false;
        bool segment = false;
        bool of_block = false;
        for (int64_t query = key; query < end; ++query) {
          if (owner(query, length, order) != rank) continue;
          segment = true;
          window = window || query - key < plan.window || key - begin < sinks;
          of_block = of_block || query - key < block;
        }
        pairs.window += window ? 1 : 0;
        pairs.segment += segment ? 1 : 0;
        pairs.block += of_block ? 1 : 0;
      }
    }
  }
  return pairs;
}

/// Bytes that all ranks send in the row exchanges of one forward and backward.
int64_t measured(const TrainConfig& config, const TinyBatch& batch, const SparsityPlan& plan,
                 SequenceOrder order) {
  std::array<double, 1> sent{};
  run_ranks(kRanks, [&](Communicator& world) {
    MeshModel rank(config, world, {1, 1, kRanks, 1}, order);
    Transformer::Run run = rank.run(plan);
    rank.model.forward_backward(run, batch.view(), 1);
    std::array<double, 1> mine{0};
    for (const std::string& name : world.log().communicators()) {
      mine[0] += static_cast<double>(world.log().traffic(name, Collective::kExchangeRows).sent);
    }
    world.all_reduce_values(mine);
    if (world.rank() == 0) sent = mine;
  });
  return static_cast<int64_t>(sent[0]);
}

TEST(Traffic, IsThatOfTheDefinitionForwardAndBackward) {
  // One layer, 4 heads in 2 groups of dimension 8: one group is global, one local.
  const TrainConfig config =
      tiny_config({"model.layers=1", "batch.sequence_length=96", "batch.sequences=2"});
  const TinyBatch batch(config, 3);
  SparsityPlan narrow = tiny_plan();
  narrow.window = 5;
  SparsityPlan dense;
  dense.window = 96;
  for (const SequenceOrder order : {SequenceOrder::kContiguous, SequenceOrder::kZigzag}) {
    for (const SparsityPlan& plan : {narrow, tiny_plan(), dense}) {
      const Pairs pairs = count_pairs(config, batch, plan, order);
      // Keys and values of one group of 8 f32 each; the keys that are pooled only while the gate
      // chooses. As much comes back as gradients.
      const int64_t row = 8 * 4;
      const int64_t rows = 2 * pairs.window + 2 * pairs.segment + (plan.gated ? pairs.block : 0);
      EXPECT_EQ(measured(config, batch, plan, order), 2 * rows * row)
          << "window " << plan.window << (order == SequenceOrder::kZigzag ? ", zigzag" : "");
    }
  }
}

}  // namespace
}  // namespace tessera
