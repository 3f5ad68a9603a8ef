#include "parallel/bucket_exchange.h"

#include <algorithm>
#include <limits>
#include <utility>

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

void wait_for(std::vector<Pending>& exchanges) {
  for (Pending& exchange : exchanges) exchange.wait();
  exchanges.clear();
}

}  // namespace

BucketExchange::BucketExchange(std::vector<Bucket> buckets, const ProcessMesh& mesh)
    : buckets_(std::move(buckets)), mesh_(mesh), waiting_(buckets_.size()) {
  CHECK(std::is_sorted(buckets_.begin(), buckets_.end(),
                       [](const Bucket& a, const Bucket& b) { return a.first < b.first; }),
        "bucket_exchange: the buckets are not in the order of their first parameters");
  for (const Bucket& bucket : buckets_) check(bucket, group(bucket));
  sums_.reserve(buckets_.size());
  gathers_.reserve(buckets_.size());
}

void BucketExchange::ready_from(Stream& stream, int64_t parameter) {
  while (waiting_ > 0 && buckets_[waiting_ - 1].first >= parameter) {
    const Bucket& bucket = buckets_[--waiting_];
    if (group(bucket).size() == 1) continue;
    if (sums_.size() >= kInFlight) sums_[sums_.size() - kInFlight].wait();
    sums_.push_back(
        group(bucket).start_reduce_scatter(stream, bucket.gradients, bucket.owned_gradients()));
  }
}

void BucketExchange::finish_sums(Stream& stream) {
  ready_from(stream, 0);
  wait_for(sums_);
  waiting_ = buckets_.size();
}

void BucketExchange::add_owned_squares(Stream& stream, TensorView total) const {
  // The square of a float cannot overflow a double, so only an element that is not finite can make
  // the sum so.
  for (const Bucket& bucket : buckets_) {
    add_sum_of_squares(stream, {.total = total, .x = bucket.owned_gradients()});
  }
}

void BucketExchange::start_gather(Stream& stream, size_t bucket) {
  const Bucket& one = buckets_[bucket];
  if (group(one).size() == 1) return;
  gathers_.push_back(
      {one.first, group(one).start_all_gather(stream, one.owned_values(), one.values)});
}

void BucketExchange::wait_for_values(int64_t parameter) {
  while (arrived_ < gathers_.size() && gathers_[arrived_].first < parameter) {
    gathers_[arrived_++].values.wait();
  }
  if (arrived_ < gathers_.size()) return;
  gathers_.clear();
  arrived_ = 0;
}

void BucketExchange::finish_gathers() {
  wait_for_values(std::numeric_limits<int64_t>::max());
}

}  // namespace tessera
