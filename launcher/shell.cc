#include "launcher/shell.h"

#include "kernels/core/error.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

std::string in_single_quotes(std::string_view text) {
  std::string word = "'";
  for (const char c : text) {
    if (c == '\'') {
      word += R"('\'')";
    } else {
      word += c;
    }
  }
  return word + "'";
}

}  // namespace

std::string shell_quoted(std::string_view word) {
  const bool plain = !word.empty() && word.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789.,:=+-_/@%") == std::string_view::npos;
  return plain ? std::string(word) : in_single_quotes(word);
}

std::string shell_line(const std::vector<std::string>& words) {
  std::string line;
  for (const std::string& word : words) line += concat(line.empty() ? "" : " ", shell_quoted(word));
  return line;
}

std::string shell_word(std::string_view text) {
  if (text.find_first_of(std::string_view("\0\n\r", 3)) != std::string_view::npos) {
    throw Error(ExitCode::kUsage,
                concat(in_quotes(text),
                       " has a line break or a NUL, which a job script cannot hold; take it away"));
  }
  return in_single_quotes(text);
}

std::string shell_array(const std::string& name, const std::vector<std::string>& words) {
  std::string line = name + "=(";
  for (const std::string& word : words) {
    line += concat(&word == &words.front() ? "" : " ", shell_word(word));
  }
  return line + ")";
}

}  // namespace tessera
