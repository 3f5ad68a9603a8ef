#include "runtime/import/import_plan.h"

#include <algorithm>

#include "checkpoint/name_list.h"
#include "model/model.pb.h"
#include "runtime/config/wording.h"
#include "runtime/export/model_parameters.h"

namespace tessera {

namespace {

constexpr const char* kGateTensor = ".self_attn.tessera_gate.";

bool is_float(const SafetensorsEntry& entry) {
  return entry.is_f16 || entry.dtype == DType::kF32 || entry.dtype == DType::kBF16;
}

// Tensors found by name, each to be taken once.
class Tensors {
 public:
  Tensors(std::span<const PlacedTensor> all, const std::string& name)
      : all_(all), name_(name), taken_(all.size(), false) {}

  bool have_gates() const {
    return std::any_of(all_.begin(), all_.end(), [](const PlacedTensor& tensor) {
      return tensor.entry.name.find(kGateTensor) != std::string::npos;
    });
  }

  void take(const HuggingFacePart& part) {
    ++wanted_;
    const auto at = std::lower_bound(all_.begin(), all_.end(), part.name,
                                     [](const PlacedTensor& tensor, const std::string& wanted) {
                                       return tensor.entry.name < wanted;
                                     });
    if (at == all_.end() || at->entry.name != part.name) {
      missing_.push_back(part.name);
      return;
    }
    taken_[static_cast<size_t>(at - all_.begin())] = true;
    if (!is_float(at->entry)) {
      other_type_.push_back(concat(part.name, " is ", name_of(at->entry.dtype)));
    } else if (at->entry.shape != part.shape) {
      other_shape_.push_back(concat(part.name, " is ", at->entry.shape, ", expected ", part.shape));
    }
  }

  // What is left; `tied`: a head of its own means nothing.
  std::vector<std::string> passed_over(bool tied) {
    std::vector<std::string> passed;
    for (size_t i = 0; i < all_.size(); ++i) {
      const std::string& tensor = all_[i].entry.name;
      if (taken_[i]) continue;
      const bool repeats = tied && tensor == "lm_head.weight";
      (repeats || tensor.ends_with(".rotary_emb.inv_freq") ? passed : unexpected_)
          .push_back(tensor);
    }
    return passed;
  }

  void throw_problems() const {
    std::vector<std::string> problems;
    const auto tell = [&](const std::vector<std::string>& names, const std::string& what) {
      if (!names.empty()) {
        problems.push_back(concat(name_, " ", what, ", ", names.size(), ": ", first_few(names)));
      }
    };
    tell(missing_, concat("lacks tensors of the model, which has ", wanted_));
    tell(other_shape_, "has tensors of another shape");
    tell(other_type_, "has tensors that are not F32, BF16 or F16");
    tell(unexpected_, "has tensors that the model has no place for");
    if (!problems.empty()) throw Error(ExitCode::kBadData, joined(problems));
  }

 private:
  std::span<const PlacedTensor> all_;
  const std::string& name_;
  std::vector<bool> taken_;
  size_t wanted_ = 0;
  std::vector<std::string> missing_;
  std::vector<std::string> other_shape_;
  std::vector<std::string> other_type_;
  std::vector<std::string> unexpected_;
};

}  // namespace

ImportPlan plan_import(const ModelConfig& model, DType dtype, std::span<const PlacedTensor> tensors,
                       const std::string& name) {
  ImportPlan plan;
  Tensors found(tensors, name);
  const bool gates = found.have_gates();
  for (Parameter& parameter : model_parameters(model, dtype)) {
    ImportedParameter imported{.parameter = std::move(parameter)};
    const std::string& of = imported.parameter.name;
    if (!gates && is_gate_parameter(of)) {
      plan.initialised.push_back(of);
    } else {
      imported.parts = hugging_face_parts(model, of, imported.parameter.shard.whole);
      for (const HuggingFacePart& part : imported.parts) found.take(part);
    }
    plan.parameters.push_back(std::move(imported));
  }
  plan.passed_over = found.passed_over(model.tie_embeddings());
  found.throw_problems();
  return plan;
}

}  // namespace tessera
