#include "runtime/choose/group_order.h"

#include <gtest/gtest.h>

#include "runtime/export/model_parameters.h"
#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(GroupOrder, TheLargestComeFirst) {
  const std::vector<double> alpha{0.1, 0.9, 0.2, 1, 0.3};
  EXPECT_EQ(order_by_share(alpha, 2), (GroupOrder{1, 3, 0, 2, 4}));
  EXPECT_EQ(order_by_share(alpha, 1), (GroupOrder{3, 0, 1, 2, 4}));
  EXPECT_EQ(order_by_share(alpha, 5), (GroupOrder{0, 1, 2, 3, 4}));
  EXPECT_EQ(places_of({1, 3, 0, 2, 4}), (std::vector<int32_t>{2, 0, 3, 1, 4}));
}

TEST(GroupOrder, OfEqualOnesTheFirst) {
  EXPECT_EQ(order_by_share(std::vector<double>{0.5, 1, 0.5, 1, 0.5}, 3),
            (GroupOrder{0, 1, 3, 2, 4}));
  EXPECT_EQ(order_by_share(std::vector<double>(4), 2), (GroupOrder{0, 1, 2, 3}));
}

TEST(GroupOrder, EveryParameterHasItsAxisOrNone) {
  const TrainConfig config = support::tiny_config();
  std::map<std::string, int> axes;
  for (const Parameter& parameter : model_parameters(config.model(), DType::kF32)) {
    const auto groups = group_axis(parameter.name);
    if (!groups) continue;
    EXPECT_TRUE(parameter.name.starts_with(concat("layers.", groups->layer, ".")));
    EXPECT_EQ(parameter.shard.whole[groups->axis] % config.model().kv_heads(), 0);
    if (groups->layer == 1) axes[parameter.name.substr(19)] = groups->axis;
  }
  EXPECT_EQ(axes, (std::map<std::string, int>{{"query.weight", 0},
                                              {"key.weight", 0},
                                              {"value.weight", 0},
                                              {"output_gate.weight", 0},
                                              {"sink_logit", 0},
                                              {"out.weight", 1}}));
  EXPECT_EQ(group_axis("layers.12.attention.out.weight")->layer, 12);
  EXPECT_FALSE(group_axis("layers.0.attention.gate.query.weight"));
  support::expect_error([] { group_axis("layers.0.attention.bias"); },
                        "what part of layers.0.attention.bias belongs to which KV group");
}

TEST(GroupOrder, PartsMoveAlongTheirAxis) {
  std::vector<double> numbers(24);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<double>(i);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const support::Tensor rows = support::from_doubles(dtype, {6, 4}, numbers);
    const support::Tensor columns = support::from_doubles(dtype, {4, 6}, numbers);
    const support::Tensor to(dtype, {6, 4});
    reorder_groups(rows, 0, {2, 0, 1}, to);
    EXPECT_EQ(support::to_doubles(to),
              (std::vector<double>{16, 17, 18, 19, 20, 21, 22, 23, 0,  1,  2,  3,
                                   4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15}));
    const support::Tensor across(dtype, {4, 6});
    reorder_groups(columns, 1, {2, 0, 1}, across);
    EXPECT_EQ(support::to_doubles(across),
              (std::vector<double>{4,  5,  0,  1,  2,  3,  10, 11, 6,  7,  8,  9,
                                   16, 17, 12, 13, 14, 15, 22, 23, 18, 19, 20, 21}));
    support::expect_error([&] { reorder_groups(rows, 1, {2, 0, 1}, to); }, "3 parts of axis 1");
  }
}

}  // namespace
}  // namespace tessera
