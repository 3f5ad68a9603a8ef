#pragma once

#include <string>
#include <vector>

namespace tessera {

/// `a, b, c and 17 more`: the first three names, fit for one line of a message. Bytes that are not
/// printable ASCII become `?`, and a name of more than 80 characters is cut and ends in "...".
std::string first_few(const std::vector<std::string>& names);

/// One name, as above.
std::string shown_name(const std::string& name);

}  // namespace tessera
