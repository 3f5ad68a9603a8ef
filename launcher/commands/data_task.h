#pragma once

#include <string>
#include <vector>

namespace tessera {

/// tessera data task: a data set of a synthetic task. `arguments` are those behind "task".
int run_data_task(const std::vector<std::string>& arguments);

}  // namespace tessera
