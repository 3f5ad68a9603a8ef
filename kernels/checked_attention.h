#pragma once

#include <functional>
#include <map>
#include <memory>

#include "kernels/attention_plan.h"

namespace tessera::gpu {

/// Attention forward by a library's plans, each of which is believed only after it was compared
/// with own_attention_forward, on the device, on the first input of its shape. Whatever goes wrong
/// before that - no library, no plan, too much workspace, an error in a call, a wrong result, a
/// result that is not the same twice - is logged in one line, and that shape is not asked for
/// again. What a library does to memory that is not its own cannot be found out this way.
///
/// A first use takes as long as the library needs for a plan (seconds), two runs, our kernel and
/// two waits for the device; the following ones a few microseconds of the host.
/// For one thread.
class CheckedAttention {
 public:
  /// Makes a plan with at most `most_bytes` of workspace, for the device that is current; nullptr
  /// or an Error when there is none.
  using Maker =
      std::function<std::unique_ptr<AttentionPlan>(const AttentionPlanShape&, int64_t most_bytes)>;
  explicit CheckedAttention(Maker make) : make_(std::move(make)) {}

  /// Does all that attention_forward is asked for, or returns false: then o and lse have to be
  /// computed by the caller, whatever is in them.
  bool forward(Stream& stream, const AttentionForward& a);

  /// How a plan compared with our kernel. Errors are free of scale: the norm of a row's difference
  /// over the norm of the row, the largest of all rows; for lse the largest |difference| / max(1,
  /// |lse|).
  struct Verdict {
    float o_error = 0;
    float lse_error = 0;
    float repeat_error = 0;  ///< of a second run against the first
    bool believed() const {
      return o_error <= kMostOutputError && lse_error <= kMostLseError && repeat_error == 0;
    }
  };
  /// bf16 has 8 bits, and the weights are rounded to it too: 2^-8 is what is to be expected.
  static constexpr float kMostOutputError = 1.0f / 32;
  /// One key too many or too few among 4096 of equal weight.
  static constexpr float kMostLseError = 1.0f / 4096;
  /// Shapes that get a plan, first come first served: where lengths vary without end, making plans
  /// would take longer than they save.
  static constexpr size_t kMostShapes = 32;

  /// Of the call's shape; nullptr while it has not been compared.
  const Verdict* verdict(const Stream& stream, const AttentionForward& a) const;

 private:
  struct Entry {
    std::unique_ptr<AttentionPlan> plan;  // nullptr: our kernel
    std::unique_ptr<Verdict> verdict;
  };
  using Key = std::pair<int, AttentionPlanShape>;  // device

  Entry first_use(Stream& stream, const AttentionForward& a, const PlannedAttention& how);

  Maker make_;
  std::map<Key, Entry> entries_;
};

/// attention_forward by our kernel, for all that it allows.
void own_attention_forward(Stream& stream, const AttentionForward& a);

}  // namespace tessera::gpu
