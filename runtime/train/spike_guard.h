#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// Decides before each update whether it may be applied: not when loss or gradient norm is not
/// finite, nor when one of them lies more than 6 standard deviations above the mean of its last
/// 128 finite values. A spike enters the window, so a lasting change of level is accepted after a
/// few skipped steps; a NaN never does, so it cannot blind the guard.
class SpikeGuard {
 public:
  static constexpr int64_t kWindow = 128;
  static constexpr double kSigmas = 6;

  enum class Verdict : uint8_t { kApply, kNotFinite, kLossSpike, kGradientSpike };

  /// Same on every rank when the values are. Remembers finite values.
  Verdict judge(double loss, double gradient_norm);

  /// For checkpoints: the windows, exactly. restore() throws Error(kBadData) on other text.
  std::string state() const;
  void restore(std::string_view state);

 private:
  struct Window {
    std::vector<double> values;  // oldest first once full, as a ring from `next`
    int64_t next = 0;
    bool is_spike(double value) const;
    void push(double value);
  };
  Window loss_;
  Window gradient_norm_;
};

/// "loss spike", ...
const char* name_of(SpikeGuard::Verdict verdict);

}  // namespace tessera
