#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/named_tensor.h"

namespace tessera {

/// What a tensor is to training. Together with its name it is the tensor's identity.
enum class TensorKind : uint8_t {
  kParameter,
  kMaster,    ///< f32 copy of a bf16 parameter
  kExpAvg,    ///< Adam's first moment, in the shape of the parameter
  kExpAvgSq,  ///< Adam's second moment, in the shape of the parameter
  kBuffer,    ///< state that no gradient reaches
};

/// "parameter", "master", "exp_avg", "exp_avg_sq", "buffer".
const char* name_of(TensorKind kind);

/// Tensors of one kind: this rank's boxes of them, boxes of one tensor one after the other. Names
/// are those of the parameters, without padding that only some meshes need (store the logical
/// vocabulary).
struct TensorGroup {
  TensorKind kind = TensorKind::kParameter;
  std::span<const NamedTensor> tensors;
};

struct MeshAxis {
  std::string name;
  int64_t size = 1;

  friend bool operator==(const MeshAxis&, const MeshAxis&) = default;
};

/// Where a run's state comes from: the checkpoint it was resumed from or saved last.
struct CheckpointId {
  int64_t epoch = 0;  ///< incarnation that saved it; 0: none
  int64_t step = 0;

  friend auto operator<=>(const CheckpointId&, const CheckpointId&) = default;
};

/// What a checkpoint says about itself, besides tensors and blobs.
struct CheckpointFacts {
  CheckpointId id;
  CheckpointId parent;
  int64_t consumed_tokens = 0;
  int64_t consumed_samples = 0;
  int64_t wall_time_unix_ns = 0;  ///< information only
  std::string run_uuid;
  std::string writer_version;
  std::string git_hash;
  std::string config_hash;
  std::vector<MeshAxis> mesh;
  std::vector<std::string> determinism_flags;
  /// Digest of the parameters one step later, in the run that saved: what bit-exact resuming gives.
  std::optional<uint64_t> next_step_digest;
  bool finite = true;  ///< no parameter or master has an element that is inf or NaN
};

/// All that a training run needs to go on as if it had never stopped.
struct CheckpointContents {
  int64_t step = 0;  ///< finished optimizer steps
  int64_t consumed_tokens = 0;
  int64_t consumed_samples = 0;
  std::vector<MeshAxis> mesh;  ///< outermost first
  std::vector<std::string> determinism_flags;
  std::optional<uint64_t> next_step_digest;  ///< see CheckpointFacts
  std::vector<TensorGroup> groups;
  /// Small state by name: schedule, random numbers, data cursor, curriculum, hooks.
  std::map<std::string, std::string> blobs;
  /// The configuration as text; kept as the blob kConfigBlob.
  std::string resolved_config;
};

constexpr const char* kConfigBlob = "config.resolved.textproto";

}  // namespace tessera
