#pragma once

#include <cstdint>
#include <vector>

namespace tessera {

/// Documents of very different lengths that a model can learn: each counts up in its own stride.
inline std::vector<std::vector<int32_t>> patterned_documents() {
  std::vector<std::vector<int32_t>> documents;
  for (int32_t d = 0; d < 24; ++d) {
    std::vector<int32_t> document;
    const int32_t length = 5 + d * d * 7 % 191;
    for (int32_t i = 0; i < length; ++i) document.push_back((d * 11 + i * (1 + d % 3)) % 32);
    document.push_back(256);
    documents.push_back(document);
  }
  return documents;
}

}  // namespace tessera
