#include "launcher/host_check.h"
#include "launcher/shell.h"

#include <cstdlib>
#include <sstream>
#include <thread>

#include "kernels/core/error.h"
#include "launcher/network_interfaces.h"
#include "launcher/ssh.h"

namespace tessera {

namespace {

constexpr int kNoDirectory = 121;  // of our script, apart from the codes of shells and programs
constexpr CaptureLimits kPatience{.seconds = 30};

std::string fact(const HostFacts& facts, const std::string& name) {
  const auto found = facts.find(name);
  return found == facts.end() ? "none" : found->second;
}

// A host whose answer is judged: its name in front of every sentence.
class Judgement {
 public:
  Judgement(const std::string& host, HostFacts facts) : host_(host) {
    answer_.facts = std::move(facts);
  }

  template <class... Parts>
  HostAnswer refuse(HostState state, const Parts&... sentence) {
    answer_.state = state;
    answer_.why = concat("host ", host_, ": ", sentence...);
    return answer_;
  }
  template <class... Parts>
  void warn(const Parts&... sentence) {
    answer_.warnings.push_back(concat("host ", host_, ": ", sentence...));
  }
  HostAnswer fit() const { return answer_; }

 private:
  std::string host_;
  HostAnswer answer_;
};

// The last line of what ssh and the program said.
std::string last_words(const CapturedCommand& said) {
  std::istringstream lines(said.errors);
  std::string last;
  for (std::string line; std::getline(lines, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.empty()) last = line;
  }
  return last.empty() ? concat("exit code ", said.exit_code) : last;
}

bool has(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

// ssh itself has failed.
HostAnswer judge_connection(Judgement& host, const std::string& name, const std::string& said) {
  if (has(said, "Connection refused")) {
    return host.refuse(HostState::kAway, "refuses the connection (", said,
                       "); expected an ssh server that is running there");
  }
  if (has(said, "Permission denied")) {
    return host.refuse(HostState::kUnfit, "refuses the login (", said, "); expected one without a ",
                       "password: ssh-copy-id ", name, ", then try ssh ", name, " true");
  }
  if (has(said, "Host key verification failed") || has(said, "HOST IDENTIFICATION")) {
    return host.refuse(HostState::kUnfit, "its key is not the one that ssh knows, or ssh knows ",
                       "none (", said, "); look at it with ssh ", name, " true");
  }
  if (has(said, "Could not resolve hostname")) {
    return host.refuse(HostState::kUnfit, "has no address (", said,
                       "); correct --hosts, or add it ", "to the name service");
  }
  return host.refuse(HostState::kAway, "does not answer (", said, "); expected a login by ssh ",
                     "without a password");
}

// "eth0 (10.0.0.1), lo (127.0.0.1)" of "eth0=10.0.0.1 lo=127.0.0.1".
std::string listed(const std::string& interfaces) {
  std::string text;
  std::istringstream words(interfaces);
  for (std::string word; words >> word;) {
    const size_t equal = word.find('=');
    const std::string address = equal == std::string::npos ? "" : word.substr(equal + 1);
    text += concat(text.empty() ? "" : ", ", word.substr(0, equal), " (",
                   address.empty() ? "no address" : address, ")");
  }
  return text.empty() ? "none" : text;
}

std::string program_of(const HostFacts& facts) {
  return concat(fact(facts, "version"), ", file ", fact(facts, "binary").substr(0, 8));
}

// The following return what is wrong, or nothing.

std::string program_trouble(const HostFacts& facts, const HostExpectation& expected) {
  const HostFacts& own = expected.own;
  const auto differs = [&](const char* name) { return fact(facts, name) != fact(own, name); };
  if (differs("version") || differs("binary")) {
    return concat("has another program: ", expected.program, " there is ", program_of(facts),
                  "; expected ", program_of(own), ", as here; copy it there, or run it from a ",
                  "shared file system");
  }
  if (differs("mpi")) {
    return concat("has ", fact(facts, "mpi"), ", expected ", fact(own, "mpi"),
                  " as here; install the same version on all hosts");
  }
  if (fact(facts, "orted") == "none") {
    return "orted, the daemon of Open MPI, is not in the PATH of a login by ssh; install "
           "openmpi-bin there, or set PATH in the start file of its shell";
  }
  return "";
}

std::string interface_trouble(const HostFacts& facts, const std::string& wanted) {
  if (wanted.empty()) return "";
  const std::string interfaces = fact(facts, "interfaces");
  std::istringstream words(interfaces);
  for (std::string word; words >> word;) {
    if (!word.starts_with(wanted + "=")) continue;
    if (word.size() > wanted.size() + 1) return "";
    return concat("its network interface ", wanted, " has no IPv4 address; there are ",
                  listed(interfaces), "; correct --interface, or give it an address");
  }
  return concat("has no network interface ", wanted, " that is up; there are ", listed(interfaces),
                "; correct --interface, or bring it up");
}

std::string file_trouble(const HostFacts& facts, const HostExpectation& expected) {
  const HostFacts& own = expected.own;
  if (facts.count("config_error")) {
    return concat("the configuration cannot be read there: ", fact(facts, "config_error"));
  }
  if (fact(facts, "config") != fact(own, "config")) {
    return concat("has another configuration: ", fact(facts, "config").substr(0, 8), ", expected ",
                  fact(own, "config").substr(0, 8), " as here; use one file system for all hosts, ",
                  "or copy the file there");
  }
  if (fact(facts, "marker") != "seen") {
    return concat("the run directory ", expected.run_directory, " is not shared: it does not show ",
                  "there what was written to it here; set run_dir to a directory on a file system ",
                  "that all hosts have mounted");
  }
  if (facts.count("run_dir_error")) {
    return concat("the run directory ", expected.run_directory,
                  " cannot be written there: ", fact(facts, "run_dir_error"),
                  "; expected every host to write its part of the ",
                  "checkpoints; change its owner or its mode");
  }
  const std::string data = fact(facts, "data");
  if (data != fact(own, "data")) {
    return concat("the data set ", expected.data, " is ",
                  data == "none" ? "not there" : "another one there",
                  "; expected the same on all hosts; set data.path to a shared directory");
  }
  return "";
}

}  // namespace

HostAnswer judge_facts(const HostSlots& host, const HostFacts& facts,
                       const HostExpectation& expected) {
  Judgement judgement(host.name, facts);
  for (const std::string& trouble :
       {program_trouble(facts, expected), interface_trouble(facts, expected.interface),
        file_trouble(facts, expected)}) {
    if (!trouble.empty()) return judgement.refuse(HostState::kUnfit, trouble);
  }
  if (fact(facts, "remaining") != "0") {
    return judgement.refuse(HostState::kAway, fact(facts, "remaining"), " ranks of an earlier ",
                            "start are still there and cannot be killed; expected none; they may ",
                            "wait for a file server that is away, else start the host anew");
  }
  if (const int ended = std::atoi(fact(facts, "ended").c_str()); ended > 0) {
    judgement.warn("ended ", ended, " processes that an earlier start had left there");
  }
  if (const int cores = std::atoi(fact(facts, "cores").c_str()); cores < host.slots) {
    judgement.warn("has ", cores, " cores for ", host.slots, " ranks, which share them and are ",
                   "slow; give it at most ", cores, " slots");
  }
  return judgement.fit();
}

HostAnswer judge_ssh(const HostSlots& host, const CapturedCommand& said,
                     const HostExpectation& expected) {
  HostFacts facts = parse_facts(said.output);
  Judgement judgement(host.name, facts);
  const std::string words = last_words(said);
  if (said.timed_out) {
    return judgement.refuse(HostState::kAway, facts.empty() ? "does not answer" : "hangs",
                            " within ", kPatience.seconds, " s; expected some facts about it; see ",
                            "what ssh ", host.name, " true does, and its file systems");
  }
  if (said.exit_code == 255) return judge_connection(judgement, host.name, words);
  if (said.exit_code == kNoDirectory) {
    return judgement.refuse(HostState::kUnfit, "there is no directory ", expected.directory,
                            ", where the ranks have to start; begin in one that all hosts have");
  }
  if (said.exit_code == 127 && has(words, "shared librar")) {
    return judgement.refuse(HostState::kUnfit, "the program does not start there (", words,
                            "); install the packages that README.md names");
  }
  if (said.exit_code == 127) {
    return judgement.refuse(HostState::kUnfit, "the program is not there: ", expected.program,
                            "; expected the same file as here; copy it there, or run it from a ",
                            "shared file system");
  }
  const size_t version = said.output.find("tessera ");
  if (said.exit_code != 0 && facts.empty() && version != std::string::npos) {
    // It says its version, but does not know the question.
    facts["version"] = said.output.substr(version, said.output.find('\n', version) - version);
    if (facts["version"] != fact(expected.own, "version")) {
      facts["binary"] = "unknown";
      return judge_facts(host, facts, expected);
    }
  }
  if (said.exit_code != 0) {
    return judgement.refuse(HostState::kUnfit, expected.program, " does not run there: ", words,
                            "; expected it to run as it does here");
  }
  return judge_facts(host, facts, expected);
}

std::string host_script(const HostExpectation& expected, const HostQuestion& question) {
  std::vector<std::string> words{expected.program, "host-check",    "--launch", question.launch,
                                 "--marker",       question.marker, "--",       "train"};
  words.insert(words.end(), question.train.begin(), question.train.end());
  std::string libraries;
  if (const char* path = std::getenv("LD_LIBRARY_PATH"); path != nullptr && *path != '\0') {
    libraries = concat("export LD_LIBRARY_PATH=", shell_quoted(path), "; ");
  }
  return concat("cd ", shell_quoted(expected.directory), " || exit ", kNoDirectory, "; ", libraries,
                shell_quoted(expected.program), " --version && exec ", shell_line(words));
}

std::vector<HostAnswer> ask_hosts(const std::vector<HostSlots>& hosts, const HostQuestion& question,
                                  const HostExpectation& expected) {
  const std::string script = host_script(expected, question);
  std::vector<HostAnswer> answers(hosts.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < hosts.size(); ++i) {
    threads.emplace_back([&, i] {
      const HostSlots& host = hosts[i];
      answers[i] = is_this_host(host.name)
                       ? judge_facts(host, expected.own, expected)
                       : judge_ssh(host, capture_command(ssh_command(host.name, script), kPatience),
                                   expected);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return answers;
}

}  // namespace tessera
