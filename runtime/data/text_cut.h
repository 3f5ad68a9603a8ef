#pragma once

#include <cstddef>
#include <string_view>

namespace tessera {

/// Where to cut a text of which `text`, not empty, is the part that may be kept together: behind
/// its last line end; else before its last space; else behind its last whole UTF-8 character;
/// else at its end. In [1, text.size()].
size_t text_cut(std::string_view text);

}  // namespace tessera
