#include "launcher/job_hosts.h"

#include <gtest/gtest.h>

#include "tests/model/tiny_model.h"

namespace tessera {
namespace {

using Hosts = std::vector<HostSlots>;

/// Hosts a, b and c of two slots. Their states are set by the test.
struct Cluster {
  TrainConfig config =
      support::tiny_config({"batch.sequences=12", "batch.micro_sequences=1", "mesh.data=0"});
  std::map<std::string, HostState> states{
      {"a", HostState::kFit}, {"b", HostState::kFit}, {"c", HostState::kFit}};
  std::vector<size_t> asked;               // how many hosts, each time
  std::map<std::string, HostState> later;  // after a pause

  JobHosts hosts(int ranks, int least_hosts) {
    return {config,
            {{"a", 2}, {"b", 2}, {"c", 2}},
            {.ranks = ranks, .least_hosts = least_hosts},
            [this](const Hosts& hosts) {
              asked.push_back(hosts.size());
              std::vector<HostAnswer> answers;
              for (const HostSlots& host : hosts) {
                const bool fit = states.at(host.name) == HostState::kFit;
                answers.push_back({.state = states.at(host.name),
                                   .why = fit ? "" : "host " + host.name + ": is not well",
                                   .facts = {{"cores", host.name}}});
              }
              return answers;
            },
            [this](double) {
              for (const auto& [name, state] : later) states[name] = state;
              return true;
            }};
  }
};

ExitCode refusal(JobHosts& hosts, std::string* why) {
  try {
    (void)hosts.first();
  } catch (const Error& error) {
    *why = error.what();
    return error.code();
  }
  ADD_FAILURE() << "it started";
  return ExitCode::kFinished;
}

TEST(JobHosts, AllHostsMakeTheWholeJob) {
  Cluster cluster;
  const LifePlan life = cluster.hosts(6, 3).first();
  EXPECT_EQ(life.hosts, (Hosts{{"a", 2}, {"b", 2}, {"c", 2}}));
  EXPECT_FALSE(life.mesh);
  EXPECT_EQ(life.facts.size(), 3u);
  EXPECT_EQ(cluster.asked, (std::vector<size_t>{3}));
}

TEST(JobHosts, AnUnfitHostStopsTheFirstStart) {
  Cluster cluster;
  cluster.states["b"] = HostState::kUnfit;
  cluster.states["c"] = HostState::kAway;
  JobHosts hosts = cluster.hosts(6, 1);
  std::string why;
  EXPECT_EQ(refusal(hosts, &why), ExitCode::kUsage);
  EXPECT_EQ(why, "host b: is not well\nhost c: is not well");
}

TEST(JobHosts, AHostThatIsAwayIsAskedTwice) {
  Cluster cluster;
  cluster.states["b"] = HostState::kAway;
  JobHosts hosts = cluster.hosts(6, 3);
  std::string why;
  EXPECT_EQ(refusal(hosts, &why), ExitCode::kTryAgain);
  EXPECT_EQ(cluster.asked, (std::vector<size_t>{3, 1}));
  cluster.later["b"] = HostState::kFit;
  EXPECT_EQ(hosts.first().ranks, 6);
}

TEST(JobHosts, ALostHostIsLeftOutAndTakenBack) {
  Cluster cluster;
  JobHosts hosts = cluster.hosts(6, 2);
  EXPECT_EQ(hosts.first().ranks, 6);
  cluster.states["b"] = HostState::kUnfit;  // it answers, but its disks are not there yet
  const auto fewer = hosts.next();
  ASSERT_TRUE(fewer);
  EXPECT_EQ(fewer->hosts, (Hosts{{"a", 2}, {"c", 2}}));
  ASSERT_TRUE(fewer->mesh);
  EXPECT_EQ(fewer->mesh->ranks(), 4);
  EXPECT_EQ(fewer->facts[1].at("cores"), "c");
  cluster.states["c"] = HostState::kAway;
  EXPECT_FALSE(hosts.next()) << "one host is too few";
  cluster.states["b"] = cluster.states["c"] = HostState::kFit;
  const auto all = hosts.next();
  ASSERT_TRUE(all);
  EXPECT_EQ(all->ranks, 6);
  EXPECT_FALSE(all->mesh);
}

TEST(JobHosts, ASpareHostTakesThePlaceOfALostOne) {
  Cluster cluster;
  JobHosts hosts = cluster.hosts(4, 3);
  EXPECT_EQ(hosts.first().hosts, (Hosts{{"a", 2}, {"b", 2}}));
  cluster.states["a"] = HostState::kAway;
  const auto life = hosts.next();
  ASSERT_TRUE(life);
  EXPECT_EQ(life->hosts, (Hosts{{"b", 2}, {"c", 2}}));
  EXPECT_FALSE(life->mesh) << "as many ranks: the same mesh, and the same bits";
}

}  // namespace
}  // namespace tessera
