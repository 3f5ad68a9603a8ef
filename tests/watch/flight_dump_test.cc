#include "runtime/watch/flight_dump.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/watch/imagined_job.h"

namespace tessera {
namespace {

TEST(FlightDump, IsJson) {
  ImaginedJob job;
  job.exchange(2, ImaginedJob::kTensor);
  job.block(2, ImaginedJob::kWorld);
  const auto json = nlohmann::json::parse(to_json(job.rank(2)));
  EXPECT_EQ(json["rank"], 2);
  EXPECT_EQ(json["host"], "n2");
  EXPECT_EQ(json["phase"], "forward");
  EXPECT_EQ(json["process_state"], "S");
  EXPECT_EQ(json["waits_in"], 1);
  EXPECT_EQ(json["groups"][1]["first_rank"], 2);
  EXPECT_EQ(json["exchanges"][0]["at"], "model/moe.cc:10");
  EXPECT_DOUBLE_EQ(json["exchanges"][0]["completed_ago"], 58);
  EXPECT_TRUE(json["exchanges"][1]["completed_ago"].is_null());
}

TEST(FlightDump, SurvivesAnyBytes) {
  ImaginedJob job;
  job.rank(0).state.host = {'\xff', '\xfe'};
  EXPECT_TRUE(nlohmann::json::accept(to_json(job.rank(0))));
}

TEST(FlightDump, NumbersItsFiles) {
  EXPECT_EQ(ring_file("f", 173), "f/ring-00173");
  EXPECT_EQ(stacks_file("f", 173), "f/stacks-00173.txt");
  EXPECT_EQ(dump_file("f", 173), "f/rank-00173.json");
  EXPECT_EQ(hang_file("f"), "f/hang.txt");
  EXPECT_EQ(suspects_file("f"), "f/suspects");
}

}  // namespace
}  // namespace tessera
