#include "runtime/train/mesh_search.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <utility>

#include "model/sparsity_budget.h"
#include "runtime/config/config.h"
#include "runtime/config/train.pb.h"
#include "runtime/config/validate.h"
#include "runtime/config/wording.h"
#include "runtime/train/flops.h"
#include "runtime/train/global_batch.h"
#include "runtime/train/mesh_plan.h"
#include "runtime/train/schedule.h"

namespace tessera {

namespace {

// Peak rates times 0.4 for arithmetic and 0.7 for links, which large training jobs reach. The cpu
// is a core of a server.
constexpr std::array kHardware = std::to_array<Hardware>({
    {"h200", 141e9, 0.4 * 989e12, 0.7 * 450e9, 0.7 * 50e9},
    {"h100", 80e9, 0.4 * 989e12, 0.7 * 450e9, 0.7 * 50e9},
    {"a100", 80e9, 0.4 * 312e12, 0.7 * 300e9, 0.7 * 25e9},
    {"cpu", 8e9, 50e9, 4e9, 1e9},
});

TrainConfig with_mesh(const TrainConfig& config, const MeshShape& shape) {
  TrainConfig changed = config;
  MeshConfig& mesh = *changed.mutable_mesh();
  mesh.set_data(shape.data);
  mesh.set_expert(shape.expert);
  mesh.set_sequence(shape.sequence);
  mesh.set_tensor(shape.tensor);
  return changed;
}

std::vector<MeshShape> shapes_of(int ranks, int node_ranks) {
  std::vector<MeshShape> shapes;
  for (int tensor = 1; tensor <= std::min(ranks, node_ranks); ++tensor) {
    if (ranks % tensor != 0 || (ranks > node_ranks && node_ranks % tensor != 0)) continue;
    for (int sequence = 1; sequence <= ranks / tensor; ++sequence) {
      if (ranks / tensor % sequence != 0) continue;
      const int batch = ranks / tensor / sequence;
      for (int expert = 1; expert <= batch; ++expert) {
        if (batch % expert == 0) shapes.push_back({batch / expert, expert, sequence, tensor});
      }
    }
  }
  return shapes;
}

/// Experts may be split only where there are some.
bool is_allowed(const TrainConfig& config, const MeshShape& shape) {
  return (shape.expert == 1 || config.model().has_moe()) &&
         validate_mesh(with_mesh(config, shape)).empty();
}

std::vector<MeshShape> allowed_shapes(const TrainConfig& config, int ranks, int node_ranks) {
  std::vector<MeshShape> shapes = shapes_of(ranks, node_ranks);
  std::erase_if(shapes, [&](const MeshShape& shape) { return !is_allowed(config, shape); });
  return shapes;
}

[[noreturn]] void refuse(const TrainConfig& config, int ranks, const Hardware& hardware) {
  const int fewer = most_feasible_ranks(config, ranks - 1, hardware);
  std::string nearest = fewer > 0 ? concat(fewer) : "";
  for (int more = ranks + 1; more <= 2 * ranks; ++more) {
    if (allowed_shapes(config, more, hardware.node_ranks).empty()) continue;
    nearest += concat(nearest.empty() ? "" : " or ", more);
    break;
  }
  throw Error(ExitCode::kUsage,
              concat("no mesh of ", ranks, " ranks divides this model and its batch of ",
                     config.batch().sequences(), " sequences",
                     nearest.empty() ? "" : "; the nearest numbers of ranks are " + nearest));
}

/// Work of the rank that has most over that of the mean rank: attention, by heads and by tokens.
double attention_balance(const TrainConfig& config, const StepPlan& plan) {
  const ModelConfig& model = config.model();
  const MeshConfig& mesh = config.mesh();
  const int64_t groups = global_groups(model);
  const double local = static_cast<double>(model.kv_heads() - groups) *
                       static_cast<double>(model.heads()) / model.kv_heads();
  const double share = local / model.heads();
  const double most_heads = std::ceil(local / mesh.tensor()) * mesh.tensor();
  const double by_heads = local > 0 ? share * most_heads / local + (1 - share) : 1;
  // Causal and contiguous: the last of P parts sees (2 P - 1) / P times the mean number of keys.
  const bool zigzag = mesh.sequence_order() == MeshConfig::ZIGZAG;
  const bool everything = plan.window >= size_of(config, plan).sequence_length;
  const double parts = mesh.sequence();
  const double by_tokens = everything && !zigzag ? (2 * parts - 1) / parts : 1;
  return by_heads * by_tokens;
}

double compute_seconds(const TrainConfig& config, const StepPlan& plan, int ranks,
                       int64_t active_parameters, double flops) {
  const double linear = 6 * static_cast<double>(active_parameters);
  const double all = flops_per_token(config, plan, active_parameters);
  const double of_token = linear + (all - linear) * attention_balance(config, plan);
  // Recomputation is a second forward, one third of forward and backward.
  const double again = config.runtime().recompute() == RuntimeConfig::BLOCK ? 4.0 / 3 : 1;
  const auto tokens = static_cast<double>(size_of(config, plan).tokens());
  return of_token * again * tokens / ranks / flops;
}

double exchange_seconds(const StepTraffic& step, const Hardware& hardware) {
  double seconds = 0;
  for (const GroupTraffic& group : step.groups) {
    const bool in_node = hardware.node_ranks % group.block == 0;
    const auto bytes = static_cast<double>(std::max(group.traffic.sent, group.traffic.received));
    seconds += bytes / (in_node ? hardware.node_link : hardware.network);
  }
  return seconds;
}

/// Of all steps, those in the tuning stage.
double sparse_share(const TrainConfig& config) {
  const SparsityConfig& sparsity = config.sparsity();
  const int64_t before = sparsity.dense_steps() + sparsity.transition_steps();
  return static_cast<double>(std::max<int64_t>(0, config.steps() - before)) /
         static_cast<double>(std::max<int64_t>(1, config.steps()));
}

void weigh(const TrainConfig& config, const Hardware& hardware, MeshChoice& choice) {
  const double sparse = sparse_share(config);
  const std::vector<StepTraffic> steps = first_and_last(choice.largest.steps);
  choice.compute = choice.exchange = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    const double weight = steps.size() == 1 ? 1 : (i == 0 ? 1 - sparse : sparse);
    choice.compute +=
        weight * compute_seconds(config, plan_step(config, steps[i].step), choice.shape.ranks(),
                                 choice.largest.memory.active_parameters, hardware.flops);
    choice.exchange += weight * exchange_seconds(steps[i], hardware);
  }
  choice.fits =
      static_cast<double>(choice.largest.memory.total()) <= kUsableMemory * hardware.memory;
}

bool is_better(const MeshChoice& a, const MeshChoice& b) {
  // Where none fits, the one that is nearest to it comes first.
  const auto key = [](const MeshChoice& choice) {
    const auto bytes = static_cast<double>(choice.largest.memory.total());
    return std::tuple(!choice.fits, choice.fits ? choice.seconds() : bytes);
  };
  return key(a) < key(b);
}

}  // namespace

