#include "parallel/bucket_exchange.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "parallel/self_communicator.h"
#include "parallel/thread_communicator.h"
#include "tests/parallel/meshes.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

using support::Tensor;

const std::vector<Placement> kPlacementOf{Placement::kReplicated, Placement::kTensor,
                                          Placement::kExpert, Placement::kReplicated};
constexpr int64_t kPerShard = 768;  // divides by 8 ranks of 16, and by 8 shards

/// The buckets of one rank over memory of its own.
struct RankBuckets {
  RankBuckets(const ProcessMesh& mesh, DType dtype) {
    for (size_t i = 0; i < kPlacementOf.size(); ++i) {
      const GroupPlace place = places_in(mesh).of(kPlacementOf[i]);
      values.emplace_back(dtype, Shape{kPerShard});
      gradients.emplace_back(DType::kF32, Shape{kPerShard});
      buckets.push_back({.placement = kPlacementOf[i],
                         .first = static_cast<int64_t>(10 * i),
                         .values = values.back(),
                         .gradients = gradients.back(),
                         .owned_begin = kPerShard / place.size * place.rank,
                         .owned_length = kPerShard / place.size});
    }
  }
  std::vector<Tensor> values;
  std::vector<Tensor> gradients;
  std::vector<Bucket> buckets;
};

/// Coordinate on the axis that splits bucket `i`.
int shard_of(const ProcessMesh& mesh, size_t i) {
  const std::optional<Axis> axis = rule_of(kPlacementOf[i]).sharded;
  return axis ? mesh.coordinate(*axis) : 0;
}

/// What rank `rank` of the world adds to the gradients of bucket `i`.
Tensor contribution(int rank, size_t i) {
  return support::random_tensor(DType::kF32, {kPerShard}, static_cast<uint64_t>(rank * 100) + i);
}

/// The sum over the ranks of the world that hold shard `shard` of bucket `i`.
std::vector<double> summed(const MeshShape& shape, size_t i, int shard) {
  std::vector<double> sums(kPerShard, 0);
  for (int rank = 0; rank < shape.ranks(); ++rank) {
    SelfCommunicator world(rank, shape.ranks());
    if (shard_of(ProcessMesh(world, shape), i) != shard) continue;
    const std::vector<double> part = support::to_doubles(contribution(rank, i).view());
    for (size_t k = 0; k < sums.size(); ++k) sums[k] += part[k];
  }
  return sums;
}

/// The norm over all shards of all buckets.
double whole_norm(const MeshShape& shape) {
  double squares = 0;
  for (size_t i = 0; i < kPlacementOf.size(); ++i) {
    const std::optional<Axis> axis = rule_of(kPlacementOf[i]).sharded;
    const int shards = !axis ? 1 : *axis == Axis::kTensor ? shape.tensor : shape.expert;
    for (int shard = 0; shard < shards; ++shard) {
      for (const double x : summed(shape, i, shard)) squares += x * x;
    }
  }
  return std::sqrt(squares);
}

double owned_squares(const BucketExchange& exchange, Stream& stream) {
  const Tensor total(DType::kF64, {1});
  exchange.add_owned_squares(stream, total);
  stream.synchronize();
  return total.as<double>()[0];
}

TEST(BucketExchange, SumsForTheOwnersAndCountsEachElementOnceOnEveryMesh) {
  for (const MeshShape& shape : support::meshes_of(8)) {
    SCOPED_TRACE(to_string(shape));
    const double expected_norm = whole_norm(shape);
    std::vector<double> norms(8);
    run_ranks(8, [&](Communicator& world) {
      Stream stream{support::device(), 1};
      const ProcessMesh mesh(world, shape);
      RankBuckets mine(mesh, DType::kF32);
      BucketExchange exchange(mine.buckets, mesh);
      for (int step = 0; step < 2; ++step) {  // nothing is left over from the step before
        for (size_t i = 0; i < mine.buckets.size(); ++i) {
          const Tensor part = contribution(world.rank(), i);
          std::copy_n(part.as<float>().data(), kPerShard, mine.gradients[i].as<float>().data());
        }
        if (step == 1) exchange.ready_from(stream, 15);
        exchange.finish_sums(stream);
        stream.synchronize();
        for (size_t i = 0; i < mine.buckets.size(); ++i) {
          const Bucket& bucket = mine.buckets[i];
          const std::vector<double> sums = summed(shape, i, shard_of(mesh, i));
          const std::vector<double> owned(sums.begin() + bucket.owned_begin,
                                          sums.begin() + bucket.owned_end());
          support::expect_close(bucket.owned_gradients(), owned, 1e-13, concat("bucket ", i));
        }
        std::array<double, 1> squares{owned_squares(exchange, stream)};
        world.all_reduce_values(squares);
        EXPECT_NEAR(std::sqrt(squares[0]) / expected_norm, 1, 1e-6);
        norms[static_cast<size_t>(world.rank())] = squares[0];
      }
    });
    EXPECT_EQ(norms, std::vector<double>(8, norms[0])) << "the same bits on every rank";
  }
}

