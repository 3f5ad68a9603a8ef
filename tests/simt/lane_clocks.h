#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace tessera::simt {

/// What each lane of a block knows of the others' work, where that is ordered by barriers of some
/// lanes only (mbarriers, named barriers): vector clocks. Agents are the lanes and, from
/// kFirstCopier on, one per mbarrier for the copies that arrive there.
class LaneClocks {
 public:
  static constexpr uint32_t kFirstCopier = 1024;
  static constexpr uint32_t kCopiers = 64;
  /// Of agents, for each the time up to which all it did is known. Empty: nothing.
  using Knowledge = std::vector<uint32_t>;

  void begin_block(size_t lanes);
  /// Whether the block has used them: all else is nothing without.
  bool used() const { return used_; }
  uint32_t now() const { return now_; }
  /// Later than everything so far.
  uint32_t tick() { return ++now_; }

  /// All that `lane` knows and did is known to whoever acquires `to`.
  void release(size_t lane, Knowledge& to);
  void acquire(size_t lane, const Knowledge& from);
  /// Lanes [32 warp, 32 warp + 32) that are in `mask` tell each other everything; and all lanes.
  void meet(size_t warp, uint32_t mask);
  void meet_all();
  /// Whether `lane` knows what `agent` did at `time`.
  bool knows(size_t lane, uint32_t agent, uint32_t time) const {
    return used_ && known_[lane].size() > agent && known_[lane][agent] > time;
  }
  bool knows_of_warp(size_t lane, size_t warp, uint32_t time) const;
  /// `agent` did something that ends now, and whoever acquires `to` knows.
  void add(Knowledge& to, uint32_t agent);

 private:
  void start();

  bool used_ = false;
  uint32_t now_ = 1;
  size_t lanes_ = 0;
  std::vector<Knowledge> known_;  // by lane
};
/// Of the block that this thread of the host runs.
LaneClocks& lane_clocks();

}  // namespace tessera::simt
