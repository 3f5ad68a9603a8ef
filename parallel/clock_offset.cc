#include "parallel/clock_offset.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "parallel/flight_recorder.h"

namespace tessera {

namespace {

constexpr size_t kBarriers = 64;
constexpr int64_t kSecond = 1'000'000'000;

// FNV-1a, cut to what a double holds.
uint64_t hash(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  }
  return hash >> 12;
}

// Nanoseconds since a host was started may be more than a double holds; seconds and the rest are
// not.
void put(int64_t nanoseconds, double* to) {
  const int64_t seconds = nanoseconds / kSecond;
  to[0] = static_cast<double>(seconds);
  to[1] = static_cast<double>(nanoseconds - seconds * kSecond);
}

int64_t get(const double* from) {
  return std::llround(from[0]) * kSecond + std::llround(from[1]);
}

struct Barrier {
  int64_t entered = 0;
  int64_t left = 0;
};

std::vector<Barrier> pass_barriers(Communicator& ranks, const HostClock& clock) {
  std::vector<Barrier> passed(kBarriers);
  for (Barrier& barrier : passed) {
    barrier.entered = clock.now();
    ranks.barrier();
    barrier.left = clock.now();
  }
  return passed;
}

/// Those of rank 0, on every rank.
std::vector<Barrier> barriers_of_root(Communicator& ranks, const std::vector<Barrier>& mine) {
  std::vector<double> values(4 * kBarriers);
  for (size_t i = 0; i < kBarriers && ranks.rank() == 0; ++i) {
    put(mine[i].entered, &values[4 * i]);
    put(mine[i].left, &values[4 * i + 2]);
  }
  ranks.all_reduce_values(values);
  std::vector<Barrier> root(kBarriers);
  for (size_t i = 0; i < kBarriers; ++i) root[i] = {get(&values[4 * i]), get(&values[4 * i + 2])};
  return root;
}

/// The lowest rank with each clock, in order.
std::vector<size_t> first_of_each(const std::vector<double>& identities) {
  std::vector<size_t> firsts;
  for (size_t rank = 0; rank < identities.size(); ++rank) {
    if (std::none_of(firsts.begin(), firsts.end(),
                     [&](size_t first) { return identities[first] == identities[rank]; })) {
      firsts.push_back(rank);
    }
  }
  return firsts;
}

}  // namespace

HostClock monotonic_clock() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  std::error_code none;
  const auto space = std::filesystem::read_symlink("/proc/self/ns/time", none);
  return {.now = monotonic_nanoseconds, .identity = hash(boot + space.string())};
}

ClockOffset measure_clock_offset(Communicator& ranks, const HostClock& clock) {
  const auto own = static_cast<size_t>(ranks.rank());
  std::vector<double> identities(static_cast<size_t>(ranks.size()));
  identities[own] = static_cast<double>(clock.identity);
  ranks.all_reduce_values(identities);
  const std::vector<size_t> firsts = first_of_each(identities);

  const std::vector<Barrier> mine = pass_barriers(ranks, clock);
  const std::vector<Barrier> root = barriers_of_root(ranks, mine);
  int64_t least = std::numeric_limits<int64_t>::min();
  int64_t most = std::numeric_limits<int64_t>::max();
  for (size_t i = 0; i < kBarriers; ++i) {
    least = std::max(least, root[i].entered - mine[i].left);
    most = std::min(most, root[i].left - mine[i].entered);
  }

  // What the first rank with each clock has found holds for all that share it.
  std::vector<double> found(3 * firsts.size());
  ClockOffset offset{.origin = root.front().entered, .clocks = static_cast<int>(firsts.size())};
  size_t shared = 0;
  for (size_t i = 0; i < firsts.size(); ++i) {
    if (identities[firsts[i]] == identities[own]) shared = 3 * i;
    if (firsts[i] != own || own == 0) continue;
    put(least + (most - least) / 2, &found[3 * i]);
    found[3 * i + 2] = static_cast<double>((std::abs(most - least) + 1) / 2);
  }
  ranks.all_reduce_values(found);
  offset.to_root = get(&found[shared]);
  offset.error = std::llround(found[shared + 2]);
  for (size_t i = 0; i < firsts.size(); ++i) {
    offset.worst_error = std::max<int64_t>(offset.worst_error, std::llround(found[3 * i + 2]));
  }
  return offset;
}

}  // namespace tessera
