#include "runtime/trace/run_trace.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <set>
#include <thread>
#include <tuple>

#include "tests/runtime/training_fixture.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr double kRounding = 0.002;  // microseconds; times have three decimals

class RunTraceTest : public support::TrainingFixture {
 protected:
  void trace_on(int ranks, const std::string& run, const TraceSteps& steps,
                const std::vector<std::string>& more = {}) const {
    TrainConfig config = this->config(run, more);
    config.mutable_mesh()->set_data(1);
    config.mutable_mesh()->set_tensor(ranks);
    const StopSignal stop;
    run_ranks(ranks, [&](Communicator& world) {
      EXPECT_EQ(run_training(config, {}, world, stop, {.traced = steps}), TrainingEnd::kFinished);
    });
  }
  fs::path page(const std::string& run, const std::string& steps) const {
    return directory_ / run / "trace" / ("steps-" + steps + ".json");
  }
  json events(const fs::path& file) const { return json::parse(file_content(file))["traceEvents"]; }
};

double begin_of(const json& event) {
  return event["ts"].get<double>();
}

double end_of(const json& event) {
  return begin_of(event) + event["dur"].get<double>();
}

bool within(const json& inner, const json& outer) {
  return begin_of(inner) >= begin_of(outer) - kRounding &&
         end_of(inner) <= end_of(outer) + kRounding;
}

/// The spans of one thread of a rank, or of one category of it.
std::vector<json> spans(const json& events, int rank, const std::string& category) {
  std::vector<json> found;
  for (const json& event : events) {
    if (event["ph"] == "X" && event["pid"] == rank && event["cat"] == category) {
      found.push_back(event);
    }
  }
  return found;
}

void expect_nested(const json& events) {
  std::map<std::pair<int, int>, std::vector<json>> threads;
  for (const json& event : events) {
    if (event["ph"] == "X") threads[{event["pid"], event["tid"]}].push_back(event);
  }
  for (auto& [thread, all] : threads) {
    std::stable_sort(all.begin(), all.end(), [](const json& a, const json& b) {
      return std::tuple(begin_of(a), -end_of(a)) < std::tuple(begin_of(b), -end_of(b));
    });
    std::vector<json> open;
    for (const json& event : all) {
      while (!open.empty() && end_of(open.back()) <= begin_of(event) + kRounding) open.pop_back();
      EXPECT_TRUE(open.empty() || within(event, open.back())) << event;
      open.push_back(event);
    }
  }
}

TEST_F(RunTraceTest, ShowsWhatEveryRankDid) {
  trace_on(2, "run", {.first = 3, .last = 6}, {"runtime.validate_every=4"});
  const json all = events(page("run", "00000003-00000006"));
  expect_nested(all);
  for (const int rank : {0, 1}) {
    const auto steps = spans(all, rank, "step");
    ASSERT_EQ(steps.size(), 4u);
    EXPECT_EQ(steps.front()["name"], "step 3");
    std::vector<double> sums(steps.size());
    std::set<std::string> seen;
    for (const json& phase : spans(all, rank, "phase")) {
      seen.insert(phase["name"]);
      for (size_t i = 0; i < steps.size(); ++i) {
        if (within(phase, steps[i])) sums[i] += phase["dur"].get<double>();
      }
    }
    EXPECT_EQ(seen, (std::set<std::string>{"backward", "between steps", "checkpoint", "data",
                                           "forward", "sums", "update", "validation"}));
    for (size_t i = 0; i < steps.size(); ++i) {
      // All but the clearing of gradients, which is short, unless the rank is taken its processor.
      EXPECT_LE(sums[i], steps[i]["dur"].get<double>() + 0.1);
      EXPECT_GT(sums[i], 0);
    }
    EXPECT_EQ(spans(all, rank, "trace").size(), 3u);
    EXPECT_FALSE(spans(all, rank, "layer").empty());
    const auto saves = spans(all, rank, "checkpoint");
    EXPECT_TRUE(std::any_of(saves.begin(), saves.end(),
                            [](const json& event) { return event["name"] == "shard synced"; }));
    size_t in_steps = 0;
    int64_t bytes = 0;
    for (const json& exchange : spans(all, rank, "exchange")) {
      const json& arguments = exchange["args"];
      EXPECT_NE(arguments["call"].get<std::string>().find(".cc:"), std::string::npos);
      bytes += arguments["sent"].get<int64_t>() + arguments["received"].get<int64_t>();
      if (arguments["phase"] != "forward" && arguments["phase"] != "backward") continue;
      const int64_t step = arguments["step"];
      ASSERT_GE(step, 3);
      ASSERT_LE(step, 6);
      EXPECT_TRUE(within(exchange, steps[static_cast<size_t>(step - 3)])) << exchange;
      ++in_steps;
    }
    EXPECT_GT(in_steps, 40u);
    EXPECT_GT(bytes, 1000);
  }
}

