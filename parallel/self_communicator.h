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
  /// One of the ranks of a group of `parent`.
  SelfCommunicator(int rank, int size, const Communicator& parent, const std::string& name)
      : Communicator(rank, size, parent, name) {}

 private:
  int do_start(Stream& stream, const Call& call) override;
  void do_finish(int) override {}
  void do_broadcast(Stream& stream, TensorView data, int root) override;
  void do_all_reduce_values(std::span<double> values) override;
  void do_barrier() override {}
  std::unique_ptr<Communicator> do_split(std::span<const int> colors,
                                         const std::string& name) override;

  void check_alone(const char* who) const;
};

}  // namespace tessera
