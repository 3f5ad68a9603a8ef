#pragma once

#include <string>
#include <vector>

#include "runtime/watch/rank_report.h"

namespace tessera {

/// Reports of the ranks of a job that never ran: four ranks, on two hosts, in two tensor groups of
/// two ranks. Its times are seconds before the report.
class ImaginedJob {
 public:
  static constexpr int kWorld = 0;  ///< the entries of its groups
  static constexpr int kTensor = 1;

  ImaginedJob();

  RankReport& rank(int r) { return ranks_[static_cast<size_t>(r)]; }
  const std::vector<RankReport>& reports() const { return ranks_; }

  struct Call {
    Collective operation = Collective::kAllReduce;
    int64_t elements = 64;
    int32_t line = 10;
    int64_t step = 7;
  };
  /// The rank makes an exchange on one of its groups, and completes it.
  CollectiveRecord& exchange(int r, int group, const Call& call);
  CollectiveRecord& exchange(int r, int group) { return exchange(r, group, Call{}); }
  /// The rank makes an exchange, and is blocked in it.
  void block(int r, int group, const Call& call);
  void block(int r, int group) { block(r, group, Call{}); }

 private:
  CollectiveRecord& start(int r, int group, const Call& call);

  std::vector<RankReport> ranks_;
};

}  // namespace tessera
