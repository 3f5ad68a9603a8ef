#include "launcher/shell.h"

#include "kernels/core/error.h"
#include "runtime/config/wording.h"

namespace tessera {

std::string shell_word(std::string_view text) {
  std::string word = "'";
  for (const char c : text) {
    if (c == '\0' || c == '\n' || c == '\r') {
      throw Error(ExitCode::kUsage, concat(in_quotes(text),
                                           " has a line break or a NUL, which a "
                                           "job script cannot hold; take it away"));
    }
    if (c == '\'') {
      word += R"('\'')";
    } else {
      word += c;
    }
  }
  return word + "'";
}

std::string shell_array(const std::string& name, const std::vector<std::string>& words) {
  std::string line = name + "=(";
  for (const std::string& word : words) {
    line += concat(&word == &words.front() ? "" : " ", shell_word(word));
  }
  return line + ")";
}

}  // namespace tessera
