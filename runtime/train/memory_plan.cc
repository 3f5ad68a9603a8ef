#include "runtime/train/memory_plan.h"

#include <iomanip>
#include <sstream>

#include "runtime/train/planned_rank.h"

namespace tessera {

MemoryPlan plan_memory(const TrainConfig& config, int rank) {
  return plan_rank(config, rank).memory;
}

std::string to_text(const MemoryPlan& plan) {
  std::ostringstream out;
  const auto line = [&](const char* what, int64_t bytes) {
    out << "  " << std::left << std::setw(18) << what << std::right << std::setw(10) << std::fixed
        << std::setprecision(3) << static_cast<double>(bytes) / (1 << 30) << " GiB\n";
  };
  out << "parameters: " << plan.model_parameters << ", of which one token meets "
      << plan.active_parameters << "\nmemory of rank " << plan.rank << ", which has "
      << plan.parameter_count << " of them:\n";
  line("parameters", plan.parameters);
  line("gradients", plan.gradients);
  line("optimizer", plan.optimizer);
  line("activations", plan.activations);
  line("communication", plan.communication);
  line("total", plan.total());
  line("batch, on host", plan.batch);
  line("snapshot, on host", plan.snapshot);
  return out.str();
}

}  // namespace tessera
