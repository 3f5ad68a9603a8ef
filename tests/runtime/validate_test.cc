#include "runtime/config/validate.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/core/error.h"
#include "runtime/config/config.h"
#include "runtime/config/field_rules.h"
#include "runtime/config/number_field.h"
#include "runtime/config/train.pb.h"

namespace tessera {
namespace {

TrainConfig valid() {
  return load_train_config(SOURCE_ROOT "/configs/tiny.textproto");
}

std::string text(const std::vector<FieldProblem>& problems) {
  std::string lines;
  for (const FieldProblem& problem : problems) {
    lines += (lines.empty() ? "" : "\n") + problem.field + " " + problem.what;
  }
  return lines;
}

/// What validate says about the tiny configuration after `change`.
template <class Change>
std::string after(Change change) {
  TrainConfig config = valid();
  change(config);
  return text(validate(config));
}

bool names(const std::vector<FieldProblem>& problems, const std::string& field) {
  for (const FieldProblem& problem : problems) {
    if (problem.field == field) return true;
  }
  return false;
}

TEST(Validate, AcceptsTheTinyConfiguration) {
  EXPECT_EQ(text(validate(valid())), "");
}

TEST(Validate, RefusesWhatLiesOutsideTheRangeOfEveryField) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const FieldRule& rule : field_rules()) {
    const auto refused = [&](double value) {
      TrainConfig config = valid();
      config.mutable_model()->mutable_attention()->clear_global_groups();  // or sparse_ratio
      NumberField(config, rule.path).set(value);
      return names(validate(config), rule.path);
    };
    TrainConfig probe = valid();
    if (NumberField(probe, rule.path).is_integer()) {
      if (rule.most == 1 && rule.standard) continue;  // a truth value
      EXPECT_TRUE(refused(rule.least == 0 ? -1 : rule.least - 1)) << rule.path;
      EXPECT_TRUE(refused(rule.most + 1)) << rule.path;
    } else {
      for (const double value : {-1.0, -infinity, infinity, std::nan(""), rule.most * 1.001}) {
        EXPECT_TRUE(refused(value)) << rule.path << " = " << value;
      }
      EXPECT_EQ(refused(rule.least), rule.ends == FieldRule::Ends::kAboveLeast) << rule.path;
    }
  }
}

TEST(Validate, SaysWhatWasFoundAndWhatIsAllowed) {
  EXPECT_EQ(after([](TrainConfig& c) { c.mutable_model()->set_layers(-3); }),
            "model.layers is -3, expected 1 to 4096");
  EXPECT_EQ(after([](TrainConfig& c) { c.mutable_model()->set_layers(0); }),
            "model.layers is missing or 0, expected 1 to 4096");
  EXPECT_EQ(after([](TrainConfig& c) { c.mutable_optimizer()->set_beta1(1); }),
            "optimizer.beta1 is 1, expected at least 0 and below 1");
  EXPECT_EQ(after([](TrainConfig& c) { c.mutable_optimizer()->set_learning_rate(-0.5); }),
            "optimizer.learning_rate is -0.5, expected above 0 and at most 10");
  EXPECT_EQ(after([](TrainConfig& c) { c.clear_run_dir(); }),
            "run_dir is missing, expected the directory for everything that the run writes");
  EXPECT_EQ(after([](TrainConfig& c) { c.mutable_data()->clear_path(); }),
            "data.path is missing, expected a directory made by tessera data prepare");
}

TEST(Validate, ChecksTheModel) {
  using C = TrainConfig;
  EXPECT_EQ(after([](C& c) { c.mutable_model()->set_head_dim(7); }),
            "model.head_dim is 7, expected an even number, because rotary positions turn pairs");
  EXPECT_EQ(after([](C& c) { c.mutable_model()->set_kv_heads(3); }),
            "model.heads is 4, expected a multiple of model.kv_heads = 3");
  EXPECT_EQ(after([](C& c) {
              c.mutable_model()->set_hidden(33);
              c.mutable_model()->set_head_dim(0);
            }),
            "model.hidden is 33, expected a multiple of model.heads = 4; or set model.head_dim");
  EXPECT_EQ(after([](C& c) { c.mutable_model()->set_intermediate(0); }),
            "model.intermediate is missing or 0, expected the width of the dense feed-forward "
            "layers");
  EXPECT_EQ(after([](C& c) {
              c.mutable_model()->set_intermediate(0);
              c.mutable_model()->mutable_moe()->set_dense_layers(0);
            }),
            "");
}

