#include "runtime/train/plan_digest.h"

#include <bit>

namespace tessera {

namespace {

constexpr int kParts = 3;
constexpr int kPartBits = 16;

// 64-bit FNV-1a over the bits of numbers.
class Digest {
 public:
  void add(double value) { add(std::bit_cast<uint64_t>(value)); }
  void add(int64_t value) { add(static_cast<uint64_t>(value)); }
  void add(uint64_t bits) {
    for (int shift = 0; shift < 64; shift += 8) {
      hash_ = (hash_ ^ (bits >> shift & 0xFF)) * 0x100000001B3;
    }
  }
  uint64_t value() const { return (hash_ >> (kParts * kPartBits) ^ hash_) & kMask; }

 private:
  static constexpr uint64_t kMask = (uint64_t{1} << (kParts * kPartBits)) - 1;
  uint64_t hash_ = 0xCBF29CE484222325;
};

}  // namespace

uint64_t digest_of(const StepPlan& plan) {
  Digest digest;
  digest.add(plan.step);
  digest.add(plan.learning_rate);
  digest.add(static_cast<int64_t>(plan.stage));
  digest.add(static_cast<int64_t>(plan.gated));
  digest.add(plan.kept_blocks);
  digest.add(plan.window);
  for (const double value : {plan.gate_strength, plan.kl, plan.entropy, plan.z_loss, plan.pool}) {
    digest.add(value);
  }
  digest.add(plan.sequences);
  digest.add(plan.sequence_length);
  for (const double weight : plan.weights) digest.add(weight);
  digest.add(static_cast<int64_t>(plan.kept_of_layers.size()));
  for (const int64_t kept : plan.kept_of_layers) digest.add(kept);
  digest.add(static_cast<int64_t>(plan.measure_gates));
  digest.add(static_cast<int64_t>(plan.heat_maps));
  return digest.value();
}

PlanRiders plan_riders(const StepPlan& plan, bool failed) {
  PlanRiders riders{failed ? 1.0 : 0.0};
  const uint64_t digest = digest_of(plan);
  for (size_t part = 0; part < kParts; ++part) {
    const auto value = static_cast<double>(digest >> (part * kPartBits) & 0xFFFF);
    riders[1 + 2 * part] = value;
    riders[2 + 2 * part] = value * value;
  }
  return riders;
}

Agreement agreement(const PlanRiders& sums, int ranks) {
  if (sums[0] > 0) return Agreement::kFailed;
  for (size_t part = 0; part < kParts; ++part) {
    // Sums are below 2^53, and so is their ratio to n; the products need not be.
    const auto sum = static_cast<uint64_t>(sums[1 + 2 * part]);
    const auto squares = static_cast<uint64_t>(sums[2 + 2 * part]);
    const auto n = static_cast<uint64_t>(ranks);
    if (sum % n != 0 || squares % n != 0) return Agreement::kDiffers;
    if ((sum / n) * (sum / n) != squares / n) return Agreement::kDiffers;
  }
  return Agreement::kSame;
}

}  // namespace tessera
