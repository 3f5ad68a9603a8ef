#pragma once

#include <span>
#include <string>
#include <vector>

#include "checkpoint/sharded_safetensors.h"
#include "model/parameter.h"
#include "runtime/export/hugging_face.h"

namespace tessera {

class ModelConfig;

/// A parameter and the tensors that it is put together from.
struct ImportedParameter {
  Parameter parameter;                      ///< whole, without memory
  std::vector<HuggingFacePart> parts = {};  ///< empty: not in the files, to be initialised
};

struct ImportPlan {
  std::vector<ImportedParameter> parameters;  ///< in the order of declaration
  std::vector<std::string> initialised;       ///< those without parts
  std::vector<std::string> passed_over;       ///< tensors that hold nothing of their own
};

/// Finds every parameter of `model`, in `dtype`, among the tensors of a model, sorted by name.
/// Gates may be missing all together. A repeated tied head and old models' rotary frequencies are
/// passed over, as transformers does. Throws Error(kBadData), beginning with `name`, with one line
/// each for tensors that are missing, of another shape, of no float type, or not expected.
ImportPlan plan_import(const ModelConfig& model, DType dtype, std::span<const PlacedTensor> tensors,
                       const std::string& name);

}  // namespace tessera
