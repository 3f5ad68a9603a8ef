#include "launcher/doctor/hosts_check.h"

#include <gtest/gtest.h>

#include "tests/launcher/doctor/text_machine.h"

namespace tessera {
namespace {

using support::about;
using support::TextMachine;

Program program(const std::string& digest = "0123456789abcdef") {
  Program made;
  made.version = "tessera 1.0";
  made.path = "/opt/tessera";
  made.digest = digest;
  made.mpi = "Open MPI v4.1.4";
  return made;
}

HostCheckup host(const std::string& name, const Findings& findings = {}) {
  return {.host = {name, 8},
          .checkup = Checkup{.host = name,
                             .program = program(),
                             .numbers = {{"cores", 16}, {"mtu eth0", 1500}},
                             .findings = findings}};
}

TEST(CheckupJson, ComesBack) {
  Checkup checkup = *host("a").checkup;
  checkup.findings = {{Verdict::kWarn, "limits", "with \"quotes\", \xff and \n", "do it", "a, b"},
                      {Verdict::kOk, "mpi", "well"},
                      {Verdict::kFail, "pairs", "none"}};
  const std::string line = to_json(checkup);
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const auto back = checkup_from("Welcome to a!\n" + line + "\nbye\n");
  ASSERT_TRUE(back);
  EXPECT_EQ(back->host, "a");
  EXPECT_EQ(back->program.digest, checkup.program.digest);
  EXPECT_EQ(back->numbers, checkup.numbers);
  ASSERT_EQ(back->findings.size(), 3u);
  EXPECT_EQ(back->findings[0].verdict, Verdict::kWarn);
  EXPECT_EQ(back->findings[0].advice, "do it");
  EXPECT_EQ(back->findings[1], checkup.findings[1]);
  EXPECT_EQ(back->findings[2], checkup.findings[2]);
}

TEST(CheckupJson, NonsenseIsNoCheckup) {
  for (const char* text : {"", "hello", "{\"host\"", "[1]", "{\"host\": }"}) {
    EXPECT_FALSE(checkup_from(text)) << text;
  }
  const auto odd =
      checkup_from("{\"host\":5,\"program\":[],\"numbers\":3,\"findings\":[1,{\"verdict\":7}]}");
  ASSERT_TRUE(odd);
  EXPECT_EQ(odd->host, "");
}

TEST(HostsCheck, TheCommandTakesTheSettingsOfMpiAlong) {
  const std::vector<std::string> words =
      host_command("a", program(), {"OMPI_MCA_btl_tcp_if_include=eth0"},
                   {.run_directory = "/my runs", .marker = "", .interface = "eth0"});
  EXPECT_EQ(words.front(), "ssh");
  EXPECT_NE(words.back().find("env OMPI_MCA_btl_tcp_if_include=eth0 /opt/tessera doctor host"),
            std::string::npos)
      << words.back();
}

TEST(HostsCheck, AnswersOfSsh) {
  const auto why = [](int code, const std::string& errors) {
    const HostCheckup answer = judge_answer(
        {"a", 8}, {.exit_code = code, .output = "", .errors = errors, .trouble = "it"});
    EXPECT_FALSE(answer.checkup);
    EXPECT_EQ(answer.trouble.hosts, "a");
    EXPECT_EQ(answer.trouble.verdict, Verdict::kFail);
    EXPECT_FALSE(answer.trouble.advice.empty());
    return answer.trouble.found;
  };
  EXPECT_EQ(why(255, "ssh: connect to host a port 22: Connection refused\r\n"),
            "it refuses ssh (ssh: connect to host a port 22: Connection refused)");
  EXPECT_TRUE(why(255, "ssh: Could not resolve hostname a: Name or service not known")
                  .starts_with("its name is not known"));
  EXPECT_TRUE(why(255, "a: Permission denied (publickey).").starts_with("ssh wants a password"));
  EXPECT_TRUE(why(127, "env: '/opt/tessera': No such file or directory")
                  .starts_with("the program is not there (env: "));
  EXPECT_TRUE(why(2, "tessera: there is no command \"doctor\"").starts_with("it has an older"));
  EXPECT_TRUE(why(1, "").starts_with("it does not tell"));
  const HostCheckup good = judge_answer({"a", 8}, {.exit_code = 1,
                                                   .output = to_json(*host("a").checkup),
                                                   .errors = "",
                                                   .trouble = "ended with 1"});
  EXPECT_TRUE(good.checkup) << "a check that fails is an answer";
}

TEST(HostsCheck, EqualHosts) {
  const Findings findings = compare_hosts({host("a"), host("b")}, program());
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(about(findings, "program"),
            "ok the same everywhere: tessera 1.0, file 01234567, /opt/tessera");
}

TEST(HostsCheck, WhatDiffersIsNamed) {
  HostCheckup other = host("b");
  other.checkup->program.digest = "fedcba9876543210";
  EXPECT_TRUE(about(compare_hosts({host("a"), other}, program()), "program")
                  .starts_with("fail not the same everywhere: here tessera 1.0, file 01234567; a: "
                               "file 01234567; b: file fedcba98 -> copy /opt/tessera"));
  other = host("b");
  other.checkup->program.version = "tessera 0.9";
  EXPECT_NE(about(compare_hosts({host("a"), other}, program()), "program").find("b: tessera 0.9, "),
            std::string::npos);
  other = host("b");
  other.checkup->program.mpi = "Open MPI v5.0.0";
  EXPECT_TRUE(about(compare_hosts({host("a"), other}, program()), "mpi")
                  .starts_with("fail not the same everywhere: here Open MPI v4.1.4; "));
  other = host("b");
  other.checkup->numbers["mtu eth0"] = 9000;
  EXPECT_TRUE(about(compare_hosts({host("a"), other}, program()), "mtu")
                  .starts_with("warn mtu eth0 is not the same everywhere: a: 1500; b: 9000"));
  other = host("b");
  other.checkup->host = "a";
  EXPECT_TRUE(about(compare_hosts({host("a"), other}, program()), "hosts")
                  .starts_with("warn a and b are one and the same host"));
  other = host("b");
  other.host.slots = 17;
  EXPECT_TRUE(about(compare_hosts({host("a"), other}, program()), "slots")
                  .starts_with("warn 17 ranks would share 16 processors"));
}

TEST(HostsCheck, HostsThatDoNotAnswerAreNamedAndTheOthersCompared) {
  HostCheckup gone{.host = {"c", 8}};
  gone.trouble = {Verdict::kFail, "ssh", "it does not answer", "look", "c"};
  const Findings findings = compare_hosts({host("a"), gone, host("b")}, program());
  EXPECT_EQ(about(findings, "ssh"), "fail it does not answer -> look");
  EXPECT_TRUE(about(findings, "program").starts_with("ok"));
  EXPECT_EQ(compare_hosts({gone}, program()).size(), 1u);
}

TEST(HostsCheck, FindingsAreToldOnce) {
  const Findings one{{Verdict::kOk, "memory", "25 GB"},
                     {Verdict::kOk, "network", "eth0 10.0.0.1"},
                     {Verdict::kOk, "network", "eth1 10.1.0.1"}};
  Findings other{{Verdict::kOk, "memory", "25 GB"},
                 {Verdict::kWarn, "memory", "full", "end what fills it"},
                 {Verdict::kOk, "network", "eth0 10.0.0.2"},
                 {Verdict::kOk, "network", "eth1 10.1.0.2"}};
  EXPECT_EQ(lines_of(gathered({host("a", one), host("b", other), {.host = {"c", 1}}})),
            "ok    memory   [all] 25 GB\n"
            "warn  memory   [b] full -> end what fills it\n"
            "ok    network  [all] eth0 10.0.0.1 (on a; like it on the others)\n"
            "ok    network  [all] eth1 10.1.0.1 (on a; like it on the others)\n"
            "3 ok, 1 warning, 0 failures\n");
}

TEST(HostsCheck, ThisHostNeedsNoSsh) {
  TextMachine machine;
  machine.says("/opt/tessera doctor host /runs  ", to_json(*host("me").checkup));
  const std::vector<HostCheckup> answers = check_hosts(
      machine, program(), {{"localhost", 2}, {"far.away", 2}}, {.run_directory = "/runs"});
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_TRUE(answers[0].checkup);
  EXPECT_FALSE(answers[1].checkup) << "ssh is not installed on a machine of texts";
}

}  // namespace
}  // namespace tessera
