#include "runtime/choose/choose_groups.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "checkpoint/candidates.h"
#include "kernels/core/copy.h"
#include "kernels/core/log.h"
#include "model/sparsity_budget.h"
#include "runtime/choose/reordered_state.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"
#include "runtime/control/gate_change_log.h"
#include "runtime/export/hugging_face.h"
#include "runtime/train/train_state.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

// The configuration that the new run has, but for its directory.
TrainConfig chosen_config(TrainConfig config, int64_t asked_for) {
  const int64_t before = global_groups(config.model());
  if (before == 0) {
    throw Error(ExitCode::kUsage,
                "model.attention.global_groups is 0: the run has no gates that could go on; train "
                "the dense model with 1 or more global groups");
  }
  const int64_t chosen = asked_for > 0 ? asked_for : before;
  const int64_t groups = config.model().kv_heads();
  if (groups == 1) {
    throw Error(ExitCode::kUsage, "model.kv_heads is 1: there is nothing to choose");
  }
  if (chosen >= groups) {
    throw Error(ExitCode::kUsage,
                concat(asked_for > 0 ? "--global-groups" : "model.attention.global_groups", " is ",
                       chosen, " and model.kv_heads ", groups,
                       ": there is nothing to choose; give --global-groups 1 to ", groups - 1));
  }
  config.mutable_model()->mutable_attention()->set_global_groups(static_cast<int32_t>(chosen));
  return config;
}

/// Gates that have learned belong to the groups that taught them.
void expect_dense(Stream& stream, const LoadedModel& loaded, const std::string& name) {
  if (loaded.step > 0) {
    const StepPlan plan = plan_of(loaded, 0);
    if (plan.stage != Stage::kDense) {
      throw Error(ExitCode::kUsage, concat(name, " is of step ", loaded.step, ", in the stage \"",
                                           name_of(plan.stage),
                                           "\", expected the dense stage: its groups have their "
                                           "roles already; give a checkpoint of an earlier step"));
    }
  }
  for (const Parameter& parameter : loaded.store->all()) {
    if (!is_gate_parameter(parameter.name) || parameter.initializer != Initializer::kConstant) {
      continue;
    }
    const auto first = static_cast<float>(parameter.init);
    for (const float value : to_vector<float>(stream, parameter.value)) {
      if (value == first) continue;
      throw Error(ExitCode::kUsage, concat(name, " has trained gates: ", parameter.name, " holds ",
                                           value, ", expected ", first,
                                           ", with which it begins; give a checkpoint from "
                                           "before the gate warm-up"));
    }
  }
}

void expect_same_tokenizer(const CheckpointReader& reader, const fs::path& data) {
  if (read_description(data).task) return;            // its tokens mean nothing outside of it
  if (!reader.contains_blob(kTokenizerBlob)) return;  // nothing to compare with
  if (reader.read_blob(kTokenizerBlob) == load_tokenizer_model(data)) return;
  throw Error(ExitCode::kBadData,
              concat(data.string(), " was prepared with another tokenizer than the data of ",
                     reader.directory().string(), "; prepare it again with --tokenizer of that"));
}

/// The run directory that is made, before anything is learned; gone again when nothing came of it.
class NewRun {
 public:
  explicit NewRun(const fs::path& path) : path_(path) {
    std::error_code trouble;
    if (fs::exists(path, trouble)) {
      throw Error(ExitCode::kUsage,
                  concat(path.string(), " exists: give the name of a run directory that does not"));
    }
    fs::create_directories(path, trouble);
    if (!trouble) return;
    throw Error(ExitCode::kUsage, concat("cannot make ", path.string(), ": ", trouble.message(),
                                         "; give a run directory that can be made"));
  }
  ~NewRun() {
    std::error_code not_empty;
    fs::remove(path_, not_empty);
  }
  NewRun(const NewRun&) = delete;
  NewRun& operator=(const NewRun&) = delete;

 private:
  fs::path path_;
};

std::string digits(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.4f", value);
  return text.data();
}

GroupShares learn(Probe& probe, const ModelConfig& model, int64_t chosen,
                  const ChooseOptions& options) {
  const int64_t groups = model.kv_heads();
  std::vector<LayerShares> layers(static_cast<size_t>(model.layers()), LayerShares(groups));
  GroupShares shares(layers.size(), layers.front().values());
  GroupShares slopes;
  for (int64_t step = 1; step <= options.steps; ++step) {
    const double loss = probe.learn(step - 1, shares, slopes);
    const double total = total_of_step(step, options.steps, groups, chosen);
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      layers[layer].follow(slopes[layer], total, options.rate);
      shares[layer] = layers[layer].values();
    }
    if (options.progress) options.progress(step, loss);
  }
  return shares;
}

/// Shares of 1 for the groups that are first in each order, of 0 for the others.
GroupShares only_first(std::span<const GroupOrder> orders, int64_t first) {
  GroupShares shares;
  for (const GroupOrder& order : orders) {
    std::vector<double>& layer = shares.emplace_back(order.size());
    for (int64_t place = 0; place < first; ++place) {
      layer[static_cast<size_t>(order[static_cast<size_t>(place)])] = 1;
    }
  }
  return shares;
}