TEST(Validate, ChecksTheAttention) {
  using A = AttentionConfig;
  const auto with = [](auto change) {
    return after([&](TrainConfig& c) { change(*c.mutable_model()->mutable_attention()); });
  };
  EXPECT_EQ(with([](A& a) { a.set_global_groups(3); }),
            "model.attention.global_groups is 3, expected at most model.kv_heads = 2");
  EXPECT_EQ(
      with([](A& a) { a.set_sparse_ratio(0.5f); }),
      "model.attention.sparse_ratio is set, and so is global_groups = 1; take one of them away, "
      "with --set model.attention.global_groups= for example");
  EXPECT_EQ(with([](A& a) { a.set_block(24); }),
            "model.attention.block is 24, expected a multiple of 16");
  EXPECT_EQ(with([](A& a) { a.set_gate_keys(3); }),
            "model.attention.gate_keys is 3, expected a divisor of model.attention.block = 16");
  EXPECT_EQ(with([](A& a) { a.set_tree_beam(32), a.set_tree_radix(6); }),
            "model.attention.tree_radix is 6, expected 4, 8 or 16");
  EXPECT_EQ(with([](A& a) { a.set_tree_radix(4); }),
            "model.attention.tree_radix is 4, but model.attention.tree_beam is 0, so there is no "
            "tree: set both or neither");
  EXPECT_EQ(
      with([](A& a) { a.set_tree_beam(32), a.set_gate_keys(2); }),
      "model.attention.tree_beam is 32, expected 0 with model.attention.gate_keys = 2: a tree "
      "needs one gate key per block");
  EXPECT_EQ(with([](A& a) { a.set_tree_beam(32); }), "");
}

TEST(Validate, ChecksTheExperts) {
  using M = MoeConfig;
  const auto with = [](auto change) {
    return after([&](TrainConfig& c) { change(*c.mutable_model()->mutable_moe()); });
  };
  EXPECT_EQ(with([](M& m) { m.set_experts_per_token(5); }),
            "model.moe.experts_per_token is 5, expected at most model.moe.experts = 4");
  for (const auto router : {M::SOFTMAX_TOPK, M::SOFTMAX_NORMALIZED, M::SIGMOID}) {
    EXPECT_EQ(with([&](M& m) {
                m.set_experts_per_token(1);
                m.set_router(router);
              }),
              "model.moe.router is " + M::RouterMode_Name(router) +
                  ", expected SOFTMAX: with experts_per_token = 1 a normalised weight is always 1 "
                  "and the router would not learn");
  }
  EXPECT_EQ(with([](M& m) {
              m.set_experts_per_token(1);
              m.set_router(M::SOFTMAX);
            }),
            "");
  EXPECT_EQ(with([](M& m) { m.set_dense_layers(3); }),
            "model.moe.dense_layers is 3, expected at most model.layers = 2");
  EXPECT_EQ(with([](M& m) { m.set_balance_bias_rate(0.5f); }),
            "model.moe.balance_bias_rate is 0.5, expected 0 unless model.moe.router is SIGMOID");
  EXPECT_EQ(with([](M& m) { m.set_router_scale(2.5f); }),
            "model.moe.router_scale is 2.5, expected 1 unless model.moe.router is SIGMOID");
  EXPECT_EQ(with([](M& m) { m.set_capacity_factor(1.25f); }), "");
  EXPECT_EQ(with([](M& m) { m.set_capacity_factor(2); }),
            "model.moe.capacity_factor is 2, expected below experts / experts_per_token = 2, from "
            "where on no token is dropped; or 0");
}

