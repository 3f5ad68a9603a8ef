#include "model/whole_parameters.h"

#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/compare.h"

namespace tessera {
namespace {

TEST(WholeParameters, PutsPartsTogetherAndViewsTheRest) {
  Stream stream{Device{}};
  ParameterStore store;
  Parameter& plain = store.declare({.name = "plain", .shard = Shard::replicated({2, 3})});
  Parameter& left = store.declare({.name = "cut", .shard = Shard::range({2, 5}, 1, 0, 2)});
  Parameter& right = store.declare({.name = "cut", .shard = Shard::range({2, 5}, 1, 2, 3)});
  Parameter& upper = store.declare({.name = "two", .shard = Shard::split({6}, 0, 0, 3, 2)});
  Parameter& lower =
      store.declare({.name = "two", .shard = {.whole = {6}, .begin = 1, .length = 2, .blocks = 2}});
  store.allocate(Device{});
  float next = 0;
  for (Parameter* parameter : {&plain, &left, &right, &upper, &lower}) {
    for (float& x : parameter->value.as<float>()) x = next++;
    for (float& x : parameter->grad.as<float>()) x = -next++;
  }
  const WholeParameters values(stream, store, WholeParameters::Of::kValues);
  ASSERT_EQ(values.all().size(), 3u);
  EXPECT_EQ(values.find("plain").data(), plain.value.data());
  const auto expect = [](ConstTensorView x, const std::vector<float>& expected) {
    const auto found = x.as<float>();
    EXPECT_EQ(std::vector<float>(found.begin(), found.end()), expected);
  };
  expect(values.find("cut"), {12, 13, 20, 21, 22, 14, 15, 23, 24, 25});
  expect(values.find("two"), {32, 36, 37, 33, 38, 39});
  const WholeParameters gradients(stream, store, WholeParameters::Of::kGradients);
  expect(gradients.find("two"), {-34, -40, -41, -35, -42, -43});
  support::expect_error([&] { (void)values.find("none"); }, "the model has no parameter 'none'");
}

TEST(WholeParameters, RefusesARankThatHasNotAll) {
  Stream stream{Device{}};
  ParameterStore store;
  store.declare({.name = "cut", .shard = Shard::split({4}, 0, 0, 2)});
  store.allocate(Device{});
  support::expect_error(
      [&] { WholeParameters(stream, store, WholeParameters::Of::kValues); },
      "parameter 'cut': 2 elements are on other ranks, expected all of them here");
}

}  // namespace
}  // namespace tessera
