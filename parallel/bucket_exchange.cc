#include "parallel/bucket_exchange.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "kernels/elementwise.h"
#include "kernels/reduce.h"

namespace tessera {

namespace {

void check(const Bucket& bucket, const Communicator& group) {
  const int64_t elements = bucket.values.elements();
  CHECK(bucket.values.shape().rank() == 1 && bucket.gradients.dtype() == DType::kF32 &&
            bucket.gradients.shape() == bucket.values.shape(),
        "bucket_exchange: values are ", bucket.values.shape(), " and gradients ",
        name_of(bucket.gradients.dtype()), " ", bucket.gradients.shape(),
        ", expected f32 gradients of the same length");
  CHECK(bucket.owned_length * group.size() == elements &&
            bucket.owned_begin == bucket.owned_length * group.rank(),
        "bucket_exchange: this rank owns ", bucket.owned_length, " of ", elements,
        " elements from ", bucket.owned_begin, " on, expected part ", group.rank(), " of ",
        group.size());
}

}  // namespace

BucketExchange::BucketExchange(std::vector<Bucket> buckets, const PlacementGroups& groups)
    : buckets_(std::move(buckets)), groups_(groups), waiting_(buckets_.size()) {
  CHECK(std::is_sorted(buckets_.begin(), buckets_.end(),
                       [](const Bucket& a, const Bucket& b) { return a.first < b.first; }),
        "bucket_exchange: the buckets are not in the order of their first parameters");
  int64_t longest = 0;
  for (const Bucket& bucket : buckets_) {
    check(bucket, group(bucket));
    if (group(bucket).size() > 1) longest = std::max(longest, bucket.owned_length);
  }
  if (longest > 0) scratch_ = Buffer(buckets_[0].values.device(), longest * 4);
}

TensorView BucketExchange::scratch(const TensorView& like) const {
  return scratch_.view(like.dtype(), like.shape());
}

void BucketExchange::start_sum(Stream& stream, const Bucket& bucket) {
  if (group(bucket).size() == 1) return;
  const TensorView sum = scratch(bucket.owned_gradients());
  group(bucket).reduce_scatter(stream, bucket.gradients, sum);
  cast(stream, {.y = bucket.owned_gradients(), .x = sum});
}

void BucketExchange::ready_from(Stream& stream, int64_t parameter) {
  while (waiting_ > 0 && buckets_[waiting_ - 1].first >= parameter) {
    start_sum(stream, buckets_[--waiting_]);
  }
}

void BucketExchange::finish_sums(Stream& stream) {
  ready_from(stream, 0);
  waiting_ = buckets_.size();
}

GradientNorm BucketExchange::norm(Stream& stream) const {
  std::array<double, 1> squares{0};
  for (const Bucket& bucket : buckets_) {
    squares[0] += sum_of_squares(stream, bucket.owned_gradients());
  }
  if (!stream.on(DeviceKind::kPlan)) groups_.world().all_reduce_values(squares);
  // The square of a float cannot overflow a double, so only an element that is not finite can make
  // the sum so.
  return {std::sqrt(squares[0]), std::isfinite(squares[0])};
}

void BucketExchange::start_gather(Stream& stream, size_t bucket) {
  const Bucket& one = buckets_[bucket];
  if (group(one).size() == 1) return;
  const TensorView part = scratch(one.owned_values());
  cast(stream, {.y = part, .x = one.owned_values()});
  group(one).all_gather(stream, part, one.values);
}

void BucketExchange::finish_gathers(Stream&) {}

}  // namespace tessera