TEST_F(RunTraceTest, AsynchronousEventsAndArrowsHaveTwoEnds) {
  trace_on(2, "run", {.first = 3, .last = 4});
  std::map<int64_t, std::vector<json>> ends;
  std::map<int64_t, std::vector<json>> arrows;
  for (const json& event : events(page("run", "00000003-00000004"))) {
    const std::string form = event["ph"];
    if (form == "b" || form == "e") ends[event["id"]].push_back(event);
    if (form == "s" || form == "f") arrows[event["id"]].push_back(event);
  }
  EXPECT_GT(ends.size(), 10u);
  for (const auto* pairs : {&ends, &arrows}) {
    for (const auto& [id, pair] : *pairs) {
      ASSERT_EQ(pair.size(), 2u) << id;
      EXPECT_LE(begin_of(pair[0]), begin_of(pair[1]));
      EXPECT_EQ(pair[0]["name"], pair[1]["name"]);
      EXPECT_EQ(pair[0]["pid"], pair[1]["pid"]);
      EXPECT_TRUE(ends.contains(id));
    }
  }
}

// The same exchange has the same number on its communicator on every rank, and no rank leaves one
// that all wait in before the last has come to it.
TEST_F(RunTraceTest, RanksHaveOneTime) {
  trace_on(2, "run", {.first = 3, .last = 4});
  std::map<std::pair<std::string, int64_t>, std::vector<json>> exchanges;
  for (const json& event : events(page("run", "00000003-00000004"))) {
    if (event["ph"] != "X") continue;
    if (event["name"] == "all_reduce" || event["name"] == "all_reduce_values") {
      exchanges[{event["args"]["axis"], event["args"]["number"]}].push_back(event);
    }
  }
  EXPECT_GE(exchanges.size(), 4u);
  for (const auto& [key, both] : exchanges) {
    ASSERT_EQ(both.size(), 2u);
    EXPECT_NE(both[0]["pid"], both[1]["pid"]);
    EXPECT_GE(end_of(both[0]) + kRounding, begin_of(both[1]));
    EXPECT_GE(end_of(both[1]) + kRounding, begin_of(both[0]));
  }
}

TEST_F(RunTraceTest, ChangesNothingElse) {
  trace_on(2, "plain", {});
  trace_on(2, "traced", kUsualTrace);
  EXPECT_EQ(metrics("traced"), metrics("plain"));
  expect_same_state(saved("traced", "00000012"), saved("plain", "00000012"));
  EXPECT_FALSE(fs::exists(directory_ / "plain" / "trace"));
  // The run is shorter than the trace.
  EXPECT_EQ(spans(events(page("traced", "00000011-00000020")), 1, "step").size(), 2u);
}