std::vector<GroupOrder> orders_of(std::span<const LayerChoice> layers) {
  std::vector<GroupOrder> orders;
  for (const LayerChoice& layer : layers) orders.push_back(layer.order);
  return orders;
}

struct Edge {
  double least;  ///< alpha of those that are chosen
  double most;   ///< of the others
};
Edge edge_of(const LayerChoice& choice, int64_t global_groups) {
  Edge edge{.least = 1, .most = 0};
  for (size_t place = 0; place < choice.order.size(); ++place) {
    const double alpha = choice.alpha[static_cast<size_t>(choice.order[place])];
    if (std::cmp_less(place, global_groups)) {
      edge.least = std::min(edge.least, alpha);
    } else {
      edge.most = std::max(edge.most, alpha);
    }
  }
  return edge;
}

void tell_changes(const ChooseReport& report, const ChooseOptions& options) {
  GateChangeLog log(options.output);
  for (size_t layer = 0; layer < report.layers.size(); ++layer) {
    const LayerChoice& choice = report.layers[layer];
    const auto first = [](const GroupOrder& order, int64_t groups) {
      return std::vector<int32_t>(order.begin(), order.begin() + groups);
    };
    const std::vector<int32_t> after = first(choice.order, report.global_groups);
    const std::vector<int32_t> before = first(
        order_by_share(std::vector<double>(choice.alpha.size()), 0), report.global_groups_before);
    if (after == before) continue;
    const auto [least, most] = edge_of(choice, report.global_groups);
    log.add(GlobalGroupsChange{
        .step = report.step,
        .layer = static_cast<int64_t>(layer),
        .before = before,
        .after = after,
        .alpha = choice.alpha,
        .reason = concat("alpha ", digits(least), ", of the others at most ", digits(most),
                         "; with the choice of all layers the loss of the probe ",
                         options.probe.data.string(), " is ", digits(report.after.loss),
                         " instead of ", digits(report.before.loss))});
  }
}

void save(const CheckpointReader& reader, TrainConfig config, const ChooseOptions& options,
          ChooseReport& report) {
  config.set_run_dir(options.output.string());
  ReorderedState state(reader, orders_of(report.layers), config);
  const SaveReport saved = save_in_pieces(config, state);
  report.checkpoint = saved.path;
  report.bytes = saved.bytes;
}

nlohmann::ordered_json json_of(const ProbeLoss& probe) {
  return {{"loss", probe.loss}, {"accuracy", probe.accuracy}};
}

}  // namespace

ChooseReport choose_groups(Stream& stream, const ChooseOptions& options) {
  const NewRun output(options.output);
  const CheckpointReader reader(find_checkpoint(options.checkpoint));
  const TrainConfig config = chosen_config(stored_config(reader), options.global_groups);
  expect_same_tokenizer(reader, options.probe.data);
  const LoadedModel loaded =
      load_model(stream, reader.directory(), {.precision = options.precision, .gradients = true});
  expect_dense(stream, loaded, reader.directory().string());
  const ModelConfig& model = config.model();
  ChooseReport report{.step = loaded.step,
                      .global_groups = global_groups(model),
                      .global_groups_before = global_groups(loaded.config->model()),
                      .window = model.attention().window()};
  {
    Probe probe(stream, loaded, options.probe);
    report.length = probe.length();
    for (std::vector<double>& alpha : learn(probe, model, report.global_groups, options)) {
      GroupOrder order = order_by_share(alpha, report.global_groups);
      report.layers.push_back({.alpha = std::move(alpha), .order = std::move(order)});
    }
    const std::vector<GroupOrder> chosen = orders_of(report.layers);
    const std::vector<GroupOrder> unchanged(
        chosen.size(), order_by_share(std::vector<double>(chosen.front().size()), 0));
    report.all = probe.validate(only_first(chosen, model.kv_heads()));
    report.before = probe.validate(only_first(unchanged, report.global_groups_before));
    report.after = probe.validate(only_first(chosen, report.global_groups));
  }
  save(reader, config, options, report);
  also_log_to(options.output / "log.txt");
  tell_changes(report, options);
  return report;
}

std::vector<SharedLayer> shared_layers(const ChooseReport& report) {
  constexpr double kMuch = 0.25;
  std::vector<SharedLayer> found;
  for (size_t layer = 0; layer < report.layers.size(); ++layer) {
    const auto [least, most] = edge_of(report.layers[layer], report.global_groups);
    if (most < kMuch) continue;
    found.push_back({.layer = static_cast<int64_t>(layer), .chosen = least, .left_out = most});
  }
  return found;
}

std::string to_json(const ChooseReport& report) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const LayerChoice& layer : report.layers) {
    layers.push_back({{"alpha", layer.alpha}, {"order", layer.order}});
  }
  return nlohmann::ordered_json{{"step", report.step},
                                {"global_groups", report.global_groups},
                                {"global_groups_before", report.global_groups_before},
                                {"window", report.window},
                                {"length", report.length},
                                {"layers", layers},
                                {"all", json_of(report.all)},
                                {"before", json_of(report.before)},
                                {"after", json_of(report.after)},
                                {"checkpoint", report.checkpoint.string()}}
      .dump();
}

}  // namespace tessera
