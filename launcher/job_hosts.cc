#include "launcher/job_hosts.h"

#include <algorithm>
#include <utility>

#include "kernels/core/error.h"
#include "kernels/core/log.h"
#include "launcher/placement.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

constexpr double kPause = 2;  // seconds before a host that does not answer is asked again

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += (text.empty() ? "" : "\n") + line;
  return text;
}

}  // namespace

JobHosts::JobHosts(const TrainConfig& config, std::vector<HostSlots> hosts, const JobSize& job,
                   Ask ask, Wait wait)
    : config_(config),
      hosts_(std::move(hosts)),
      job_(job),
      ask_(std::move(ask)),
      wait_(std::move(wait)) {}

std::vector<HostSlots> JobHosts::usable(bool unfit_may_mend) {
  answers_ = ask_(hosts_);
  const auto may_mend = [&](const HostAnswer& answer) {
    return answer.state == HostState::kAway ||
           (answer.state == HostState::kUnfit && unfit_may_mend);
  };
  std::vector<size_t> again;
  std::vector<HostSlots> asked;
  for (size_t i = 0; i < hosts_.size(); ++i) {
    if (!may_mend(answers_[i])) continue;
    again.push_back(i);
    asked.push_back(hosts_[i]);
  }
  if (!again.empty() && wait_(kPause)) {
    std::vector<HostAnswer> second = ask_(asked);
    for (size_t i = 0; i < again.size(); ++i) answers_[again[i]] = std::move(second[i]);
  }
  std::vector<HostSlots> fit;
  troubles_.clear();
  for (size_t i = 0; i < hosts_.size(); ++i) {
    for (const std::string& warning : answers_[i].warnings) {
      if (told_.insert(warning).second) log_line("warning: " + warning);
    }
    if (answers_[i].state == HostState::kFit) {
      fit.push_back(hosts_[i]);
    } else {
      troubles_.push_back(answers_[i].why);
    }
  }
  return fit;
}

std::optional<LifePlan> JobHosts::plan(const std::vector<HostSlots>& usable) {
  std::optional<LifePlan> plan = plan_life(config_, job_, usable);
  if (!plan) return {};
  for (size_t i = 0; i < hosts_.size(); ++i) {
    const auto same = [&](const HostSlots& host) { return host.name == hosts_[i].name; };
    if (std::any_of(plan->hosts.begin(), plan->hosts.end(), same)) {
      plan->facts.push_back(answers_[i].facts);
    }
  }
  return plan;
}

void JobHosts::tell_changes(const LifePlan& plan) {
  std::set<std::string> out;
  for (size_t i = 0; i < hosts_.size(); ++i) {
    const std::string& name = hosts_[i].name;
    if (answers_[i].state != HostState::kFit) {
      out.insert(name);
      log_line(concat(answers_[i].why, "; it is left out until it answers before a start"));
    } else if (left_out_.contains(name)) {
      log_line(concat("host ", name, ": is back"));
    }
  }
  left_out_ = std::move(out);
  const bool same = last_ && last_->hosts == plan.hosts && last_->mesh == plan.mesh;
  if (!same && (last_ || !left_out_.empty())) {
    log_line(concat(plan.ranks, " ranks on ", to_text(plan.hosts), ", with ",
                    plan.mesh ? concat("another mesh than the configuration's, as it had ",
                                       job_.ranks, ": ", to_string(*plan.mesh))
                              : std::string("the mesh of the configuration")));
  }
  if (!same) {
    const MeshShape shape = plan.mesh ? *plan.mesh : mesh_shape(config_.mesh(), plan.ranks);
    for (const std::string& warning : placement_warnings(plan.hosts, shape)) {
      if (told_.insert(warning).second) log_line("warning: " + warning);
    }
  }
  last_ = plan;
}

LifePlan JobHosts::first() {
  const std::vector<HostSlots> fit = usable(/*unfit_may_mend=*/false);
  const auto unfit = [](const HostAnswer& answer) { return answer.state == HostState::kUnfit; };
  const bool wrong = std::any_of(answers_.begin(), answers_.end(), unfit);
  const std::optional<LifePlan> life = wrong ? std::nullopt : plan(fit);
  if (!life) throw Error(wrong ? ExitCode::kUsage : ExitCode::kTryAgain, joined(troubles_));
  tell_changes(*life);
  return *life;
}

std::optional<LifePlan> JobHosts::next() {
  const std::vector<HostSlots> fit = usable(/*unfit_may_mend=*/true);
  const std::optional<LifePlan> life = plan(fit);
  if (life) {
    tell_changes(*life);
  } else {
    for (const std::string& trouble : troubles_) log_line(trouble);
    log_line(concat(fit.size(), " of ", hosts_.size(), " hosts can be used, with ", slots_of(fit),
                    " slots; expected ", job_.ranks, " slots, or --min-hosts = ", job_.least_hosts,
                    " hosts and a mesh for them"));
  }
  return life;
}

}  // namespace tessera