TEST(Validate, ChecksTheSteps) {
  using C = TrainConfig;
  EXPECT_EQ(after([](C& c) { c.mutable_schedule()->set_warmup_steps(21); }),
            "schedule.warmup_steps is 21, expected at most steps = 20");
  EXPECT_EQ(after([](C& c) {
              c.mutable_schedule()->set_shape(ScheduleConfig::WSD);
              c.mutable_schedule()->set_warmup_steps(5);
              c.mutable_schedule()->set_decay_steps(16);
            }),
            "schedule.decay_steps is 16, expected at most steps - schedule.warmup_steps = 15");
  EXPECT_EQ(after([](C& c) { c.mutable_sparsity()->set_gate_warmup_steps(9); }),
            "sparsity.gate_warmup_steps is 9, expected at most sparsity.dense_steps = 8");
  EXPECT_EQ(after([](C& c) { c.mutable_sparsity()->set_transition_steps(13); }),
            "sparsity.transition_steps is 13, expected at most steps - sparsity.dense_steps = 12");
  EXPECT_EQ(after([](C& c) { c.mutable_sparsity()->set_dense_steps(20); }), "");
  EXPECT_EQ(after([](C& c) { c.mutable_checkpoint()->set_keep_every(15); }),
            "checkpoint.keep_every is 15, expected a multiple of checkpoint.every = 10");
  EXPECT_EQ(after([](C& c) {
              c.set_steps(1000000000000);
              c.mutable_batch()->set_sequences(16777216);
              c.mutable_batch()->set_sequence_length(16777216);
            }),
            "steps is 1000000000000, expected steps x batch.sequences x batch.sequence_length "
            "below 2^62 tokens");
}

TEST(ValidateMesh, ChecksWhatEachAxisDivides) {
  const auto with = [](std::array<int, 4> mesh, auto change) {
    TrainConfig config = valid();
    config.mutable_mesh()->set_data(mesh[0]);
    config.mutable_mesh()->set_expert(mesh[1]);
    config.mutable_mesh()->set_sequence(mesh[2]);
    config.mutable_mesh()->set_tensor(mesh[3]);
    change(config);
    return text(validate_mesh(config));
  };
  const auto nothing = [](TrainConfig&) {};
  EXPECT_EQ(with({2, 2, 2, 2}, nothing), "");
  EXPECT_EQ(with({1, 1, 1, 3}, nothing),
            "mesh.tensor is 3, expected a divisor of model.intermediate = 64; nearest: 2 or 4\n"
            "mesh.tensor is 3, expected at most the 2 query heads of local groups\n"
            "mesh.tensor is 3, expected a divisor of the tokens of a micro-batch on a sequence "
            "rank = 512; nearest: 2 or 4");
  EXPECT_EQ(
      with({1, 3, 1, 1}, nothing),
      "mesh.data x mesh.expert is 3, expected a divisor of batch.sequences = 8; nearest: 2 or "
      "4\n"
      "mesh.expert is 3, expected a divisor of model.moe.experts = 4; nearest: 2 or 4");
  EXPECT_EQ(
      with({3, 2, 1, 1}, nothing),
      "mesh.data x mesh.expert is 6, expected a divisor of batch.sequences = 8; nearest: 4 or "
      "8");
  EXPECT_EQ(with({16, 1, 1, 1}, nothing),
            "mesh.data x mesh.expert is 16, expected a divisor of batch.sequences = 8; nearest: 8");
  EXPECT_EQ(
      with({1, 1, 3, 1}, nothing),
      "mesh.sequence is 3, expected a divisor of batch.sequence_length = 64; nearest: 2 or 4");
  EXPECT_EQ(with({1, 1, 8, 1}, nothing),
            "mesh.sequence is 8, more sequence ranks than the 4 key blocks of a sequence, expected "
            "at most batch.sequence_length / model.attention.block = 4");
  EXPECT_EQ(with({2, 1, 1, 1}, [](TrainConfig& c) { c.mutable_batch()->set_micro_sequences(3); }),
            "batch.micro_sequences is 3, expected a divisor of the 4 sequences of each rank, or 0 "
            "for all of them; nearest: 2 or 4");
  EXPECT_EQ(with({1, 1, 1, 2},
                 [](TrainConfig& c) {
                   c.mutable_model()->mutable_moe()->set_shared_experts(1);
                   c.mutable_model()->mutable_moe()->set_intermediate(31);
                 }),
            "mesh.tensor is 2, expected a divisor of model.moe.shared_experts x "
            "model.moe.intermediate = 31; nearest: 1 or 31");
}

