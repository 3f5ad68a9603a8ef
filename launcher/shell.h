#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// `text` as one word of a POSIX shell, whatever it holds: in single quotes, a single quote in it
/// as '\''. Throws kUsage for NUL and line breaks, which would hide in a script.
std::string shell_word(std::string_view text);

/// "name=('a' 'b')", a line of bash that sets an array.
std::string shell_array(const std::string& name, const std::vector<std::string>& words);

}  // namespace tessera
