#include "runtime/control/gate_change_log.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/runtime/temporary_directory.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

const KeptBlocksChange kChange{.step = 1200,
                               .layer = 3,
                               .before = 12,
                               .after = 15,
                               .budget = 0.75,
                               .kept_mass = 0.91,
                               .reason = "kept mass 0.9100, target 0.9800"};

TEST(GateChangeLog, AppendsOneObjectALine) {
  const TemporaryDirectory directory;
  for (int run = 0; run < 2; ++run) GateChangeLog(directory / "").add(kChange);
  std::ifstream in(directory / "gate_changes.jsonl");
  int lines = 0;
  for (std::string line; std::getline(in, line); ++lines) {
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json["step"], 1200);
    EXPECT_EQ(json["layer"], 3);
    EXPECT_EQ(json["what"], "kept_blocks");
    EXPECT_EQ(json["old"], 12);
    EXPECT_EQ(json["new"], 15);
    EXPECT_EQ(json["budget"], 0.75);
    EXPECT_EQ(json["kept_mass"], 0.91);
    EXPECT_EQ(json["reason"], kChange.reason);
  }
  EXPECT_EQ(lines, 2);
}

TEST(GateChangeLog, WhatWasNotMeasuredIsNotThere) {
  KeptBlocksChange change = kChange;
  change.kept_mass = -1;
  EXPECT_FALSE(nlohmann::json::parse(to_json(change)).contains("kept_mass"));
}

TEST(GateChangeLog, GlobalGroupsAreLists) {
  const TemporaryDirectory directory;
  GateChangeLog(directory / "")
      .add(GlobalGroupsChange{.step = 40,
                              .layer = 1,
                              .before = {0, 1},
                              .after = {1, 3},
                              .alpha = {0.125, 1, 0, 0.75},
                              .reason = "alpha"});
  std::ifstream in(directory / "gate_changes.jsonl");
  std::string line;
  std::getline(in, line);
  EXPECT_EQ(line,
            "{\"step\":40,\"layer\":1,\"what\":\"global_groups\",\"old\":[0,1],\"new\":[1,3],"
            "\"alpha\":[0.125,1.0,0.0,0.75],\"reason\":\"alpha\"}");
  EXPECT_EQ(groups_text(std::vector<int32_t>{3}), "group 3");
  EXPECT_EQ(groups_text(std::vector<int32_t>{1, 3}), "groups 1 3");
}

TEST(GateChangeLog, OtherRanksWriteNothing) {
  GateChangeLog().add(kChange);  // and has nowhere to
  EXPECT_NE(to_json(kChange), "");
}

TEST(GateChangeLog, SaysWhatItCannotOpen) {
  support::expect_error([] { GateChangeLog("/proc/no/such"); },
                        "cannot open /proc/no/such/gate_changes.jsonl for writing");
}

}  // namespace
}  // namespace tessera
