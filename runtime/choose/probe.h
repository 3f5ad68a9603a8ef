#pragma once

#include <filesystem>

#include "model/single_rank.h"
#include "model/step_sums.h"
#include "runtime/choose/group_shares.h"
#include "runtime/data/data_loader.h"
#include "runtime/generate/loaded_model.h"

namespace tessera {

struct ProbeOptions {
  std::filesystem::path data = {};
  int64_t length = 0;  ///< tokens of a sequence; 0: of a task's sample, else as in the run
  int64_t sequences = 16;
  uint64_t seed = 1;  ///< of their order
};

/// What the model makes of some tokens.
struct ProbeLoss {
  double loss = 0;      ///< nats per target
  double accuracy = 0;  ///< share of the targets that no other token is more probable than
};

/// A data set on which a dense model is tried with its KV groups in between full attention and the
/// window that local groups will have. The model does not change.
class Probe {
 public:
  /// `loaded` has gradients and, with `stream`, outlives this. Throws Error: kUsage when every
  /// sequence lies in the window or cuts samples of a task, or a batch has more than there are;
  /// kBadData for the data set.
  Probe(Stream& stream, const LoadedModel& loaded, const ProbeOptions& options);

  /// The loss of batch `number` of the training split, nats per target, and in `slopes` its
  /// derivative by each share. The auxiliary losses of experts count as in training.
  double learn(int64_t number, const GroupShares& shares, GroupShares& slopes);
  /// Of the first sequences of the validation split, at most eight batches.
  ProbeLoss validate(const GroupShares& shares);
  int64_t length() const { return length_; }

 private:
  Transformer::Run start(const GroupShares& shares);

  Stream& stream_;
  const LoadedModel& loaded_;
  ProbeOptions options_;
  int64_t length_;
  TokenDataset training_data_;
  TokenDataset validation_data_;
  DataLoader training_;
  DataLoader validation_;
  MicroBatch batch_;
  Buffer shares_;
  Buffer slopes_;
  GroupMix mix_;
  Arena arena_;
  StepSumsBuffer sums_;
  SingleRank alone_;
};

}  // namespace tessera
