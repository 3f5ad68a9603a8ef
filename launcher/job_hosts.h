#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "launcher/host_check.h"
#include "launcher/life_plan.h"

namespace tessera {

/// The hosts of a job over its lives: asks them before each, leaves out those that are lost, takes
/// them back when they answer again, and says each of that in one line of the log.
class JobHosts {
 public:
  /// How hosts are asked; one answer each, in their order.
  using Ask = std::function<std::vector<HostAnswer>(const std::vector<HostSlots>&)>;
  /// Seconds; false: asked to stop meanwhile.
  using Wait = std::function<bool(double)>;

  /// `config` stays with the caller.
  JobHosts(const TrainConfig& config, std::vector<HostSlots> hosts, const JobSize& job, Ask ask,
           Wait wait);

  /// The first life. Throws kUsage when a host is unfit: with a sentence for each such host; and
  /// kTryAgain when too many do not answer, after they were asked twice.
  LifePlan first();
  /// A later life: hosts that are unfit now are left out, too, as one whose file systems are not
  /// mounted yet. Nothing when too few are left.
  std::optional<LifePlan> next();

 private:
  /// Those that can be used. What is wrong with the others comes to `troubles_`.
  std::vector<HostSlots> usable(bool unfit_may_mend);
  std::optional<LifePlan> plan(const std::vector<HostSlots>& usable);
  void tell_changes(const LifePlan& plan);

  const TrainConfig& config_;
  std::vector<HostSlots> hosts_;
  JobSize job_;
  Ask ask_;
  Wait wait_;
  std::vector<HostAnswer> answers_;  ///< the last ones
  std::vector<std::string> troubles_;
  std::set<std::string> left_out_;  ///< of the last life
  std::set<std::string> told_;      ///< warnings
  std::optional<LifePlan> last_;
};

}  // namespace tessera
