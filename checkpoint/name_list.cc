#include "checkpoint/name_list.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace tessera {

std::string shown_name(const std::string& name) {
  std::string text = name.size() <= 80 ? name : name.substr(0, 77) + "...";
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c < 0x20 || c > 0x7E; }, '?');
  return text;
}

std::string first_few(const std::vector<std::string>& names) {
  constexpr size_t kFew = 3;
  std::string text;
  for (size_t i = 0; i < std::min(kFew, names.size()); ++i) {
    text += (i == 0 ? "" : ", ") + shown_name(names[i]);
  }
  return names.size() > kFew ? concat(text, " and ", names.size() - kFew, " more") : text;
}

}  // namespace tessera
