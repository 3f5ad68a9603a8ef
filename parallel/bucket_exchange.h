#pragma once

#include <vector>

#include "parallel/bucket.h"

namespace tessera {

/// What the ranks send each other around an optimizer step: sums of gradients to the owners,
/// updated values from them (ZeRO stage 1, Rajbhandari et al. 2019, arXiv:1910.02054).
///
/// Always a sum, never a mean: 1 / tokens of the whole batch is already in the loss, so no
/// gradient depends on how many ranks there are. Sums are in the order of the ranks. All ranks
/// make the same calls in the same order. Everything happens in place.
class BucketExchange {
 public:
  /// Sums under way at a time: the next one waits for the oldest of them.
  static constexpr size_t kInFlight = 4;

  /// `buckets` are sorted by their first parameter, the same on every rank of a placement's group
  /// but for what this rank owns, and stay where they are. `mesh` must outlive this.
  BucketExchange(std::vector<Bucket> buckets, const ProcessMesh& mesh);

  const std::vector<Bucket>& buckets() const { return buckets_; }

  /// For the last micro-batch of a step: the gradients of all parameters from number `parameter`
  /// on, in the order of declaration, are complete, so the sums of buckets that hold no others may
  /// start. Backward comes to parameters in that order, from the last one down. Calling it is
  /// never needed for the result.
  void ready_from(Stream& stream, int64_t parameter);
  /// Starts what has not started, and waits for all. Then the owned gradients of each bucket are
  /// sums over its group, with the same bits in every repetition. The others are used up.
  void finish_sums(Stream& stream);
  /// total[0], f64, += sum of squares of the gradients that this rank owns, after finish_sums().
  /// Added up over the world it is the square of the norm of the whole model's gradient, each
  /// element counted once; not finite when an element is not.
  void add_owned_squares(Stream& stream, TensorView total) const;

  /// The owned values of a bucket are final: starts to send them to its group.
  void start_gather(Stream& stream, size_t bucket);
  /// Waits until the values of all parameters before number `parameter`, in the order of
  /// declaration, are here. Call it before anybody reads them.
  void wait_for_values(int64_t parameter);
  /// Waits for all values.
  void finish_gathers();

 private:
  Communicator& group(const Bucket& bucket) const { return group_of(mesh_, bucket.placement); }

  std::vector<Bucket> buckets_;
  const ProcessMesh& mesh_;
  size_t waiting_;  ///< buckets [0, waiting_) have not started
  std::vector<Pending> sums_;
  struct Gather {
    int64_t first;  ///< parameter of its bucket
    Pending values;
  };
  std::vector<Gather> gathers_;  ///< in the order of their starts
  size_t arrived_ = 0;           ///< so many of them
};

}  // namespace tessera
