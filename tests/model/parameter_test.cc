#include "model/parameter.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/compare.h"

namespace tessera {

namespace {

TEST(ParameterStore, InitialValuesDoNotDependOnTheShards) {
  const Shape whole{6, 10, 4};
  Stream stream{support::bare_device()};
  ParameterStore full;
  const Parameter& all = full.declare({.name = "w", .shard = Shard::replicated(whole)});
  full.allocate(support::bare_device());
  full.initialize(stream, 7);
  const std::vector<float> expected = support::elements<float>(all.value);
  for (int axis = 0; axis < 3; ++axis) {
    for (int part = 0; part < 2; ++part) {
      ParameterStore parts;
      const Parameter& mine =
          parts.declare({.name = "w", .shard = Shard::split(whole, axis, part, 2)});
      parts.allocate(support::bare_device());
      parts.initialize(stream, 7);
      const Shape local = mine.shard.local();
      const std::vector<float> found = support::elements<float>(mine.value);
      for (int64_t i = 0; i < local.elements(); ++i) {
        std::array<int64_t, 3> at{i / local[2] / local[1], i / local[2] % local[1], i % local[2]};
        at[static_cast<size_t>(axis)] += mine.shard.begin;
        const int64_t global = (at[0] * whole[1] + at[1]) * whole[2] + at[2];
        ASSERT_EQ(found[static_cast<size_t>(i)], expected[static_cast<size_t>(global)])
            << "axis " << axis << ", part " << part << ", element " << i;
      }
    }
  }
}

TEST(ParameterStore, InitialValuesAreNormalAndDependOnSeedAndName) {
  Stream stream{support::bare_device()};
  const auto values = [&](const std::string& name, uint64_t seed) {
    ParameterStore store;
    const Parameter& w =
        store.declare({.name = name, .shard = Shard::replicated({100, 100}), .init = 0.5});
    store.allocate(support::bare_device());
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

// More numbers than the host makes at a time.
TEST(ParameterStore, InitialValuesAreTheSameOnEveryDevice) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const auto values = [&](Device device) {
      Stream stream(device, 2);
      ParameterStore store;
      const Parameter& w = store.declare(
          {.name = "w", .shard = Shard::split({5, 1 << 18, 3}, 2, 1, 3), .dtype = dtype});
      const Parameter& one = store.declare({.name = "one",
                                            .shard = Shard::replicated({3}),
                                            .initializer = Initializer::kConstant,
                                            .init = 1});
      store.allocate(device);
      store.initialize(stream, 5);
      stream.synchronize();
      EXPECT_EQ(support::to_doubles(one.value), (std::vector<double>{1, 1, 1}));
      return support::to_doubles(w.value);
    };
    EXPECT_EQ(values(support::bare_device()), values(Device{}));
  }
}

// What a store promises of its buckets, for the rank at `places`.
void expect_buckets_hold_all(ParameterStore& store, const GroupPlaces& places) {
  const std::vector<Bucket>& buckets = store.buckets();
  int64_t gradients = 0;
  for (size_t i = 0; i < buckets.size(); ++i) {
    const Bucket& bucket = buckets[i];
    const GroupPlace& place = places.of(bucket.placement);
    const int64_t elements = bucket.values.elements();
    EXPECT_EQ(bucket.gradients.elements(), elements);
    EXPECT_EQ(elements % (place.size * Bucket::kUnit), 0);
    EXPECT_EQ(bucket.owned_length, elements / place.size);
    EXPECT_EQ(bucket.owned_begin, bucket.owned_length * place.rank);
    if (i > 0) {
      EXPECT_LT(buckets[i - 1].first, bucket.first);
    }
    gradients += aligned(4 * elements);
  }
  EXPECT_EQ(store.gradient_bytes(), gradients);
  std::vector<int64_t> next(buckets.size(), 0);
  int64_t number = 0;
  for (const Parameter& parameter : store.all()) {
    if (parameter.trained) {
      const Bucket& bucket = buckets[parameter.bucket];
      EXPECT_EQ(parameter.placement, bucket.placement);
      EXPECT_EQ(parameter.dtype, bucket.values.dtype());
      EXPECT_GE(number, bucket.first);
      EXPECT_GE(parameter.begin, next[parameter.bucket]) << "in order, without overlap";
      next[parameter.bucket] = parameter.begin + parameter.value.elements();
      EXPECT_LE(next[parameter.bucket], bucket.values.elements());
      const TensorView value = bucket.values.rows(parameter.begin, 1);
      EXPECT_EQ(parameter.value.data(), value.data());
      EXPECT_EQ(parameter.grad.data(), bucket.gradients.rows(parameter.begin, 1).data());
      EXPECT_EQ(reinterpret_cast<uintptr_t>(value.data()) % Buffer::kAlignment, 0u);
    }
    ++number;
  }
}

TEST(ParameterStore, KnowsItsParameters) {
  ParameterStore store;
  store.declare({.name = "a", .shard = Shard::replicated({3}), .trained = false});
  store.declare({.name = "b", .shard = Shard::replicated({5, 2}), .dtype = DType::kBF16});
  store.allocate(Device{});
  EXPECT_EQ(store.elements(), 10);
  EXPECT_TRUE(store.find("a").grad.empty());
  EXPECT_EQ(store.find("b").grad.dtype(), DType::kF32);
  EXPECT_EQ(store.gradient_bytes(), 4 * 128) << "as many elements as 256 bytes of values";
  expect_buckets_hold_all(store, {});
  support::expect_error([&] { store.find("c"); }, "the model has no parameter 'c'");
  support::expect_error([&] { store.declare({.name = "a", .shard = Shard::replicated({3})}); },
                        "parameter 'a' is declared twice");
}

TEST(ParameterStore, BucketsAreOfOnePlacementAndDtype) {
  GroupPlaces places;
  places.by_placement = {GroupPlace{5, 6}, GroupPlace{1, 3}, GroupPlace{0, 2}};
  ParameterStore store;
  const auto declare = [&](const char* name, Shape shape, Placement placement, DType dtype) {
    store.declare(
        {.name = name, .shard = Shard::replicated(shape), .placement = placement, .dtype = dtype});
  };
  declare("a", {7, 3}, Placement::kReplicated, DType::kBF16);
  declare("b", {100}, Placement::kTensor, DType::kBF16);
  declare("c", {5}, Placement::kReplicated, DType::kF32);
  declare("d", {3, 5}, Placement::kExpert, DType::kBF16);
  declare("e", {11}, Placement::kReplicated, DType::kBF16);
  store.declare({.name = "f", .shard = Shard::replicated({4}), .trained = false});
  declare("g", {11}, Placement::kTensor, DType::kBF16);
  store.allocate(Device{}, /*gradients=*/true, places);
  EXPECT_EQ(store.buckets().size(), 4u);
  EXPECT_EQ(store.find("e").bucket, store.find("a").bucket);
  EXPECT_EQ(store.find("g").bucket, store.find("b").bucket);
  EXPECT_EQ(store.buckets()[2].first, 2);
  expect_buckets_hold_all(store, places);
  EXPECT_EQ(store.find("f").value.elements(), 4);
  EXPECT_EQ(store.elements(), 21 + 100 + 5 + 15 + 11 + 11);
}

TEST(ParameterStore, BucketsAreShortUnlessOneParameterIsLong) {
  ParameterStore store;  // planned: 200 MiB of gradients
  const int64_t million = int64_t{1} << 20;
  for (const int64_t millions : {1, 3, 3, 2, 20, 1, 7, 7, 1}) {
    store.declare({.name = concat("p", store.all().size()),
                   .shard = Shard::replicated({millions * million})});
  }
  store.allocate(Device{DeviceKind::kPlan});
  std::vector<int64_t> lengths;
  for (const Bucket& bucket : store.buckets()) {
    lengths.push_back(bucket.values.elements() / million);
  }
  EXPECT_EQ(lengths, (std::vector<int64_t>{7, 2, 20, 8, 8}));
  EXPECT_EQ(store.find("p3").bucket, 1u);
  EXPECT_EQ(store.buckets()[3].first, 5);
}

TEST(ParameterStore, ForInferenceThereAreValuesOnly) {
  ParameterStore store;
  store.declare({.name = "a", .shard = Shard::replicated({30})});
  store.allocate(Device{}, /*gradients=*/false);
  EXPECT_EQ(store.gradient_bytes(), 0);
  EXPECT_TRUE(store.find("a").grad.empty());
  EXPECT_TRUE(store.buckets()[0].gradients.empty());
  EXPECT_EQ(store.value_bytes(), 256);
}

TEST(ParameterStore, MatricesOfProductsHave4BitsWhereTheyFit) {
  ParameterStore store;
  const auto declare = [&](const char* name, Shape shape, DType dtype, bool in_products) {
    store.declare({.name = name,
                   .shard = Shard::replicated(shape),
                   .dtype = dtype,
                   .in_products = in_products});
  };
  declare("matrix", {6, 128}, DType::kBF16, true);
  declare("experts", {3, 6, 64}, DType::kBF16, true);
  declare("table", {6, 128}, DType::kBF16, false);
  declare("router", {6, 128}, DType::kF32, true);
  declare("odd", {6, 96}, DType::kBF16, true);
  store.allocate_int4(Device{});
  EXPECT_EQ(store.find("matrix").codes.shape(), (Shape{1, 6, 64}));
  EXPECT_EQ(store.find("matrix").scales.shape(), (Shape{1, 6, 2, 2}));
  EXPECT_EQ(store.find("experts").int4().codes.shape(), (Shape{3, 6, 32}));
  for (const Parameter& parameter : store.all()) {
    const bool int4 = parameter.name == "matrix" || parameter.name == "experts";
    EXPECT_EQ(parameter.value.empty(), int4) << parameter.name;
    EXPECT_EQ(parameter.int4().empty(), !int4) << parameter.name;
    if (!int4) {
      EXPECT_EQ(parameter.value.shape(), parameter.shard.local());
    }
  }
  // 4.5 bits, 2 and 4 bytes each, in pieces of 256 bytes.
  EXPECT_EQ(store.value_bytes(), (512 + 256) + (768 + 256) + 1536 + 3072 + 1280);
}

}  // namespace

}  // namespace tessera
