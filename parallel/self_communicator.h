#pragma once

#include <vector>

#include "parallel/communicator.h"

namespace tessera {

/// A rank without company: the only one of its world, where every exchange is a copy, on any
/// device, or one of a larger world that is planned, where only shapes are checked, and bytes and
/// scratch memory counted as those of an MPI rank.
class SelfCommunicator final : public Communicator {
 public:
  /// The only rank.
  SelfCommunicator() : Communicator(0, 1) {}
  /// Rank `rank` of `size`, for plans: an exchange with work to do throws.
  SelfCommunicator(int rank, int size);
  /// One of the ranks of a group of `parent`.
  SelfCommunicator(int rank, int size, const SelfCommunicator& parent, const std::string& name)
      : Communicator(rank, size, parent, name), planned_(parent.planned_) {}

 private:
  int do_start(Stream& stream, const Call& call) override;
  void do_finish(int ticket) override { flights_[static_cast<size_t>(ticket)].free = true; }
  int do_plan(const Call& call) override;
  void do_plan_values(int64_t values) override;
  void do_broadcast(Stream& stream, TensorView data, int root) override;
  void do_all_reduce_values(std::span<double> values) override;
  void do_barrier() override {}
  std::unique_ptr<Communicator> do_split(std::span<const int> colors,
                                         const std::string& name) override;

  void refuse(const char* who) const;
  /// Makes scratch memory of `held` bytes one of at least `bytes`.
  void grow(int64_t& held, int64_t bytes);

  /// A planned exchange between its start and its end; its memory serves the next one.
  struct Flight {
    bool free = true;
    int64_t scratch = 0;
  };

  bool planned_ = false;  ///< one of many
  std::vector<Flight> flights_;
  int64_t short_scratch_ = 0;
};

}  // namespace tessera