const Hardware& find_hardware(const std::string& name) {
  std::vector<std::string> names;
  for (const Hardware& hardware : kHardware) {
    if (name == hardware.name) return hardware;
    names.emplace_back(hardware.name);
  }
  throw Error(ExitCode::kUsage,
              concat("--hardware is ", in_quotes(name), did_you_mean(name, names)));
}

int most_feasible_ranks(const TrainConfig& config, int most, const Hardware& hardware) {
  while (most > 0 && allowed_shapes(config, most, hardware.node_ranks).empty()) --most;
  return most;
}

MeshSearch search_meshes(const TrainConfig& config, int ranks, const Hardware& hardware,
                         size_t count) {
  const std::vector<MeshShape> shapes = allowed_shapes(config, ranks, hardware.node_ranks);
  if (shapes.empty()) refuse(config, ranks, hardware);
  MeshSearch search{.best = {}, .feasible = static_cast<int>(shapes.size())};
  const auto resolved = [&](const MeshShape& shape) {
    TrainConfig one = with_mesh(config, shape);
    resolve_mesh(one, ranks);
    return one;
  };
  for (const MeshShape& shape : shapes) {
    const TrainConfig one = resolved(shape);
    MeshChoice choice{.shape = shape, .largest = plan_rank(one, ranks - 1)};
    weigh(one, hardware, choice);
    search.best.push_back(std::move(choice));
  }
  // The last rank is near the largest: the best by it are then looked at in full.
  std::stable_sort(search.best.begin(), search.best.end(), is_better);
  if (search.best.size() > count) search.best.resize(count);
  for (MeshChoice& choice : search.best) {
    const TrainConfig one = resolved(choice.shape);
    choice.largest = plan_largest_rank(one);
    weigh(one, hardware, choice);
  }
  std::stable_sort(search.best.begin(), search.best.end(), is_better);
  return search;
}

}  // namespace tessera
