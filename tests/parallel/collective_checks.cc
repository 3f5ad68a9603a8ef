#include "tests/parallel/collective_checks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {

namespace {

using support::Tensor;

// Around the borders of empty slices, blocks and the change from short to long messages.
const std::vector<int64_t> kLengths{1, 2, 7, 1023, 4096, 16385, 20011};

/// What rank `rank` brings. The scale grows from one rank to the next, so that f32 sums depend on
/// their order.
Tensor brought(DType dtype, Shape shape, int rank, uint64_t seed = 1) {
  const double scale = dtype == DType::kI32 || dtype == DType::kI64 ? 1000 : 1;
  return support::random_tensor(dtype, shape, seed * 100 + static_cast<uint64_t>(rank),
                                scale * std::pow(3.7, rank % 5));
}

/// Like brought, but quick to make, for sums that take several chunks.
Tensor brought_quickly(int64_t length, int rank) {
  Tensor tensor(DType::kF32, {length});
  uint32_t word = static_cast<uint32_t>(rank) + 1;
  for (float& x : tensor.as<float>()) {
    word = word * 1664525 + 1013904223;
    x = std::ldexp(static_cast<float>(word), -static_cast<int>(word >> 28));
  }
  return tensor;
}

/// The sum over all ranks in the order of the ranks: in f32 for f32, exactly for whole numbers.
std::vector<double> ordered_sum(DType dtype, Shape shape, int ranks, uint64_t seed = 1) {
  std::vector<double> sums = support::to_doubles(brought(dtype, shape, 0, seed).view());
  for (int r = 1; r < ranks; ++r) {
    const std::vector<double> part = support::to_doubles(brought(dtype, shape, r, seed).view());
    for (size_t i = 0; i < sums.size(); ++i) {
      const bool whole_number = dtype == DType::kI32 || dtype == DType::kI64;
      sums[i] = whole_number ? sums[i] + part[i]
                             : static_cast<float>(sums[i]) + static_cast<float>(part[i]);
    }
  }
  if (dtype == DType::kBF16) {
    for (double& sum : sums) sum = to_float(from_float<BF16>(static_cast<float>(sum)));
  }
  return sums;
}

std::vector<double> rows_of(const std::vector<double>& values, int64_t first, int64_t count) {
  return {values.begin() + first, values.begin() + first + count};
}

uint64_t hash(uint64_t seed, const ConstTensorView& view) {
  const auto* bytes = static_cast<const unsigned char*>(view.data());
  for (int64_t i = 0; i < view.bytes(); ++i) seed = (seed ^ bytes[i]) * 0x100000001B3;
  return seed;
}

/// How many rows rank `from` sends to rank `to`: uneven, and often none.
int64_t rows_between(int from, int to, int64_t many) {
  return (from * 3 + to * 5) % 4 * many;
}

struct Routing {
  std::vector<int64_t> send_rows;
  std::vector<int64_t> receive_rows;
  int64_t sent = 0;
  int64_t received = 0;
};

Routing routing_of(int rank, int ranks, int64_t many) {
  Routing routing;
  for (int r = 0; r < ranks; ++r) {
    routing.send_rows.push_back(rows_between(rank, r, many));
    routing.receive_rows.push_back(rows_between(r, rank, many));
    routing.sent += routing.send_rows.back();
    routing.received += routing.receive_rows.back();
  }
  return routing;
}

}  // namespace

void check_all_reduce(Communicator& world) {
  Stream stream{support::device()};
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI32, DType::kI64}) {
    for (const int64_t length : kLengths) {
      const Tensor data = brought(dtype, {length}, world.rank());
      world.all_reduce(stream, data, Reduction::kSum);
      world.synchronize(stream);
      EXPECT_EQ(support::to_doubles(data.view()), ordered_sum(dtype, {length}, world.size()))
          << name_of(dtype) << " " << length;
    }
  }
  const Tensor empty(DType::kF32, {0, 4});
  world.all_reduce(stream, empty, Reduction::kSum);
  world.synchronize(stream);
}

