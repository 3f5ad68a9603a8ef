#pragma once

#include <memory>
#include <string>
#include <vector>

namespace tessera {

class TrainConfig;

/// The configuration that `tessera train` would read with these arguments, resolved and checked but
/// for its mesh; nullptr when they ask for --help. Throws kUsage.
std::unique_ptr<TrainConfig> config_of_train(const std::vector<std::string>& arguments);

}  // namespace tessera
