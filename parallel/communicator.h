#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "kernels/core/tensor_view.h"

namespace tessera {

enum class Reduction : uint8_t { kSum, kMax };

/// A group of ranks that exchange tensors.
///
/// Every rank of the group makes the same calls in the same order. Work is done on `stream`, which
/// is on the device of the tensors; on kPlan only the shapes and dtypes are checked.
/// Sums are taken in the order of the ranks, 0 + 1 + 2 + ...: the result has the same bits on every
/// rank, in every repetition and in every implementation. A NaN on one rank is a NaN in the sum
/// and in the maximum.
/// Throws Error when a shape, dtype or count is wrong, or when another rank has failed.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  /// data = reduction of `data` over all ranks, in place. f32, bf16 (summed in f32, rounded once),
  /// i32 or i64; the same shape on every rank.
  void all_reduce(Stream& stream, TensorView data, Reduction reduction);
  /// whole = `part` of rank 0, 1, ..., concatenated along the outermost axis; overwritten.
  /// Any dtype; whole is [size * p, ...] for a part [p, ...]. No aliasing.
  void all_gather(Stream& stream, ConstTensorView part, TensorView whole);
  /// part = rows [rank * p, (rank + 1) * p) of the sum of `whole` over all ranks; overwritten.
  /// Dtypes as all_reduce; whole is [size * p, ...] for a part [p, ...]. No aliasing.
  void reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part);
  /// Sends `send_rows[r]` rows of `send` to rank r, and receives `receive_rows[r]` rows from it;
  /// both are packed in the order of the ranks. Any dtype; rows are indices of the outermost axis
  /// and may be none. Rows of `receive` beyond the sum of `receive_rows` are not touched.
  /// `receive_rows[r]` must be what rank r sends to this rank. No aliasing.
  void all_to_all(Stream& stream, ConstTensorView send, std::span<const int64_t> send_rows,
                  TensorView receive, std::span<const int64_t> receive_rows);
  /// data = `data` of rank `root`. Any dtype.
  void broadcast(Stream& stream, TensorView data, int root);

  /// Sums each host value over all ranks, in place: for losses, metrics and stop signals, in one
  /// short message. Does work on every device; use it outside plans.
  void all_reduce_values(std::span<double> values);
  /// Blocks the host until every rank has called it.
  void barrier();
  /// New groups of the ranks with equal colors, ordered by their rank here. `colors` has one color
  /// for each rank of this group and is the same on every rank (so a plan, which has only one
  /// rank, can split too). This group must outlive the new ones.
  std::unique_ptr<Communicator> split(std::span<const int> colors);

 protected:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}

 private:
  // Called with checked arguments, never on kPlan. Ranks agree on everything but the counts of
  // do_all_to_all; do_all_reduce and do_all_reduce_values only when there are several ranks.
  virtual void do_all_reduce(Stream& stream, TensorView data, Reduction reduction) = 0;
  virtual void do_all_gather(Stream& stream, ConstTensorView part, TensorView whole) = 0;
  virtual void do_reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part) = 0;
  virtual void do_all_to_all(Stream& stream, ConstTensorView send,
                             std::span<const int64_t> send_rows, TensorView receive,
                             std::span<const int64_t> receive_rows) = 0;
  virtual void do_broadcast(Stream& stream, TensorView data, int root) = 0;
  virtual void do_all_reduce_values(std::span<double> values) = 0;
  virtual void do_barrier() = 0;
  virtual std::unique_ptr<Communicator> do_split(std::span<const int> colors) = 0;

  int rank_;
  int size_;
};

}  // namespace tessera
