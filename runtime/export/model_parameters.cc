#include "runtime/export/model_parameters.h"

#include <set>

#include "model/transformer.h"

namespace tessera {

std::vector<Parameter> model_parameters(const ModelConfig& model, DType dtype) {
  ParameterStore store;
  const Transformer declared(model, dtype, Recompute::kNothing, store);
  std::set<std::string> names;  // a parameter may be declared in several parts
  std::vector<Parameter> parameters;
  for (const Parameter& parameter : store.all()) {
    if (!names.insert(parameter.name).second) continue;
    parameters.push_back(parameter);
    parameters.back().shard = Shard::replicated(parameter.shard.whole);
  }
  return parameters;
}

}  // namespace tessera
