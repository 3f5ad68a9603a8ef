#include "launcher/doctor/world_check.h"

#include <gtest/gtest.h>

#include "launcher/doctor/mpirun_trouble.h"
#include "tests/launcher/doctor/text_machine.h"

namespace tessera {
namespace {

using support::about;
using Words = std::vector<std::string>;

CapturedCommand said(const std::string& output) {
  return {.output = output, .errors = "", .trouble = ""};
}

CapturedCommand failed(const std::string& errors, const std::string& output = "") {
  return {.exit_code = 1, .output = output, .errors = errors, .trouble = "mpirun ended with 1"};
}

// What ranks on n0, n1, ... tell; of the pairs in `figures` "first second latency rate skew".
std::string told(int ranks, const std::vector<std::string>& figures) {
  std::string text;
  for (int rank = 0; rank < ranks; ++rank)
    text += concat("pairs: rank ", rank, " on n", rank, "\n");
  for (const std::string& line : figures) {
    const Words words = words_of(line);
    text += concat("pairs: begin ", words[0], " ", words[1], "\npairs: begin ", words[1], " ",
                   words[0], "\n");
    if (words.size() == 5) text += "pairs: end " + line + "\n";
  }
  return text;
}

const Words kGood{"0 1 1e-05 1e+09 0", "0 2 1e-05 1e+09 0", "1 2 1e-05 1e+09 0"};

Words with(size_t place, const std::string& line) {
  Words lines = kGood;
  lines[place] = line;
  return lines;
}

std::string pairs_of(const Words& lines, double network = 0) {
  return about(judge_pairs(said(told(3, lines)), 3, network), "pairs");
}

std::string clocks_of(int ranks, const Words& lines) {
  return about(judge_pairs(said(told(ranks, lines)), static_cast<size_t>(ranks), 0), "clocks");
}

TEST(WorldCheck, TheCommandStartsOneRankOnEachHost) {
  EXPECT_EQ(world_command({.program = "/bin/t"}),
            (Words{"mpirun", "--mca", "mpi_yield_when_idle", "1", "--mca", "ras", "^slurm", "-np",
                   "2", "--map-by", "slot", "--bind-to", "none", "--oversubscribe", "/bin/t",
                   "doctor", "pairs"}));
  const Words words =
      world_command({.program = "/bin/t", .hosts = {"a", "b"}, .interface = "ib0", .root = true});
  const auto has = [&](const Words& part) {
    return std::search(words.begin(), words.end(), part.begin(), part.end()) != words.end();
  };
  EXPECT_TRUE(has({"--host", "a:1,b:1"}));
  EXPECT_TRUE(has({"--mca", "btl_tcp_if_include", "ib0"}));
  EXPECT_TRUE(has({"--allow-run-as-root"}));
  EXPECT_FALSE(has({"-q"}));
}

TEST(WorldCheck, TwoRanksOfThisHost) {
  const std::string good = told(2, {"0 1 3.2e-07 5e+09 0"});
  EXPECT_EQ(about(judge_world(said(good)), "world"),
            "ok two ranks on this host: 0.32 us, 5 GB/s each way");
  EXPECT_TRUE(about(judge_world(said(told(2, {"0 1 1e-4 1e+07 0"}))), "world")
                  .starts_with("warn two ranks on this host: 100 us, 10 MB/s each way, slower"));
  EXPECT_TRUE(about(judge_world(said("")), "world").starts_with("fail"));
  EXPECT_TRUE(about(judge_world(failed("mpirun was unable to find the executable")), "world")
                  .starts_with("fail two ranks on this host: mpirun was unable to find"));
  EXPECT_TRUE(about(judge_world(failed("x", good)), "world").starts_with("fail"));
}

TEST(WorldCheck, GoodPairs) {
  EXPECT_EQ(pairs_of(kGood),
            "ok 3 pairs, median 10 us, 1 GB/s each way; slowest n0 and n1: 10 us, 1 GB/s each way");
  EXPECT_EQ(clocks_of(3, kGood), "ok agree within 10 us");
  EXPECT_EQ(about(judge_pairs(said(told(2, {"0 1 1e-05 1e+09 0"})), 2, 0), "pairs"),
            "ok n0 and n1: 10 us, 1 GB/s each way");
}

TEST(WorldCheck, SlowPairsAndHostsAreNamed) {
  const std::string one = pairs_of(with(1, "0 2 1e-05 1e+08 0"));
  EXPECT_TRUE(one.starts_with("warn 3 pairs, median")) << one;
  EXPECT_NE(
      one.find("slowest n0 and n2: 10 us, 100 MB/s each way, fastest 1 GB/s -> look at n0 and "
               "n2: cable"),
      std::string::npos)
      << one;
  Words host = with(1, "0 2 1e-05 1e+08 0");
  host[2] = "1 2 1e-05 1.1e+08 0";
  EXPECT_NE(pairs_of(host).find("-> look at n2: cable"), std::string::npos) << pairs_of(host);
  const std::string late = pairs_of(with(2, "1 2 5e-03 1e+09 0"));
  EXPECT_NE(late.find("n1 and n2 take 5 ms"), std::string::npos) << late;
  EXPECT_TRUE(pairs_of(kGood, 25e9).find("is made for 25 GB/s") != std::string::npos);
}

TEST(WorldCheck, PairsThatDoNotTalkFail) {
  const std::string silent = pairs_of(with(2, "1 2"));
  EXPECT_TRUE(silent.starts_with(
      "fail MPI gets nothing through between n1 and n2 (2 of 3 pairs were measured before)"))
      << silent;
  EXPECT_TRUE(pairs_of({kGood[0], kGood[1]}).starts_with("fail mpirun over 3 hosts: "));
  EXPECT_TRUE(about(judge_pairs(failed("orted: command not found", told(3, kGood)), 3, 0), "pairs")
                  .starts_with("fail mpirun over 3 hosts: orted, the daemon"));
}

TEST(WorldCheck, TheClockThatIsWrongIsNamed) {
  EXPECT_TRUE(clocks_of(3, {"0 1 1e-05 1e+09 1e-6", "0 2 1e-05 1e+09 -90", "1 2 1e-05 1e+09 -90"})
                  .starts_with("fail n2 is 90 s behind the others: Slurm's"));
  EXPECT_TRUE(clocks_of(3, {"0 1 1e-05 1e+09 2", "0 2 1e-05 1e+09 0", "1 2 1e-05 1e+09 -2"})
                  .starts_with("warn n1 is 2 s ahead of the others: logs"));
  EXPECT_EQ(clocks_of(2, {"0 1 1e-05 1e+09 0.004"}), "ok n0 is 4 ms behind n1");
}

TEST(MpirunTrouble, SaysWhatMatters) {
  const std::string frame =
      "--------------------------------------------------------------------------\n";
  EXPECT_EQ(mpirun_trouble(failed("[n1:77] PMIX ERROR: ERROR in file x.c\n" + frame +
                                  "There was a problem that\nis long.  More of it.\n" + frame))
                .found,
            "There was a problem that is long");
  EXPECT_EQ(mpirun_trouble(failed("[n1:77] It is a single line.\n")).found, "It is a single line.");
  EXPECT_EQ(mpirun_trouble(failed(frame)).found, frame.substr(0, frame.size() - 1));
  EXPECT_TRUE(mpirun_trouble(failed("bash: line 1: orted: command not found\n" + frame +
                                    "ORTE was unable to reliably start one or more daemons.\n"))
                  .found.starts_with("orted, the daemon of Open MPI, is not in the PATH"));
  EXPECT_TRUE(
      mpirun_trouble(failed("[n1] ... connect() to 10.0.0.2 failed: No route to host (113)"))
          .advice.find("--interface NIC") != std::string::npos);
  EXPECT_EQ(mpirun_trouble(failed("")).found, "mpirun ended with 1");
  EXPECT_EQ(mpirun_trouble({.timed_out = true,
                            .output = "",
                            .errors = "some warning\n",
                            .trouble = "mpirun did not end within 12 s"})
                .found,
            "mpirun did not end within 12 s");
}

}  // namespace
}  // namespace tessera
