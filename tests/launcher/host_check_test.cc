#include "launcher/host_check.h"
#include "launcher/shell.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "kernels/core/error.h"
#include "launcher/network_interfaces.h"
#include "launcher/rank_probe.h"
#include "launcher/ssh.h"

namespace tessera {
namespace {

HostFacts good_facts() {
  return {{"version", "tessera 1"},
          {"binary", "0123456789"},
          {"mpi", "Open MPI v4.1.4"},
          {"orted", "/usr/bin/orted"},
          {"cores", "8"},
          {"numa_domains", "2"},
          {"cores_of_a_domain", "4"},
          {"interfaces", "lo=127.0.0.1/8 eth0=10.0.0.2/24 eth1="},
          {"ended", "0"},
          {"remaining", "0"},
          {"config", "c0ffee"},
          {"data", "da7a"},
          {"marker", "seen"}};
}

HostExpectation expectation() {
  return {.own = good_facts(),
          .program = "/opt/tessera",
          .directory = "/jobs",
          .run_directory = "runs/a",
          .data = "data/web",
          .interface = "eth0"};
}

HostAnswer judge(const std::map<std::string, std::string>& changed) {
  HostFacts facts = good_facts();
  for (const auto& [name, value] : changed) facts[name] = value;
  return judge_facts({"n2", 8}, facts, expectation());
}

void expect(const HostAnswer& answer, HostState state, const std::string& why) {
  EXPECT_EQ(answer.state, state) << answer.why;
  EXPECT_EQ(answer.why, why);
}

TEST(HostCheck, AHostThatIsAsThisOneIsFit) {
  const HostAnswer answer = judge({});
  expect(answer, HostState::kFit, "");
  EXPECT_TRUE(answer.warnings.empty());
}

TEST(HostCheck, AnotherProgramIsNamed) {
  expect(judge({{"version", "tessera 2"}}), HostState::kUnfit,
         "host n2: has another program: /opt/tessera there is tessera 2, file 01234567; expected "
         "tessera 1, file 01234567, as here; copy it there, or run it from a shared file system");
  EXPECT_EQ(judge({{"binary", "1"}}).state, HostState::kUnfit);
  expect(judge({{"mpi", "Open MPI v5.0.0"}}), HostState::kUnfit,
         "host n2: has Open MPI v5.0.0, expected Open MPI v4.1.4 as here; install the same version "
         "on all hosts");
  EXPECT_EQ(judge({{"orted", "none"}}).state, HostState::kUnfit);
}

TEST(HostCheck, TheInterfaceHasToBeThereWithAnAddress) {
  expect(judge({{"interfaces", "lo=127.0.0.1/8 ib0=10.1.0.2/16"}}), HostState::kUnfit,
         "host n2: has no network interface eth0 that is up; there are lo (127.0.0.1/8), ib0 "
         "(10.1.0.2/16); correct --interface, or bring it up");
  expect(judge({{"interfaces", "eth0="}}), HostState::kUnfit,
         "host n2: its network interface eth0 has no IPv4 address; there are eth0 (no address); "
         "correct --interface, or give it an address");
  EXPECT_EQ(judge({{"interfaces", "eth00=10.0.0.2/24"}}).state, HostState::kUnfit);
}

TEST(HostCheck, FilesHaveToBeTheSame) {
  expect(
      judge({{"config", "bad"}}), HostState::kUnfit,
      "host n2: has another configuration: bad, expected c0ffee as here; use one file system for "
      "all hosts, or copy the file there");
  expect(judge({{"marker", "unseen"}}), HostState::kUnfit,
         "host n2: the run directory runs/a is not shared: it does not show there what was written "
         "to it here; set run_dir to a directory on a file system that all hosts have mounted");
  expect(judge({{"data", "none"}}), HostState::kUnfit,
         "host n2: the data set data/web is not there; expected the same on all hosts; set "
         "data.path to a shared directory");
  EXPECT_NE(judge({{"data", "1"}}).why.find("another one there"), std::string::npos);
  EXPECT_NE(judge({{"run_dir_error", "Read-only file system"}})
                .why.find("cannot be written there: "
                          "Read-only file system"),
            std::string::npos);
  EXPECT_NE(judge({{"config_error", "a.textproto does not exist"}})
                .why.find("cannot be read there: "
                          "a.textproto does"),
            std::string::npos);
}

TEST(HostCheck, RanksThatWereLeftAndFewCoresAreTold) {
  EXPECT_EQ(judge({{"remaining", "2"}}).state, HostState::kAway);
  const HostAnswer answer = judge({{"cores", "4"}, {"ended", "3"}});
  EXPECT_EQ(answer.state, HostState::kFit);
  EXPECT_EQ(
      answer.warnings,
      (std::vector<std::string>{
          "host n2: ended 3 processes that an earlier start had left there",
          "host n2: has 4 cores for 8 ranks, which share them and are slow; give it at most 4 "
          "slots"}));
}

HostAnswer after_ssh(int exit_code, const std::string& errors, const std::string& output = "") {
  CapturedCommand said;
  said.exit_code = exit_code;
  said.errors = errors;
  said.output = output;
  return judge_ssh({"n2", 8}, said, expectation());
}

TEST(HostCheck, SshSaysWhyAHostIsNotReached) {
  expect(after_ssh(255, "ssh: connect to host n2 port 22: Connection refused\r\n"),
         HostState::kAway,
         "host n2: refuses the connection (ssh: connect to host n2 port 22: Connection refused); "
         "expected an ssh server that is running there");
  EXPECT_EQ(after_ssh(255, "ssh: connect to host n2 port 22: No route to host").state,
            HostState::kAway);
  EXPECT_EQ(after_ssh(255, "root@n2: Permission denied (publickey).").state, HostState::kUnfit);
  EXPECT_EQ(after_ssh(255, "Host key verification failed.").state, HostState::kUnfit);
  EXPECT_EQ(after_ssh(255, "ssh: Could not resolve hostname n2: Name or service not known").state,
            HostState::kUnfit);
  CapturedCommand late;
  late.timed_out = true;
  EXPECT_EQ(judge_ssh({"n2", 8}, late, expectation()).state, HostState::kAway);
}

TEST(HostCheck, AProgramThatDoesNotRunIsToldApart) {
  expect(after_ssh(127, "sh: 1: /opt/tessera: not found"), HostState::kUnfit,
         "host n2: the program is not there: /opt/tessera; expected the same file as here; copy it "
         "there, or run it from a shared file system");
  const HostAnswer library = after_ssh(
      127, "/opt/tessera: error while loading shared libraries: libmpi.so.40: cannot open shared");
  EXPECT_NE(library.why.find("libmpi.so.40"), std::string::npos) << library.why;
  expect(after_ssh(121, "sh: cd: can't cd to /jobs"), HostState::kUnfit,
         "host n2: there is no directory /jobs, where the ranks have to start; begin in one that "
         "all hosts have");
  const HostAnswer old = after_ssh(2, "tessera: there is no command \"host-check\"", "tessera 0\n");
  EXPECT_NE(old.why.find("/opt/tessera there is tessera 0, file unknown; expected tessera 1"),
            std::string::npos)
      << old.why;
  // The same version, which is in trouble there.
  const HostAnswer trouble = after_ssh(2, "something is amiss", "tessera 1\n");
  EXPECT_NE(trouble.why.find("/opt/tessera does not run there: something is amiss"),
            std::string::npos)
      << trouble.why;
  EXPECT_NE(after_ssh(2, "tessera was built for processors with AVX-512").why.find("does not run"),
            std::string::npos);
}

TEST(HostCheck, TheScriptAsksInTheDirectoryOfTheRanks) {
  const std::string script =
      host_script(expectation(), {.launch = "1", .marker = ".m", .train = {"a b.textproto"}});
  EXPECT_NE(script.find("cd /jobs || exit 121; "), std::string::npos) << script;
  EXPECT_TRUE(
      script.ends_with("/opt/tessera --version && exec /opt/tessera host-check --launch 1 "
                       "--marker .m -- train 'a b.textproto'"))
      << script;
}

TEST(HostCheck, FactsTravelAsLines) {
  std::string output = "Welcome to n2!\ntessera-host\n";
  for (const auto& [name, value] : good_facts()) output += fact_line(name, value);
  output += fact_line("config_error", "a: wrong\nb: wrong");
  HostFacts expected = good_facts();
  expected["config_error"] = "a: wrong; b: wrong";
  EXPECT_EQ(parse_facts(output), expected);
}

TEST(HostCheck, HostsHaveCoresAndNetworksInCommon) {
  const HostFacts a = good_facts();
  HostFacts b = a;
  EXPECT_EQ(common_cpus({a, b}), (CpuTopology{8, 2, 4}));
  b["cores"] = "6";
  EXPECT_EQ(common_cpus({a, b}), (CpuTopology{6, 1, 6}));
  b["interfaces"] = "lo=127.0.0.1/8 eth0=10.0.0.3/24";
  EXPECT_EQ(common_interfaces({a, b}), "eth0 (10.0.0.0/24)");
  EXPECT_EQ(common_network({a, b}, {{"interfaces", "br0=10.0.0.254/24"}}, "eth0"), "10.0.0.0/24");
  EXPECT_EQ(common_network({a, b}, {{"interfaces", "br0=10.1.0.254/24"}}, "eth0"), "");
  b["interfaces"] = "eth0=10.2.0.3/24";
  EXPECT_EQ(common_interfaces({a, b}), "");
  EXPECT_EQ(common_network({a, b}, a, "eth0"), "");
  EXPECT_EQ(network_of("10.99.3.7/12"), "10.96.0.0/12");
  for (const char* wrong : {"", "10.0.0.1", "10.0.0.1/33", "10.0.0/8", "10.0.0.1/x", "10.0.0.1/"}) {
    EXPECT_EQ(network_of(wrong), "") << wrong;
  }
}

TEST(HostCheck, ThisHostIsKnownByNameAndAddress) {
  EXPECT_TRUE(is_this_host("localhost"));
  EXPECT_TRUE(is_this_host("127.0.0.1"));
  EXPECT_FALSE(is_this_host("192.0.2.77"));
}

TEST(Ssh, AShellReadsQuotedWordsBack) {
  const std::vector<std::string> words{"printf", "%s|",       "plain",   "", "two words",
                                       "it's",   "$HOME `x`", "a\\b\"c", "*"};
  const CapturedCommand said = capture_command({"sh", "-c", shell_line(words)});
  EXPECT_EQ(said.output, "plain||two words|it's|$HOME `x`|a\\b\"c|*|");
  EXPECT_EQ(shell_quoted("--set"), "--set");
  // The script goes through two shells: that of the login, and sh.
  const std::vector<std::string> ssh = ssh_command("a", shell_line(words));
  EXPECT_EQ(capture_command({"sh", "-c", ssh.back()}).output, said.output);
  EXPECT_EQ(ssh[ssh.size() - 2], "a");
}

TEST(RankProbe, SaysWhichHostCannotReachWhich) {
  CapturedCommand said;
  said.exit_code = 255;
  said.trouble = "mpirun ended with 255";
  EXPECT_EQ(explain_mpirun(said), "mpirun ended with 255");
  said.errors =
      "[[1,1],1][a.c:793:start_connect] from n2 to: n1 Unable to connect to the peer 10.77.1.1 on "
      "port 1025: Network is unreachable\n\nmore";
  EXPECT_EQ(explain_mpirun(said),
            "host n2 cannot reach host n1 at 10.77.1.1 (Network is unreachable)");
  // Two ranks have written at once.
  said.errors =
      "[[1,1],0][a.c:793:start_connect] from n1 [[1,1],1][a.c:793:start_connect] from n2 to: n3 "
      "Unable to connect to the peer 10.77.3.1 on port 1024: Network is unreachable\n"
      " to: n2 Unable to connect to the peer 10.77.2.1 on port 1024: Network is unreachable\n";
  EXPECT_EQ(explain_mpirun(said),
            "host n2 cannot reach host n3 at 10.77.3.1 (Network is unreachable)");
  said.errors = "-----\nNot enough\n  slots.\n------\n";
  EXPECT_EQ(explain_mpirun(said), "Not enough slots.");
}

// As when two hosts have one name, or one host two: the other's file is there.
TEST(HostFacts, AreToldBesideAnotherHostOfTheSameName) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / concat("tessera_host_facts_test_", getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "run.textproto")
      << "steps: 1 run_dir: \"" << folder.string() << "\" data { path: \"none\" }\n"
      << "model { vocabulary: 257 hidden: 32 layers: 1 heads: 2 kv_heads: 2 intermediate: 32 }\n"
      << "batch { sequences: 1 sequence_length: 16 } optimizer { learning_rate: 1e-3 }\n";
  std::ofstream(folder / ".marker");
  std::array<char, 256> name{};
  ASSERT_EQ(gethostname(name.data(), name.size() - 1), 0);
  std::ofstream(folder / concat(".marker.", name.data()));
  HostFacts facts;
  tell_host_facts({.launch = "none but this test",
                   .marker = ".marker",
                   .train = {(folder / "run.textproto").string()}},
                  [&](const std::string& fact, const std::string& value) { facts[fact] = value; });
  EXPECT_EQ(facts["config_error"], "");
  EXPECT_EQ(facts["marker"], "seen");
  EXPECT_EQ(facts["run_dir_error"], "");
  EXPECT_EQ(std::filesystem::remove_all(folder), 4u) << "a file was left in the run directory";
}

}  // namespace
}  // namespace tessera
