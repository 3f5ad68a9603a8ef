#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace tessera::faults {

/// How many points a campaign of faults has: `usual`, times the environment variable
/// TESSERA_FAULT_FACTOR, which scripts/faults.sh sets for the long version.
inline int64_t points_of(int64_t usual) {
  const char* factor = std::getenv("TESSERA_FAULT_FACTOR");
  return factor == nullptr ? usual : std::max<int64_t>(1, usual * std::atoll(factor));
}

/// Random numbers of a campaign. The seed is 1, or TESSERA_FAULT_SEED, so that a failure can be
/// repeated and a long campaign is not the same every time.
inline std::mt19937_64 random_of(uint64_t campaign) {
  const char* seed = std::getenv("TESSERA_FAULT_SEED");
  const auto first = seed == nullptr ? 1 : std::strtoull(seed, nullptr, 10);
  return std::mt19937_64(first * 1000 + campaign);
}

/// A number from `least` to `most`.
inline int64_t pick(std::mt19937_64& random, int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random);
}

/// Counts the points of a campaign and fails the test for every violation. At its end it prints
/// one line, which scripts/faults.sh collects: name, points, violations, seconds, note.
class Campaign {
 public:
  explicit Campaign(std::string name) : name_(std::move(name)) {}
  ~Campaign() {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
    std::printf("FAULTS | %s | %lld | %lld | %.1f | %s\n", name_.c_str(),
                static_cast<long long>(points_), static_cast<long long>(violations_),
                seconds.count(), note_.c_str());
    std::fflush(stdout);
  }
  Campaign(const Campaign&) = delete;
  Campaign& operator=(const Campaign&) = delete;

  void point(const std::vector<std::string>& violations, const std::string& what) {
    ++points_;
    if (violations.empty()) return;
    ++violations_;
    for (const std::string& sentence : violations) ADD_FAILURE() << what << ": " << sentence;
  }
  int64_t points() const { return points_; }
  /// Points that were counted, and judged, elsewhere.
  void points(int64_t count, int64_t violations) {
    points_ = count;
    violations_ = violations;
  }
  void note(std::string text) { note_ = std::move(text); }

 private:
  std::string name_;
  std::string note_;
  int64_t points_ = 0;
  int64_t violations_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace tessera::faults
