#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// `text`, fit for one line of a message: bytes that are not printable ASCII become \x00, and what
/// is longer than 60 characters is cut and ends in "...".
std::string shown(std::string_view text);

/// shown() in double quotes.
std::string in_quotes(std::string_view text);

/// The name that `name` was probably meant to be, as the end of a message:
/// `; did you mean "layers"?`. When no name is near: `; expected one of a, b, c`.
std::string did_you_mean(std::string_view name, const std::vector<std::string>& known);

/// One line per problem, at most 20; the last line then says how many more there are.
std::string joined(const std::vector<std::string>& problems);

}  // namespace tessera
