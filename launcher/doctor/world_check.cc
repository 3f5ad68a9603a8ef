#include "launcher/doctor/world_check.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>

#include "kernels/core/error.h"
#include "launcher/doctor/mpirun_trouble.h"
#include "launcher/doctor/pair_probe.h"
#include "launcher/doctor/words.h"
#include "launcher/mpirun.h"

namespace tessera {

namespace {

constexpr double kSlowShared = 2e8;           // bytes per second between ranks of one host
constexpr double kSkewWarn = 0.5;             // seconds
constexpr double kSkewFail = 60;              // munge refuses credentials after 300
constexpr double kUnevenLatency = 5;          // times the median
constexpr double kNoticeable = 200e-6;        // seconds
constexpr double kUnevenBandwidth = 1.0 / 3;  // of the fastest pair
constexpr double kUnusedNetwork = 0.1;

std::string rate_text(double rate) {
  return bytes_text(rate) + "/s";
}

std::string figures_text(const PairFigures& figures) {
  return concat(seconds_text(figures.latency), ", ", rate_text(figures.bandwidth), " each way");
}

std::string names_of(const PairResult& pair) {
  return concat(pair.first, " and ", pair.second);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

std::vector<std::string> world_command(const WorldQuestion& question) {
  MpirunOptions options{.ranks = question.ranks, .bind = false, .root = question.root};
  for (const std::string& host : question.hosts)
    options.hosts.push_back({.name = host, .slots = 1});
  if (!options.hosts.empty()) options.ranks = static_cast<int>(options.hosts.size());
  std::vector<std::string> words = mpirun_command(options, {question.program, "doctor", "pairs"});
  // It tells more of what goes wrong when it is not quiet.
  words.erase(std::remove(words.begin(), words.end(), "-q"), words.end());
  // Ranks that wait leave the processor to those that work, where it is not theirs alone.
  std::vector<std::string> more{"--mca", "mpi_yield_when_idle", "1"};
  const auto set = [&](const char* name, const std::string& value) {
    more.insert(more.end(), {"--mca", name, value});
  };
  if (!question.interface.empty()) set("btl_tcp_if_include", question.interface);
  // In a job of Slurm mpirun would place ranks on its other hosts.
  if (question.hosts.empty()) set("ras", "^slurm");
  words.insert(words.begin() + 1, more.begin(), more.end());
  return words;
}

double world_patience(const WorldQuestion& question) {
  // What a start takes, a little for each host, and what the slowest pairs take.
  const auto hosts = static_cast<int>(question.hosts.size());
  return 8 + 0.2 * hosts + 1.5 * rounds_of(hosts);
}

Findings judge_world(const CapturedCommand& said) {
  const std::vector<PairResult> pairs = parse_pairs(said.output);
  if (!said.ok() || pairs.empty() || !pairs.front().measured) {
    const MpirunTrouble trouble = mpirun_trouble(said);
    return {{Verdict::kFail, "world", concat("two ranks on this host: ", trouble.found),
             trouble.advice}};
  }
  const PairFigures& figures = pairs.front().figures;
  const std::string found = concat("two ranks on this host: ", figures_text(figures));
  if (figures.bandwidth < kSlowShared) {
    return {{Verdict::kWarn, "world", concat(found, ", slower than shared memory"),
             "is the host busy, or OMPI_MCA_btl set? vader is what ranks of one host use"}};
  }
  return {{Verdict::kOk, "world", found}};
}

namespace {

bool is_of(const PairResult& pair, const std::string& host) {
  return pair.first == host || pair.second == host;
}

// A host that all of these pairs have, or both hosts of the first.
std::string culprit(const std::vector<PairResult>& pairs) {
  for (const std::string& host : {pairs.front().first, pairs.front().second}) {
    const bool in_all = std::all_of(pairs.begin(), pairs.end(),
                                    [&](const PairResult& pair) { return is_of(pair, host); });
    if (in_all && pairs.size() > 1) return host;
  }
  return names_of(pairs.front());
}

Finding judge_latency_and_bandwidth(const std::vector<PairResult>& pairs, double network) {
  std::vector<double> latencies;
  std::vector<double> rates;
  for (const PairResult& pair : pairs) {
    latencies.push_back(pair.figures.latency);
    rates.push_back(pair.figures.bandwidth);
  }
  const auto slower = [](const PairResult& a, const PairResult& b) {
    return a.figures.bandwidth < b.figures.bandwidth;
  };
  const auto later = [](const PairResult& a, const PairResult& b) {
    return a.figures.latency < b.figures.latency;
  };
  const PairResult& slowest = *std::min_element(pairs.begin(), pairs.end(), slower);
  const PairResult& latest = *std::max_element(pairs.begin(), pairs.end(), later);
  const double fastest = *std::max_element(rates.begin(), rates.end());
  const std::string found =
      pairs.size() == 1 ? concat(names_of(slowest), ": ", figures_text(slowest.figures))
                        : concat(pairs.size(), " pairs, median ", seconds_text(median(latencies)),
                                 ", ", rate_text(median(rates)), " each way; slowest ",
                                 names_of(slowest), ": ", figures_text(slowest.figures));
  std::vector<PairResult> slow;
  std::copy_if(pairs.begin(), pairs.end(), std::back_inserter(slow), [&](const PairResult& pair) {
    return pair.figures.bandwidth < kUnevenBandwidth * fastest;
  });
  if (!slow.empty()) {
    return {Verdict::kWarn, "pairs", concat(found, ", fastest ", rate_text(fastest)),
            concat("look at ", culprit(slow), ": cable, switch port, load")};
  }
  if (latest.figures.latency > kNoticeable &&
      latest.figures.latency > kUnevenLatency * median(latencies)) {
    return {Verdict::kWarn, "pairs",
            concat(found, "; ", names_of(latest), " take ", seconds_text(latest.figures.latency)),
            concat("look at the load of ", names_of(latest), ", and at the way between them")};
  }
  if (network > 0 && fastest < kUnusedNetwork * network) {
    return {Verdict::kWarn, "pairs",
            concat(found, "; the fastest interface is made for ", rate_text(network)),
            "does MPI use another one? --interface NIC names it"};
  }
  return {Verdict::kOk, "pairs", found};
}

// How far the clock of each host is ahead of the others': of its pairs, the one that is in the
// middle by size, so that a host is not blamed for one other that is wrong.
std::map<std::string, double> clocks_of(const std::vector<PairResult>& pairs) {
  std::map<std::string, std::vector<double>> ahead;
  for (const PairResult& pair : pairs) {
    ahead[pair.first].push_back(-pair.figures.skew);
    ahead[pair.second].push_back(pair.figures.skew);
  }
  std::map<std::string, double> clocks;
  for (auto& [host, all] : ahead) {
    std::sort(all.begin(), all.end(), [](double a, double b) { return std::abs(a) < std::abs(b); });
    clocks[host] = all[(all.size() - 1) / 2];
  }
  return clocks;
}

Finding judge_clocks(const std::vector<PairResult>& pairs) {
  double known = 0;  // a skew is known to half a round trip
  for (const PairResult& pair : pairs) known = std::max(known, pair.figures.latency);
  const std::map<std::string, double> clocks = clocks_of(pairs);
  const auto& [host, ahead] = *std::max_element(
      clocks.begin(), clocks.end(),
      [](const auto& a, const auto& b) { return std::abs(a.second) < std::abs(b.second); });
  const double skew = std::abs(ahead);
  if (skew <= known) return {Verdict::kOk, "clocks", "agree within " + seconds_text(known)};
  const PairResult& one = pairs.front();
  const std::string other = clocks.size() > 2   ? "the others"
                            : one.first == host ? one.second
                                                : one.first;
  const std::string found =
      concat(host, " is ", seconds_text(skew), ahead > 0 ? " ahead of " : " behind ", other);
  const char* advice = "start chronyd or ntpd on all hosts (timedatectl shows whether it works)";
  if (skew > kSkewFail) {
    return {Verdict::kFail, "clocks", concat(found, ": Slurm's credentials are refused"), advice};
  }
  if (skew > kSkewWarn) {
    return {Verdict::kWarn, "clocks", concat(found, ": logs and file times cannot be compared"),
            advice};
  }
  return {Verdict::kOk, "clocks", found};
}

}  // namespace

Findings judge_pairs(const CapturedCommand& said, size_t hosts, double network) {
  std::vector<PairResult> pairs = parse_pairs(said.output);
  std::vector<std::string> silent;
  for (const PairResult& pair : pairs) {
    if (!pair.measured) silent.push_back(names_of(pair));
  }
  const size_t all = hosts * (hosts - 1) / 2;
  std::erase_if(pairs, [](const PairResult& pair) { return !pair.measured; });
  Findings findings;
  if (!silent.empty()) {
    findings.push_back({Verdict::kFail, "pairs",
                        concat("MPI gets nothing through between ", listed(silent), " (",
                               pairs.size(), " of ", all, " pairs were measured before)"),
                        "name the interface that connects all hosts (--interface NIC, and then "
                        "export OMPI_MCA_btl_tcp_if_include=NIC), and open the ports of the hosts "
                        "for each other"});
  } else if (!said.ok() || pairs.size() != all) {
    const MpirunTrouble trouble = mpirun_trouble(said);
    findings.push_back({Verdict::kFail, "pairs",
                        concat("mpirun over ", hosts, " hosts: ", trouble.found), trouble.advice});
  }
  if (!pairs.empty()) {
    if (findings.empty()) findings.push_back(judge_latency_and_bandwidth(pairs, network));
    findings.push_back(judge_clocks(pairs));
  }
  return findings;
}

}  // namespace tessera
