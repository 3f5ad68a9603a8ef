#include "model/parameter.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/compare.h"

namespace tessera {

namespace {

TEST(ParameterStore, InitialValuesDoNotDependOnTheShards) {
  const Shape whole{6, 10, 4};
  Stream stream{Device{}};
  ParameterStore full;
  const Parameter& all = full.declare({.name = "w", .shard = Shard::replicated(whole)});
  full.allocate(Device{});
  full.initialize(stream, 7);
  for (int axis = 0; axis < 3; ++axis) {
    for (int part = 0; part < 2; ++part) {
      ParameterStore parts;
      const Parameter& mine =
          parts.declare({.name = "w", .shard = Shard::split(whole, axis, part, 2)});
      parts.allocate(Device{});
      parts.initialize(stream, 7);
      const Shape local = mine.shard.local();
      for (int64_t i = 0; i < local.elements(); ++i) {
        std::array<int64_t, 3> at{i / local[2] / local[1], i / local[2] % local[1], i % local[2]};
        at[static_cast<size_t>(axis)] += mine.shard.begin;
        const int64_t global = (at[0] * whole[1] + at[1]) * whole[2] + at[2];
        ASSERT_EQ(mine.value.as<float>()[static_cast<size_t>(i)],
                  all.value.as<float>()[static_cast<size_t>(global)])
            << "axis " << axis << ", part " << part << ", element " << i;
      }
    }
  }
}

TEST(ParameterStore, InitialValuesAreNormalAndDependOnSeedAndName) {
  Stream stream{Device{}};
  const auto values = [&](const std::string& name, uint64_t seed) {
    ParameterStore store;
    const Parameter& w =
        store.declare({.name = name, .shard = Shard::replicated({100, 100}), .init = 0.5});
    store.allocate(Device{});
    store.initialize(stream, seed);
    return support::to_doubles(w.value);
  };
  const std::vector<double> a = values("a", 1);
  double mean = 0;
  double square = 0;
  for (const double v : a) {
    mean += v / 10000;
    square += v * v / 10000;
  }
  EXPECT_NEAR(mean, 0, 0.02);
  EXPECT_NEAR(std::sqrt(square), 0.5, 0.02);
  EXPECT_GT(support::error(a, values("a", 2)), 0.5);
  EXPECT_GT(support::error(a, values("b", 1)), 0.5);
  EXPECT_EQ(a, values("a", 1));
}

TEST(ParameterStore, KnowsItsParameters) {
  ParameterStore store;
  store.declare({.name = "a", .shard = Shard::replicated({3}), .trained = false});
  store.declare({.name = "b", .shard = Shard::replicated({5, 2}), .dtype = DType::kBF16});
  store.allocate(Device{});
  EXPECT_EQ(store.elements(), 10);
  EXPECT_TRUE(store.find("a").grad.empty());
  EXPECT_EQ(store.find("b").grad.dtype(), DType::kF32);
  EXPECT_EQ(store.gradient_bytes(), 256);
  support::expect_error([&] { store.find("c"); }, "the model has no parameter 'c'");
  support::expect_error([&] { store.declare({.name = "a", .shard = Shard::replicated({3})}); },
                        "parameter 'a' is declared twice");
}

}  // namespace

}  // namespace tessera
