#include "runtime/report/gate_table.h"

#include <gtest/gtest.h>

#include "runtime/monitor/gate_log.h"
#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

std::string line(int64_t step, int64_t layer, double kept_mass = 0.9) {
  GateMeasure gate;
  gate.layer = layer;
  gate.kept_mass = kept_mass;
  gate.frequency[3] = 0.25;
  return to_json(gate, step) + "\n";
}

TEST(GateTable, ReadsWhatTheLogWrites) {
  const TemporaryDirectory run;
  run.write("gates.jsonl", line(100, 0, 0.75) + line(100, 2));
  const GateTable table = read_gates(run.path());
  ASSERT_EQ(table.gates.size(), 2u);
  EXPECT_EQ(table.gates[0].step, 100);
  EXPECT_EQ(table.gates[0].gate.kept_mass, 0.75);
  EXPECT_EQ(table.gates[0].gate.frequency[3], 0.25);
  EXPECT_EQ(table.gates[1].gate.layer, 2);
  EXPECT_EQ(table.gate_lines.damaged, 0);
  EXPECT_FALSE(table.expert_lines.exists);
}

TEST(GateTable, TheLaterMeasureIsRight) {
  const TemporaryDirectory run;
  run.write("gates.jsonl", line(100, 0) + line(100, 1) + line(200, 0) + line(200, 1) +
                               line(300, 0) + line(200, 0, 0.5) + line(200, 1, 0.25));
  const GateTable table = read_gates(run.path());
  ASSERT_EQ(table.gates.size(), 4u);
  EXPECT_EQ(table.gates[2].gate.kept_mass, 0.5);
  EXPECT_EQ(table.gates[3].gate.kept_mass, 0.25);
}

TEST(GateTable, ReadsChangesOfAnyKind) {
  const TemporaryDirectory run;
  const std::string change = "{\"step\":200,\"layer\":3,\"what\":\"kept_blocks\",\"old\":4,";
  run.write("gate_changes.jsonl",
            change + "\"new\":5,\"reason\":\"first\"}\n" + change +
                "\"new\":6,\"reason\":\"again\"}\n"
                "{\"step\":300,\"what\":\"hold\",\"old\":false,\"new\":\"rho\",\"reason\":\"x\"}\n"
                "{\"step\":400,\"what\":\"hold\"}\n");
  const GateTable table = read_gates(run.path());
  ASSERT_EQ(table.changes.size(), 2u);
  EXPECT_EQ(table.changes[0].layer, 3);
  EXPECT_EQ(table.changes[0].old_value, "4");
  EXPECT_EQ(table.changes[0].new_value, "6");
  EXPECT_EQ(table.changes[0].reason, "again");
  EXPECT_EQ(table.changes[1].layer, -1);
  EXPECT_EQ(table.changes[1].old_value, "false");
  EXPECT_EQ(table.changes[1].new_value, "rho");
  EXPECT_EQ(table.change_lines.damaged, 1);
}

TEST(GateTable, DamagedLinesAreLeftOut) {
  const TemporaryDirectory run;
  run.write("gates.jsonl", "{\"step\":1}\nnothing\n" + line(2, 0));
  run.write("experts.jsonl",
            "{\"step\":1,\"moe_layer\":0,\"tokens\":[1,2]}\n"
            "{\"step\":2,\"moe_layer\":0,\"tokens\":[1,\"x\"]}\n"
            "{\"step\":3,\"moe_layer\":0,\"tokens\":7}\n"
            "{\"step\":4,\"moe_layer\":9223372036854775807,\"tokens\":[1]}\n");
  const GateTable table = read_gates(run.path());
  EXPECT_EQ(table.gates.size(), 1u);
  EXPECT_EQ(table.gate_lines.damaged, 2);
  ASSERT_EQ(table.experts.size(), 1u);
  EXPECT_EQ(table.experts[0].tokens, (std::vector<double>{1, 2}));
  EXPECT_EQ(table.expert_lines.damaged, 3);
}

}  // namespace
}  // namespace tessera
