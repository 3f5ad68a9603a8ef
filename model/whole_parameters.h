#pragma once

#include <deque>
#include <string>
#include <vector>

#include "model/parameter.h"

namespace tessera {

/// The values or the gradients of a rank that has all of the model, each parameter once and whole.
/// All are in host memory: those that were declared in parts, and those of another device, in that
/// of this object, the others as views.
class WholeParameters {
 public:
  enum class Of : uint8_t { kValues, kGradients };
  struct Entry {
    std::string name;
    ConstTensorView data;
  };

  /// `store` is on the device of `stream` and must outlive this. Gradients only of trained
  /// parameters.
  WholeParameters(Stream& stream, const ParameterStore& store, Of what);

  /// In the order of declaration.
  const std::vector<Entry>& all() const { return all_; }
  /// Throws when there is none of that name.
  ConstTensorView find(const std::string& name) const;

 private:
  std::deque<Buffer> buffers_;
  std::vector<Entry> all_;
};

}  // namespace tessera
