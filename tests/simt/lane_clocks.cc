#include "tests/simt/lane_clocks.h"

#include <algorithm>

namespace tessera::simt {
namespace {

constexpr size_t kAgents = LaneClocks::kFirstCopier + LaneClocks::kCopiers;

void join(LaneClocks::Knowledge& to, const LaneClocks::Knowledge& from) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

}  // namespace

void LaneClocks::begin_block(size_t lanes) {
  used_ = false;
  now_ = 1;
  lanes_ = lanes;
}

void LaneClocks::start() {
  if (used_) return;
  used_ = true;
  known_.assign(lanes_, Knowledge(kAgents));
}

void LaneClocks::release(size_t lane, Knowledge& to) {
  start();
  known_[lane][lane] = tick();
  join(to, known_[lane]);
}

void LaneClocks::acquire(size_t lane, const Knowledge& from) {
  start();
  join(known_[lane], from);
}

void LaneClocks::meet(size_t warp, uint32_t mask) {
  if (!used_) return;
  Knowledge all;
  tick();
  for (size_t lane = 32 * warp; lane < std::min(lanes_, 32 * warp + 32); ++lane) {
    if ((mask >> lane % 32 & 1) != 0) {
      known_[lane][lane] = now_;
      join(all, known_[lane]);
    }
  }
  for (size_t lane = 32 * warp; lane < std::min(lanes_, 32 * warp + 32); ++lane) {
    if ((mask >> lane % 32 & 1) != 0) known_[lane] = all;
  }
}

void LaneClocks::meet_all() {
  if (!used_) return;
  Knowledge all;
  tick();
  for (size_t lane = 0; lane < lanes_; ++lane) {
    known_[lane][lane] = now_;
    join(all, known_[lane]);
  }
  for (Knowledge& lane : known_) lane = all;
}

bool LaneClocks::knows_of_warp(size_t lane, size_t warp, uint32_t time) const {
  for (size_t other = 32 * warp; other < std::min(lanes_, 32 * warp + 32); ++other) {
    if (other == lane || knows(lane, static_cast<uint32_t>(other), time)) return true;
  }
  return false;
}

void LaneClocks::add(Knowledge& to, uint32_t agent) {
  start();
  if (to.empty()) to.resize(kAgents);
  to[agent] = std::max(to[agent], tick());
}

LaneClocks& lane_clocks() {
  thread_local LaneClocks instance;
  return instance;
}

}  // namespace tessera::simt
