#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace tessera {

/// The text of a file that a person wrote, at most 1 MiB and a byte. Throws Error(kUsage) when it
/// does not exist, with the nearest name, or cannot be read.
std::string read_text_file(const std::filesystem::path& file);

/// Throws Error(kUsage) when `text` is longer than 1 MiB or holds control characters. `name` is
/// what the message calls it.
void check_is_text(std::string_view text, const std::string& name);

}  // namespace tessera
