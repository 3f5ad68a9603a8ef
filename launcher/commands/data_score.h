#pragma once

#include <string>
#include <vector>

namespace tessera {

/// tessera data score: how hard the windows of a data set are.
int run_data_score(const std::vector<std::string>& arguments);

}  // namespace tessera
