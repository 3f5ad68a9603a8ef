#pragma once

#include <string>
#include <vector>

namespace tessera {

class TrainConfig;

/// What two resolved configurations say differently, in the order of their fields, each as
/// "model.rope_base: 10000 -> 500". Where the run lies, run_dir, is not compared.
std::vector<std::string> config_differences(const TrainConfig& before, const TrainConfig& now);

}  // namespace tessera