void check_max_and_nan(Communicator& world) {
  Stream stream{support::device()};
  for (const int64_t length : {int64_t{5}, int64_t{20011}}) {
    const Tensor data = brought(DType::kF32, {length}, world.rank());
    std::vector<double> largest = support::to_doubles(brought(DType::kF32, {length}, 0).view());
    for (int r = 1; r < world.size(); ++r) {
      const Tensor part = brought(DType::kF32, {length}, r);
      for (size_t i = 0; i < largest.size(); ++i) {
        largest[i] = std::max(largest[i], static_cast<double>(part.as<float>()[i]));
      }
    }
    world.all_reduce(stream, data, Reduction::kMax);
    world.synchronize(stream);
    EXPECT_EQ(support::to_doubles(data.view()), largest);
  }
  for (const Reduction reduction : {Reduction::kSum, Reduction::kMax}) {
    for (int who = 0; who < world.size(); ++who) {
      const Tensor data = support::filled(DType::kF32, {3}, 1);
      if (world.rank() == who) data.as<float>()[1] = std::numeric_limits<float>::quiet_NaN();
      world.all_reduce(stream, data, reduction);
      world.synchronize(stream);
      EXPECT_TRUE(std::isfinite(data.as<float>()[0]));
      EXPECT_TRUE(std::isnan(data.as<float>()[1])) << "the NaN of rank " << who << " is lost";
    }
  }
}

void check_all_gather(Communicator& world) {
  Stream stream{support::device()};
  for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{5001}}) {
    const Tensor part = brought(DType::kBF16, {rows, 7}, world.rank());
    const Tensor whole = support::filled(DType::kBF16, {rows * world.size(), 7}, -1);
    world.all_gather(stream, part, whole);
    world.synchronize(stream);
    for (int r = 0; r < world.size(); ++r) {
      support::expect_same_bits(whole.view().rows(r * rows, rows),
                                brought(DType::kBF16, {rows, 7}, r).view(),
                                concat("part of rank ", r));
    }
  }
}

void check_reduce_scatter(Communicator& world) {
  Stream stream{support::device()};
  for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{9001}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Shape shape{rows * world.size(), 5};
      const Tensor part = support::filled(dtype, {rows, 5}, -1);
      world.reduce_scatter(stream, brought(dtype, shape, world.rank()).view(), part);
      world.synchronize(stream);
      EXPECT_EQ(support::to_doubles(part.view()),
                rows_of(ordered_sum(dtype, shape, world.size()), world.rank() * rows * 5, rows * 5))
          << name_of(dtype) << " " << shape;
    }
  }
}

void check_all_to_all(Communicator& world) {
  Stream stream{support::device()};
  for (const int64_t many : {int64_t{0}, int64_t{1}, int64_t{2000}}) {
    const Routing own = routing_of(world.rank(), world.size(), many);
    const Tensor send = brought(DType::kF32, {own.sent, 6}, world.rank());
    const Tensor receive = support::filled(DType::kF32, {own.received + 2, 6}, -7);
    world.all_to_all(stream, send, own.send_rows, receive, own.receive_rows);
    world.synchronize(stream);
    int64_t at = 0;
    for (int r = 0; r < world.size(); ++r) {
      const Routing theirs = routing_of(r, world.size(), many);
      int64_t first = 0;
      for (int to = 0; to < world.rank(); ++to) first += theirs.send_rows[static_cast<size_t>(to)];
      const int64_t rows = own.receive_rows[static_cast<size_t>(r)];
      support::expect_same_bits(receive.view().rows(at, rows),
                                brought(DType::kF32, {theirs.sent, 6}, r).view().rows(first, rows),
                                concat("rows of rank ", r));
      at += rows;
    }
    EXPECT_EQ(support::to_doubles(receive.view().rows(own.received, 2)),
              std::vector<double>(12, -7))
        << "rows beyond the received ones were written";
  }
}

