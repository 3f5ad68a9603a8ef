#pragma once

#include <filesystem>
#include <string>

#include "kernels/core/dtype.h"
#include "runtime/export/hugging_face.h"

namespace tessera {

struct ExportOptions {
  std::string precision = "checkpoint";  ///< or "f32", "bf16"; f32 takes a bf16 run's masters
  bool gates = false;                    ///< also the parameters of the sparsity gates
  bool strict = false;                   ///< refuse a model that transformers cannot compute
  int64_t shard_bytes = 5'000'000'000;   ///< of tensors in a file; a larger tensor has its own
};

struct ExportReport {
  HuggingFaceArchitecture architecture = HuggingFaceArchitecture::kTessera;
  int64_t tensors = 0;
  int64_t files = 0;  ///< of tensors
  int64_t bytes = 0;  ///< of tensors
  int64_t step = 0;
  DType dtype = DType::kBF16;
  std::string remarks = {};  ///< what the files do not say of the model, in lines
};

/// Writes `checkpoint`, or the newest of a run, as Hugging Face's transformers read it:
/// model.safetensors, or, when it is larger than a shard, model-00001-of-0000N.safetensors and
/// their index; config.json last, so that a directory that has one is whole. One tensor at a time
/// is in memory. Files are written under temporary names, synced and renamed when all are written;
/// after a failure none of them is left. Throws Error: kUsage for a file that is there already and
/// for wrong options, kTryAgain for trouble of the storage, kNoCheckpoint, kBadData.
ExportReport export_model(const std::filesystem::path& checkpoint,
                          const std::filesystem::path& output, const ExportOptions& options);

/// How many tensors go into each file, in order: as many as fit into `shard_bytes`.
std::vector<int64_t> cut_into_shards(const std::vector<int64_t>& bytes, int64_t shard_bytes);

}  // namespace tessera