TEST_F(RunTraceTest, AFullDiskCostsThePartOfItsRank) {
  const fs::path folder = trace_folder(directory_ / "run", 3, 6);
  fs::create_directories(folder);
  fs::create_symlink("/dev/full", trace_part(folder, 1));
  trace_on(2, "run", {.first = 3, .last = 6});
  const json all = events(page("run", "00000003-00000006"));
  EXPECT_EQ(spans(all, 0, "step").size(), 4u);
  EXPECT_TRUE(spans(all, 1, "step").empty());
  EXPECT_EQ(metrics("run").size(), 12u);
}

TEST_F(RunTraceTest, AFolderThatCannotBeMadeCostsTheTrace) {
  directory_.write("run/trace", "a file");
  trace_on(2, "run", {.first = 3, .last = 6});
  EXPECT_EQ(metrics("run").size(), 12u);
  EXPECT_EQ(file_content(directory_ / "run" / "trace"), "a file");
}

TEST_F(RunTraceTest, StepsThatAreDoneAreNotTraced) {
  ASSERT_EQ(run(config("run")), TrainingEnd::kFinished);
  const auto trace_rest = [&](const std::string& rest, const TraceSteps& steps) {
    const StopSignal stop;
    SelfCommunicator world;
    EXPECT_EQ(run_training(config(rest), from("run", "00000005"), world, stop, {.traced = steps}),
              TrainingEnd::kFinished);
  };
  trace_rest("done", {.first = 2, .last = 5});
  EXPECT_FALSE(fs::exists(directory_ / "done" / "trace"));
  trace_rest("half", {.first = 5, .last = 7});
  EXPECT_TRUE(fs::exists(page("half", "00000006-00000007")));
  trace_rest("counted", {.first = 2, .last = 3, .of_this_start = true});
  EXPECT_TRUE(fs::exists(page("counted", "00000007-00000008")));
}

TEST_F(RunTraceTest, ALargeTraceStaysInParts) {
  run_ranks(2, [&](Communicator& world) {
    const ProcessMesh mesh(world, {.data = 2});
    RunTrace trace(mesh, directory_ / "run", {.first = 1, .last = 1}, /*largest_page=*/10);
    trace.before_step(1);
    trace.before_step(2);
    trace.finish();
  });
  const fs::path folder = trace_folder(directory_ / "run", 1, 1);
  EXPECT_FALSE(fs::exists(folder.string() + ".json"));
  for (const int rank : {0, 1})
    EXPECT_TRUE(json::parse(file_content(trace_part(folder, rank))).is_array());
  // What a crash leaves of a part is used as far as it is whole.
  const std::string part = file_content(trace_part(folder, 1));
  std::ofstream(trace_part(folder, 1)) << part.substr(0, part.size() / 2);
  EXPECT_EQ(ranks_with_parts(folder), (std::vector<int>{0, 1}));
  const JoinedTrace joined = join_trace(folder, {0, 1}, directory_ / "joined.json");
  EXPECT_EQ(joined.ranks, 2);
  EXPECT_EQ(joined.bytes, static_cast<int64_t>(fs::file_size(directory_ / "joined.json")));
  size_t of_rank_1 = 0;
  for (const json& event : events(directory_ / "joined.json")) of_rank_1 += event["pid"] == 1;
  EXPECT_GT(of_rank_1, 2u);
  EXPECT_TRUE(thrown_by([&] {
                (void)join_trace(folder, {0, 2}, directory_ / "none.json");
              }).starts_with("2: "));
  EXPECT_FALSE(fs::exists(directory_ / "none.json"));
  EXPECT_FALSE(fs::exists(directory_ / "none.json.tmp"));
}

