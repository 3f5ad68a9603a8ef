#pragma once

#include <optional>

#include "launcher/doctor/machine.h"

namespace tessera {

/// What the control groups of this process, versions 1 and 2, allow: the least of all groups
/// around it. Nothing where there is no limit.
struct GroupLimits {
  std::optional<double> memory = {};  ///< bytes
  std::optional<double> used = {};    ///< bytes, of the group with the least memory
  std::optional<double> cores = {};   ///< of processor time
  int killed = 0;                     ///< processes ended because memory was full
};

GroupLimits group_limits(const Machine& machine);

}  // namespace tessera
