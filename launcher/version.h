#pragma once

#include <string>

namespace tessera {

/// "tessera 0.1.0 (RelWithDebInfo, -march=native, without CUDA)".
std::string version_text();

}  // namespace tessera
