#include "checkpoint/retention.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::TemporaryDirectory;

std::vector<int64_t> kept(const std::vector<Kept>& valid, const RetentionPolicy& policy) {
  const std::vector<bool> goes = expendable(valid, policy);
  std::vector<int64_t> steps;
  for (size_t i = 0; i < valid.size(); ++i) {
    if (!goes[i]) steps.push_back(valid[i].id.step);
  }
  return steps;
}

TEST(Retention, KeepsTheNewestAndTheMilestones) {
  const std::vector<Kept> ids{{{2, 70}}, {{2, 60}}, {{1, 50}}, {{1, 40}}, {{1, 30}}, {{1, 0}}};
  EXPECT_EQ(kept(ids, {.keep_last = 2, .keep_every = 0}), (std::vector<int64_t>{70, 60}));
  EXPECT_EQ(kept(ids, {.keep_last = 1, .keep_every = 30}), (std::vector<int64_t>{70, 60, 30, 0}));
  EXPECT_EQ(kept(ids, {.keep_last = 9, .keep_every = 0}).size(), 6U);
}

TEST(Retention, NeverLetsTheLastOneGo) {
  EXPECT_EQ(kept({{{1, 7}}}, {.keep_last = 1, .keep_every = 0}), std::vector<int64_t>{7});
  EXPECT_TRUE(expendable({}, {}).empty());
  EXPECT_THROW((void)expendable({}, {.keep_last = 0, .keep_every = 0}), Error);
}

TEST(Retention, NeverLetsTheLastFiniteOneGo) {
  const std::vector<Kept> ids{{{1, 9}, false}, {{1, 8}, false}, {{1, 7}, true}, {{1, 6}, true}};
  EXPECT_EQ(kept(ids, {.keep_last = 2, .keep_every = 0}), (std::vector<int64_t>{9, 8, 7}));
  const std::vector<Kept> none{{{1, 9}, false}, {{1, 8}, false}};
  EXPECT_EQ(kept(none, {.keep_last = 1, .keep_every = 0}), std::vector<int64_t>{9});
}

TEST(Retention, DeletesByWayOfTheTrash) {
  const TemporaryDirectory place;
  const Directory checkpoints(place.path());
  fs::create_directories(place.path() / "step-00000001/d");
  std::ofstream(place.path() / "step-00000001/d/shard") << "data";
  fs::create_directories(place.path() / ".trash/step-00000001/left");  // by an earlier attempt
  move_checkpoint(checkpoints, "step-00000001", ".trash");
  empty_trash(checkpoints);
  EXPECT_FALSE(fs::exists(place.path() / "step-00000001"));
  EXPECT_TRUE(fs::is_empty(place.path() / ".trash"));
}

TEST(Retention, DoesNotFollowLinksOutOfTheTrash) {
  const TemporaryDirectory place;
  const TemporaryDirectory other;
  std::ofstream(other.path() / "precious") << "data";
  fs::create_directories(place.path() / ".trash");
  fs::create_directory_symlink(other.path(), place.path() / ".trash/link");
  empty_trash(Directory(place.path()));
  EXPECT_TRUE(fs::exists(other.path() / "precious"));
  EXPECT_TRUE(fs::is_empty(place.path() / ".trash"));
}

TEST(Retention, QuarantineKeepsEarlierOnesOfTheSameName) {
  const TemporaryDirectory place;
  const Directory checkpoints(place.path());
  for (int i = 0; i < 3; ++i) {
    fs::create_directories(place.path() / "step-00000001");
    move_checkpoint(checkpoints, "step-00000001", ".bad");
  }
  EXPECT_EQ(checkpoints.subdirectory(".bad").entries(),
            (std::vector<std::string>{"step-00000001", "step-00000001.1", "step-00000001.2"}));
}

}  // namespace
}  // namespace tessera
