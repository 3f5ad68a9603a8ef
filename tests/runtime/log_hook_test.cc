#include "runtime/train/log_hook.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/monitor/event_records.h"
#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

StepReport report_of(int64_t step) {
  StepReport report;
  report.plan.step = step;
  report.plan.stage = Stage::kTuning;
  report.steps = 9;
  report.loss = 0.5 * static_cast<double>(step);
  report.gate_kl = std::nan("");
  report.expert_load.layer_tokens = {{3, 5}, {8, 0}};
  if (step % 2 != 0) return report;
  report.gates.resize(1);
  report.gates[0].heat_map.assign(GateMeasure::kBins * GateMeasure::kBins, 0.01f);
  return report;
}

LogHook::Options options_for(const fs::path& run) {
  return {.run_directory = run,
          .log_every = 100,
          .flops_per_token = [](const StepPlan&) { return 1e6; },
          .experts_every = 3,
          .heat_map_every = 4};
}

std::vector<nlohmann::json> lines_of(const fs::path& path) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

TEST(LogHook, WritesEveryStepToMetricsAndTensorBoardUnderTheSameNames) {
  const TemporaryDirectory run;
  LogHook hook(options_for(run.path()));
  for (int64_t step = 1; step <= 4; ++step) hook.observe(report_of(step));
  const std::vector<nlohmann::json> lines = lines_of(run / "metrics.jsonl");
  ASSERT_EQ(lines.size(), 4u);
  EXPECT_TRUE(lines[0]["gate_kl"].is_null());
  EXPECT_GT(lines[0]["time"].get<double>(), 1.6e9);

  std::map<std::string, std::set<int64_t>> steps_of;
  for (const tensorboard::Event& event : events_in(event_files(run / "tensorboard")[0])) {
    for (const auto& value : event.summary().value()) {
      steps_of[value.tag()].insert(event.step());
      if (value.tag() != "loss") continue;
      EXPECT_EQ(value.simple_value(), 0.5f * static_cast<float>(event.step()));
    }
  }
  for (const auto& [name, value] : lines[3].items()) {
    if (name == "step" || name == "steps" || name == "time" || !value.is_number()) continue;
    EXPECT_EQ(steps_of[name], (std::set<int64_t>{1, 2, 3, 4})) << name;
  }
  EXPECT_FALSE(steps_of.contains("gate_kl")) << "TensorBoard has no null";
  EXPECT_EQ(steps_of["heat_map/layer-00-group-00"], (std::set<int64_t>{4}));
  EXPECT_EQ(steps_of["expert_tokens/moe-layer-1"], (std::set<int64_t>{1, 3}));
}

TEST(LogHook, WritesExpertsAndGatesWhenTheyAreDue) {
  const TemporaryDirectory run;
  LogHook hook(options_for(run.path()));
  for (int64_t step = 1; step <= 9; ++step) hook.observe(report_of(step));
  std::set<int64_t> steps;
  for (const nlohmann::json& line : lines_of(run / "experts.jsonl"))
    steps.insert(line["step"].get<int64_t>());
  EXPECT_EQ(steps, (std::set<int64_t>{1, 3, 6, 9}));
  EXPECT_EQ(lines_of(run / "experts.jsonl")[1]["tokens"], (nlohmann::json{8, 0}));
  EXPECT_EQ(lines_of(run / "gates.jsonl").size(), 4u);
  EXPECT_TRUE(fs::exists(run / "heatmaps/step-00000008-layer-00-group-00.png"));
  EXPECT_FALSE(fs::exists(run / "heatmaps/step-00000006-layer-00-group-00.png"));
}

TEST(LogHook, ALaterStartHasItsOwnEventFileAndSaysWhereItBegins) {
  const TemporaryDirectory run;
  for (const int64_t first : {1, 3}) {
    LogHook hook(options_for(run.path()));
    for (int64_t step = first; step <= 4; ++step) hook.observe(report_of(step));
  }
  const std::vector<fs::path> files = event_files(run / "tensorboard");
  ASSERT_EQ(files.size(), 2u);
  EXPECT_EQ(events_in(files[1])[1].step(), 3);
  EXPECT_EQ(lines_of(run / "metrics.jsonl").size(), 6u);
}

TEST(LogHook, WritesNoEventsWhenItIsToldNotTo) {
  const TemporaryDirectory run;
  LogHook::Options options = options_for(run.path());
  options.tensorboard = false;
  LogHook hook(std::move(options));
  hook.observe(report_of(1));
  EXPECT_FALSE(fs::exists(run / "tensorboard"));
  EXPECT_EQ(lines_of(run / "metrics.jsonl").size(), 1u);
}

TEST(LogHook, ThrowsWhereMetricsCannotBeWritten) {
  try {
    const LogHook hook(options_for("/proc/no/run"));
    ADD_FAILURE() << "it was made";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("metrics.jsonl for writing: "), std::string::npos);
  }
}

}  // namespace
}  // namespace tessera