TEST(BucketExchange, GathersWhatTheOwnersHaveSet) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    run_ranks(4, [&](Communicator& world) {
      Stream stream{support::device(), 1};
      const ProcessMesh mesh(world, {1, 2, 1, 2});
      RankBuckets mine(mesh, dtype);
      BucketExchange exchange(mine.buckets, mesh);
      for (size_t i = 0; i < mine.buckets.size(); ++i) {
        const uint64_t seed = 10 * i + static_cast<uint64_t>(shard_of(mesh, i));
        const Tensor wanted = support::random_tensor(dtype, {kPerShard}, seed);
        const TensorView own = mine.buckets[i].owned_values();
        const ConstTensorView part =
            wanted.view().rows(mine.buckets[i].owned_begin, mine.buckets[i].owned_length);
        std::memcpy(own.data(), part.data(), static_cast<size_t>(own.bytes()));
        exchange.start_gather(stream, i);
      }
      exchange.finish_gathers();
      stream.synchronize();
      for (size_t i = 0; i < mine.buckets.size(); ++i) {
        const uint64_t seed = 10 * i + static_cast<uint64_t>(shard_of(mesh, i));
        const Tensor wanted = support::random_tensor(dtype, {kPerShard}, seed);
        support::expect_same_bits(mine.values[i], wanted, concat("bucket ", i));
      }
    });
  }
}

TEST(BucketExchange, TheNormSeesOneElementThatIsNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    run_ranks(2, [&](Communicator& world) {
      Stream stream{support::device(), 1};
      const ProcessMesh mesh(world, {2, 1, 1, 1});
      RankBuckets mine(mesh, DType::kF32);
      BucketExchange exchange(mine.buckets, mesh);
      if (world.rank() == 0) mine.gradients[1].as<float>()[5] = std::numeric_limits<float>::max();
      exchange.finish_sums(stream);
      const auto world_squares = [&] {
        std::array<double, 1> squares{owned_squares(exchange, stream)};
        world.all_reduce_values(squares);
        return squares[0];
      };
      EXPECT_TRUE(std::isfinite(world_squares())) << "large is not infinite";
      if (world.rank() == 1) mine.gradients[2].as<float>()[700] = bad;
      exchange.finish_sums(stream);
      EXPECT_FALSE(std::isfinite(world_squares()));
    });
  }
}

TEST(BucketExchange, PlansOnTheDeviceThatDoesNothing) {
  Stream stream{Device{DeviceKind::kPlan}};
  SelfCommunicator world(3, 4);
  const ProcessMesh mesh(world, {4, 1, 1, 1});
  const Bucket bucket{.values = support::plan_view(DType::kBF16, {256}),
                      .gradients = support::plan_view(DType::kF32, {256}),
                      .owned_begin = 192,
                      .owned_length = 64};
  BucketExchange exchange({bucket}, mesh);
  exchange.finish_sums(stream);
  exchange.start_gather(stream, 0);
  exchange.finish_gathers();
  exchange.add_owned_squares(stream, support::plan_view(DType::kF64, {1}));
  // 192 of 256 gradients to their owners, 64 values to each of three ranks.
  EXPECT_EQ(world.log().traffic("world", Collective::kReduceScatter), (Traffic{1, 768, 768}));
  EXPECT_EQ(world.log().traffic("world", Collective::kAllGather), (Traffic{1, 384, 384}));
}

TEST(BucketExchange, RefusesBucketsThatDoNotFitTheGroups) {
  SelfCommunicator world(1, 2);
  const ProcessMesh mesh(world, {2, 1, 1, 1});
  Bucket bucket{.first = 3,
                .values = support::plan_view(DType::kF32, {64}),
                .gradients = support::plan_view(DType::kF32, {64}),
                .owned_begin = 0,
                .owned_length = 32};
  support::expect_error([&] { BucketExchange({bucket}, mesh); },
                        "this rank owns 32 of 64 elements from 0 on, expected part 1 of 2");
  bucket.owned_begin = 32;
  Bucket earlier = bucket;
  earlier.first = 2;
  support::expect_error(
      [&] {
        BucketExchange({bucket, earlier}, mesh);
      },
      "not in the order of their first parameters");
  bucket.gradients = support::plan_view(DType::kBF16, {64});
  support::expect_error([&] { BucketExchange({bucket}, mesh); },
                        "gradients bf16 [64], expected f32 gradients of the same length");
}

}  // namespace
}  // namespace tessera
