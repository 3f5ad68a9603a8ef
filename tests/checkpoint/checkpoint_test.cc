#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include <set>

namespace tessera {
namespace {

TEST(Checkpoint, KindsHaveNamesOfTheirOwn) {
  std::set<std::string> names;
  for (const TensorKind kind : {TensorKind::kParameter, TensorKind::kMaster, TensorKind::kExpAvg,
                                TensorKind::kExpAvgSq, TensorKind::kBuffer}) {
    names.insert(name_of(kind));
  }
  EXPECT_EQ(names,
            (std::set<std::string>{"buffer", "exp_avg", "exp_avg_sq", "master", "parameter"}));
}

TEST(Checkpoint, IdsAreOrderedByIncarnationFirst) {
  EXPECT_LT((CheckpointId{1, 900}), (CheckpointId{2, 100}));
  EXPECT_LT((CheckpointId{2, 100}), (CheckpointId{2, 200}));
}

}  // namespace
}  // namespace tessera