void check_broadcast(Communicator& world) {
  Stream stream{support::device()};
  for (int root = 0; root < world.size(); ++root) {
    const Tensor data = brought(DType::kI64, {1234}, world.rank());
    world.broadcast(stream, data, root);
    world.synchronize(stream);
    support::expect_same_bits(data.view(), brought(DType::kI64, {1234}, root).view(),
                              concat("from rank ", root));
  }
}

void check_values(Communicator& world) {
  std::vector<double> values{0.1 * (world.rank() + 1), 1, 1e300 * world.rank(), 0};
  double tenths = 0;
  double large = 0;
  for (int r = 0; r < world.size(); ++r) {
    tenths = r == 0 ? 0.1 : tenths + 0.1 * (r + 1);
    large += 1e300 * r;
  }
  world.all_reduce_values(values);
  EXPECT_EQ(values, (std::vector<double>{tenths, static_cast<double>(world.size()), large, 0}));
  world.all_reduce_values({});
  world.barrier();
}

void check_split(Communicator& world) {
  Stream stream{support::device()};
  std::vector<int> colors;
  for (int r = 0; r < world.size(); ++r) colors.push_back(r % 2);
  const std::unique_ptr<Communicator> half = world.split(colors, "half");
  EXPECT_EQ(half->rank(), world.rank() / 2);
  EXPECT_EQ(half->size(), (world.size() + 1 - world.rank() % 2) / 2);
  const Tensor data = support::filled(DType::kI32, {1}, world.rank());
  half->all_reduce(stream, data, Reduction::kSum);
  world.synchronize(stream);
  int sum = 0;
  for (int r = world.rank() % 2; r < world.size(); r += 2) sum += r;
  EXPECT_EQ(data.as<int32_t>()[0], sum);
  // A split of a split, and the first group is still in use.
  const std::unique_ptr<Communicator> alone = half->split(
      [&] {
        std::vector<int> each;
        for (int r = 0; r < half->size(); ++r) each.push_back(r);
        return each;
      }(),
      "alone");
  EXPECT_EQ(alone->size(), 1);
  EXPECT_EQ(alone->name(), "alone");
  EXPECT_EQ(&alone->log(), &world.log());
  alone->barrier();
  world.barrier();
}

uint64_t exchange_digest(Communicator& world) {
  Stream stream{support::device()};
  uint64_t digest = 0xCBF29CE484222325;
  const Tensor long_sum = brought_quickly(4300001, world.rank());
  world.all_reduce(stream, long_sum, Reduction::kSum);
  world.synchronize(stream);
  digest = hash(digest, long_sum.view());
  for (uint64_t round = 1; round <= 2; ++round) {
    for (const int64_t length : {int64_t{3}, int64_t{5000}, int64_t{60000}}) {
      const Tensor sum = brought(DType::kF32, {length}, world.rank(), round);
      world.all_reduce(stream, sum, Reduction::kSum);
      world.synchronize(stream);
      digest = hash(digest, sum.view());
    }
    const Tensor part(DType::kF32, {1000, 9});
    const Tensor whole = brought(DType::kF32, {1000 * world.size(), 9}, world.rank(), round);
    world.reduce_scatter(stream, whole, part);
    world.synchronize(stream);
    digest = hash(digest, part.view());
    world.all_gather(stream, part, whole);
    world.synchronize(stream);
    digest = hash(digest, whole.view());
    const Routing own = routing_of(world.rank(), world.size(), 10);
    const Tensor receive(DType::kF32, {own.received, 9});
    world.all_to_all(stream, brought(DType::kF32, {own.sent, 9}, world.rank(), round).view(),
                     own.send_rows, receive, own.receive_rows);
    world.synchronize(stream);
    digest = hash(digest, receive.view());
    double values[] = {0.1 * (world.rank() + 1), 1.0 / 3};
    world.all_reduce_values(values);
    digest = hash(digest, {values, DType::kI64, {2}, Device{}});
  }
  return digest;
}

}  // namespace tessera