TEST_F(RunTraceTest, NamesTheRankThatOthersWaitFor) {
  std::atomic<bool> waits{false};
  testing::internal::CaptureStderr();
  run_ranks(3, [&](Communicator& world) {
    const ProcessMesh mesh(world, {.data = 3});
    FlightRecorder& recorder = world.log().recorder();
    RunTrace trace(mesh, directory_ / "run", {.first = 1, .last = 1});
    trace.before_step(1);
    recorder.set_step(1);
    recorder.set_phase(Phase::kForward);
    if (world.rank() == 0) waits = true;
    if (world.rank() == 1) {
      while (!waits) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    world.barrier();
    recorder.finish_step();
    trace.finish();
  });
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("traced steps 1 to 1, 3 of 3 ranks, "), std::string::npos) << log;
  EXPECT_NE(log.find("; rank 1 waits least, "), std::string::npos) << log;
}

// A rank that fails writes what it has, so that the trace shows where.
TEST_F(RunTraceTest, ARunThatFailsLeavesItsParts) {
  SelfCommunicator world;
  const ProcessMesh mesh(world, {});
  FlightRecorder& recorder = world.log().recorder();
  try {
    RunTrace trace(mesh, directory_ / "run", {.first = 1, .last = 9});
    trace.before_step(1);
    recorder.set_step(1);
    recorder.set_phase(Phase::kForward);
    recorder.set_layer(3);
    throw Error(ExitCode::kError, "lost");
  } catch (const Error&) {
  }
  const json part =
      json::parse(file_content(trace_part(trace_folder(directory_ / "run", 1, 9), 0)));
  EXPECT_TRUE(std::any_of(part.begin(), part.end(),
                          [](const json& event) { return event["name"] == "layer 3"; }));
  recorder.set_step(2);  // nobody listens any more
}

TEST(TraceSteps, AreRead) {
  const TraceSteps range = parse_trace_steps("5:7");
  EXPECT_EQ(range.first, 5);
  EXPECT_EQ(range.last, 7);
  EXPECT_FALSE(range.of_this_start);
  const TraceSteps first = parse_trace_steps("4");
  EXPECT_EQ(first.first, 1);
  EXPECT_EQ(first.last, 4);
  EXPECT_TRUE(first.of_this_start);
  for (const char* wrong :
       {"0", "-1", "3:2", "0:4", "x", ":", "1:", ":2", "1:2:3", " 4", "99999999999999999999"}) {
    EXPECT_EQ(
        thrown_by([&] { (void)parse_trace_steps(wrong); }),
        concat("2: --trace is \"", wrong,
               "\", expected FIRST:LAST, steps of the run from 1 on, or N, the first steps of "
               "this start"));
  }
}

TEST(TraceText, NamesMayHaveAnyCharacter) {
  FlightRecorder recorder;
  recorder.add_group("a\"b\\c\nd", 0, 0, 2);
  TraceText text({.rank = 3, .name = "rank \"3\"", .origin = 1'000'000, .to_root = 500},
                 recorder.map());
  Timeline::Events events;
  events.spans.push_back({.kind = TraceSpan::Kind::kWait,
                          .step = 5,
                          .begin = 2'000'000,
                          .end = 2'001'234,
                          .group = 0,
                          .operation = Collective::kBroadcast});
  events.spans.push_back({.kind = TraceSpan::Kind::kStep, .step = 6, .begin = 0, .end = 1});
  std::string lines = "[";
  text.append(events, {}, lines);
  text.append_end(2, lines);
  const json all = json::parse(lines + "]");
  EXPECT_EQ(all[0]["args"]["name"], "rank \"3\"");
  EXPECT_EQ(all[all.size() - 1]["args"]["labels"], "2 events are missing");
  const json wait = all[all.size() - 3];
  EXPECT_EQ(wait["name"], "wait for broadcast");
  EXPECT_EQ(wait["args"]["axis"], "a\"b\\cd");
  EXPECT_DOUBLE_EQ(wait["ts"], 1000.5);
  EXPECT_DOUBLE_EQ(wait["dur"], 1.234);
  EXPECT_DOUBLE_EQ(all[all.size() - 2]["ts"], -999.5) << "before the origin";
}

}  // namespace
}  // namespace tessera
