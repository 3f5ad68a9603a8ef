#pragma once

#include <vector>

#include "model/parameter.h"

namespace tessera {

class ModelConfig;

/// The parameters of a model, each once and whole, in the order of declaration: names, shapes and
/// initializers, without memory. `dtype` is that of the matrices.
std::vector<Parameter> model_parameters(const ModelConfig& model, DType dtype);

}  // namespace tessera
