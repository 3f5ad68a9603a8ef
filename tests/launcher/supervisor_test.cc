#include "launcher/supervisor.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/core/error.h"

namespace tessera {
namespace {

/// A life: how it ends, and the newest step that it leaves.
struct Life {
  int exit_code;
  int64_t step;
  bool stopped = false;
  bool started = true;
};

struct Story {
  int exit_code = 0;
  size_t lives = 0;
  std::vector<double> waits;
};

/// Supervises a job that lives `lives`, one after the other; they are never more than needed.
Story supervise_story(const std::vector<Life>& lives, const RestartPolicy& policy,
                      size_t stop_in_wait = 99) {
  Story story;
  CheckpointId newest;
  story.exit_code = supervise({.run =
                                   [&] {
                                     CHECK(story.lives < lives.size(), "started once too often");
                                     const Life& life = lives[story.lives++];
                                     if (life.step > newest.step)
                                       newest = {static_cast<int64_t>(story.lives), life.step};
                                     return ChildEnd{.exit_code = life.exit_code,
                                                     .stopped = life.stopped,
                                                     .started = life.started,
                                                     .seconds = 1};
                                   },
                               .newest = [&] { return newest; },
                               .wait =
                                   [&](double seconds) {
                                     story.waits.push_back(seconds);
                                     return story.waits.size() != stop_in_wait;
                                   }},
                              policy);
  EXPECT_EQ(story.lives, lives.size());
  return story;
}

TEST(Supervisor, AFinishedJobIsNotStartedAgain) {
  EXPECT_EQ(supervise_story({{0, 100}}, {}).exit_code, 0);
}

TEST(Supervisor, ADeadJobGoesOnUntilItIsFinished) {
  const Story story = supervise_story({{137, 10}, {75, 20}, {1, 30}, {0, 40}}, {});
  EXPECT_EQ(story.exit_code, 0);
  EXPECT_EQ(story.waits, (std::vector<double>{1, 1, 1}));
}

TEST(Supervisor, WhatWouldBeTheSameAgainIsNotTried) {
  for (const int code : {2, 65, 66}) {
    EXPECT_EQ(supervise_story({{code, 0}}, {}).exit_code, code);
  }
}

TEST(Supervisor, GivesUpWithoutProgress) {
  EXPECT_EQ(supervise_story({{137, 0}, {137, 0}, {137, 0}}, {}).exit_code, 93);
  // Two barren lives, one that saved, and then three more.
  const Story story = supervise_story({{137, 0}, {137, 0}, {137, 5}, {137, 5}, {137, 5}, {137, 5}},
                                      {.longest_wait = 3});
  EXPECT_EQ(story.exit_code, 93);
  EXPECT_EQ(story.waits, (std::vector<double>{2, 3, 1, 2, 3}));
}

TEST(Supervisor, WhatDidNotStartHasNotFailed) {
  const Life missing{.exit_code = 75, .step = 0, .started = false};
  const Story story =
      supervise_story({{137, 5}, missing, missing, missing, missing, {137, 6}, {0, 7}}, {});
  EXPECT_EQ(story.exit_code, 0);
  EXPECT_EQ(story.waits, (std::vector<double>{1, 2, 4, 8, 16, 1}));
  // It is neither progress.
  EXPECT_EQ(supervise_story({{137, 0}, missing, {137, 0}, missing, {137, 0}}, {}).exit_code, 93);
  EXPECT_EQ(supervise_story({{137, 5}, missing, missing}, {.retries = 2}).exit_code, 75);
}

TEST(Supervisor, RestartsAreCounted) {
  EXPECT_EQ(supervise_story({{137, 1}, {137, 2}, {137, 3}}, {.retries = 2}).exit_code, 75);
  EXPECT_EQ(supervise_story({{137, 1}}, {.retries = 0}).exit_code, 75);
}

TEST(Supervisor, AJobThatWasAskedToStopStaysDown) {
  EXPECT_EQ(supervise_story({{137, 1}, {75, 2, true}}, {}).exit_code, 75);
  EXPECT_EQ(supervise_story({{137, 0, true}}, {}).exit_code, 75);
  EXPECT_EQ(supervise_story({{0, 9, true}}, {}).exit_code, 0) << "it was done anyway";
  EXPECT_EQ(supervise_story({{137, 1}}, {}, /*stop_in_wait=*/1).exit_code, 75);
}

}  // namespace
}  // namespace tessera
