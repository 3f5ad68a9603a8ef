#pragma once

#include "parallel/communicator.h"

namespace tessera {

/// A rank without company: the only one of its world, where every exchange is a copy on the host,
/// or one of a larger world that is planned, where only shapes are checked.
class SelfCommunicator final : public Communicator {
 public:
  /// The only rank.
  SelfCommunicator() : Communicator(0, 1) {}
  /// Rank `rank` of `size`, for plans: an exchange with work to do throws.
  SelfCommunicator(int rank, int size);

 private:
  void do_all_reduce(Stream& stream, TensorView data, Reduction reduction) override;
  void do_all_gather(Stream& stream, ConstTensorView part, TensorView whole) override;
  void do_reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part) override;
  void do_all_to_all(Stream& stream, ConstTensorView send, std::span<const int64_t> send_rows,
                     TensorView receive, std::span<const int64_t> receive_rows) override;
  void do_broadcast(Stream& stream, TensorView data, int root) override;
  void do_all_reduce_values(std::span<double> values) override;
  void do_barrier() override {}
  std::unique_ptr<Communicator> do_split(std::span<const int> colors) override;

  void check_alone(const char* who) const;
};

}  // namespace tessera
