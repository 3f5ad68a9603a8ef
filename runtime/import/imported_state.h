#pragma once

#include <span>
#include <string>
#include <vector>

#include "checkpoint/sharded_safetensors.h"
#include "kernels/core/buffer.h"
#include "runtime/import/import_plan.h"
#include "runtime/import/state_in_pieces.h"

namespace tessera {

class TrainConfig;

/// The state of a run before its first step, with parameters from files. 10 bytes an element of a
/// piece: an f32 master, a bf16 value, and one zero that both moments share.
class ImportedState final : public StateInPieces {
 public:
  /// All references must outlive this. `tokenizer` is the text of kTokenizerBlob.
  ImportedState(const TrainConfig& config, const ShardedSafetensors& files,
                std::span<const ImportedParameter> parameters, int64_t piece_elements,
                std::string tokenizer);

  int pieces() const override { return static_cast<int>(pieces_.size()); }
  /// Throws Error(kBadData), with the name of the tensor, for a value that is not finite.
  void fill(int piece) override;
  const CheckpointContents& contents(int piece) override;

 private:
  /// Elements [begin, end) of a parameter, row-major.
  struct Range {
    const ImportedParameter* of;
    int64_t begin;
    int64_t end;
  };
  struct Views {
    TensorView value;
    TensorView master;
  };

  void cut(std::span<const ImportedParameter> parameters, int64_t piece_elements);
  Views views(const Range& range, int64_t at) const;
  void fill_from_files(const Range& range, TensorView master) const;
  void initialise(const Range& range, TensorView master) const;

  const TrainConfig& config_;
  const ShardedSafetensors& files_;
  std::vector<std::vector<Range>> pieces_;
  Buffer masters_;
  Buffer values_;
  Buffer zeros_;
  std::vector<NamedTensor> parameters_;
  std::vector<NamedTensor> buffers_;
  std::vector<NamedTensor> master_tensors_;
  std::vector<NamedTensor> moments_;
  CheckpointContents contents_;
};

}  // namespace tessera