TEST(ValidateMesh, ZigzagCutsEachSequenceTwiceAsOften) {
  const auto with = [](int ranks, int64_t length) {
    TrainConfig config = valid();
    MeshConfig& mesh = *config.mutable_mesh();
    mesh.set_data(1);
    mesh.set_expert(1);
    mesh.set_sequence(ranks);
    mesh.set_tensor(1);
    mesh.set_sequence_order(MeshConfig::ZIGZAG);
    config.mutable_batch()->set_sequence_length(length);
    return text(validate_mesh(config));
  };
  EXPECT_EQ(with(4, 64), "");
  EXPECT_EQ(with(1, 65), "");
  EXPECT_EQ(with(4, 68),
            "mesh.sequence is 4, expected a divisor of half of batch.sequence_length = 68 for "
            "sequence_order ZIGZAG; nearest: 2 or 17");
}

TEST(ValidateMesh, HeadsAreSplitAtAnyHeadWhereThereAreLocalOnes) {
  const auto with = [](int tensor, int global_groups) {
    TrainConfig config = valid();
    MeshConfig& mesh = *config.mutable_mesh();
    mesh.set_data(1);
    mesh.set_expert(1);
    mesh.set_sequence(1);
    mesh.set_tensor(tensor);
    ModelConfig& model = *config.mutable_model();
    model.set_heads(6);
    model.set_head_dim(8);
    model.mutable_attention()->set_global_groups(global_groups);
    return text(validate_mesh(config));
  };
  EXPECT_EQ(with(2, 1), "");  // 3 heads on 2 ranks
  EXPECT_EQ(with(4, 1), "mesh.tensor is 4, expected at most the 3 query heads of local groups");
  EXPECT_EQ(with(8, 2), "");  // global groups are split by tokens
}

TEST(Validate, MeasuresAndControlOfTheGatesFitTogether) {
  EXPECT_EQ(after([](TrainConfig& c) {
              c.mutable_monitor()->set_gate_every(4);
              c.mutable_monitor()->set_heat_map_every(6);
            }),
            "monitor.heat_map_every is 6, expected a multiple of monitor.gate_every = 4");
  EXPECT_EQ(after([](TrainConfig& c) { c.mutable_monitor()->set_gate_every(0); }),
            "monitor.heat_map_every is 1000, expected 0 as nothing is measured: "
            "monitor.gate_every is 0");
  EXPECT_EQ(after([](TrainConfig& c) {
              c.mutable_monitor()->set_gate_every(0);
              c.mutable_monitor()->set_heat_map_every(0);
              c.mutable_gate_control()->set_method(GateControlConfig::LAGRANGIAN);
            }),
            "monitor.gate_every is 0, but gate_control.method LAGRANGIAN needs measures, expected "
            "a divisor of gate_control.every = 100");
  EXPECT_EQ(after([](TrainConfig& c) {
              c.mutable_gate_control()->set_method(GateControlConfig::KEPT_MASS);
              c.mutable_gate_control()->set_every(150);
            }),
            "gate_control.every is 150, expected a multiple of monitor.gate_every = 100");
  EXPECT_EQ(after([](TrainConfig& c) {
              c.mutable_gate_control()->set_method(GateControlConfig::SEARCH);
              c.mutable_gate_control()->set_every(150);
            }),
            "");
}

TEST(Validate, BudgetsOfLayersAreWithinTheirLimits) {
  const auto with = [](std::vector<double> budgets) {
    return after([&](TrainConfig& c) {
      for (const double budget : budgets) c.mutable_gate_control()->add_budgets(budget);
    });
  };
  EXPECT_EQ(with({0.25, 4}), "");
  EXPECT_EQ(with({1, 1, 1}),
            "gate_control.budgets has 3 numbers, expected one for each of model.layers = 2");
  EXPECT_EQ(with({1, 0.2}),
            "gate_control.budgets has 0.2, expected gate_control.least = 0.25 to "
            "gate_control.most = 4");
  EXPECT_EQ(after([](TrainConfig& c) {
              c.mutable_gate_control()->set_method(GateControlConfig::LAGRANGIAN);
              c.mutable_gate_control()->set_cost(5);
            }),
            "gate_control.cost is 5, expected gate_control.least = 0.25 to gate_control.most = 4");
}

}  // namespace
}  // namespace tessera
