#include "tests/simt/warp_functions.h"

#include <algorithm>
#include <array>

namespace tessera::simt {
namespace {

void exchange_values(void* const payloads[32], int) {
  std::array<uint64_t, 32> values{};
  for (size_t i = 0; i < 32; ++i) {
    if (payloads[i] != nullptr) values[i] = static_cast<Shuffle*>(payloads[i])->value;
  }
  for (size_t i = 0; i < 32; ++i) {
    if (payloads[i] == nullptr) continue;
    auto& lane = *static_cast<Shuffle*>(payloads[i]);
    const auto from = static_cast<size_t>(lane.from);
    if (payloads[from] == nullptr) violation("shuffles from a lane that is not in the mask");
    lane.value = values[from];
  }
}

uint32_t reduced(Vote kind, uint32_t a, uint32_t b) {
  const auto x = static_cast<int32_t>(a);
  const auto y = static_cast<int32_t>(b);
  switch (kind) {
    case Vote::kAdd:
      return a + b;
    case Vote::kMin:
      return std::min(a, b);
    case Vote::kMax:
      return std::max(a, b);
    case Vote::kAnd:
      return a & b;
    case Vote::kOr:
      return a | b;
    case Vote::kMinSigned:
      return static_cast<uint32_t>(std::min(x, y));
    case Vote::kMaxSigned:
      return static_cast<uint32_t>(std::max(x, y));
    default:
      return 0;
  }
}

void count_votes(void* const payloads[32], int argument) {
  const auto kind = static_cast<Vote>(argument);
  for (size_t i = 0; i < 32; ++i) {
    if (payloads[i] == nullptr) continue;
    auto& lane = *static_cast<Ballot*>(payloads[i]);
    uint32_t result = 0;
    bool first = true;
    for (size_t j = 0; j < 32; ++j) {
      if (payloads[j] == nullptr) continue;
      const uint64_t value = static_cast<Ballot*>(payloads[j])->value;
      if (kind == Vote::kBallot || kind == Vote::kMatch) {
        const bool set = kind == Vote::kBallot ? value != 0 : value == lane.value;
        result |= static_cast<uint32_t>(set) << j;
      } else {
        const auto word = static_cast<uint32_t>(value);
        result = first ? word : reduced(kind, result, word);
        first = false;
      }
    }
    lane.result = result;
  }
}

}  // namespace

void shuffle(const char* site, uint32_t mask, Shuffle& exchange) {
  warp_operation(site, mask, &exchange, exchange_values, 0);
}

uint32_t vote(const char* site, uint32_t mask, uint64_t value, Vote kind) {
  Ballot ballot{value, 0};
  warp_operation(site, mask, &ballot, count_votes, static_cast<int>(kind));
  return ballot.result;
}

}  // namespace tessera::simt
