#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// `word` as a POSIX shell reads it back: in quotes where it needs them, a single quote in it as
/// '\''.
std::string shell_quoted(std::string_view word);
/// Words that a shell reads back, with spaces between them.
std::string shell_line(const std::vector<std::string>& words);

/// `text` as one word of a script, always in quotes. Throws kUsage for NUL and line breaks, which
/// would hide in it.
std::string shell_word(std::string_view text);

/// "name=('a' 'b')", a line of bash that sets an array.
std::string shell_array(const std::string& name, const std::vector<std::string>& words);

}  // namespace tessera
