#include "runtime/config/wording.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>
#include <utility>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr size_t kShown = 60;         // characters of a found text
constexpr size_t kMaxProblems = 20;   // lines of one error
constexpr size_t kLongestName = 100;  // longer ones are not typing errors

// Letters to insert, delete, replace or swap with their neighbour to get from a to b (Damerau 1964,
// each letter edited once). Three rows of the table at a time.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> above(b.size() + 1);
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    std::vector<size_t> next(b.size() + 1, i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = row[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      next[j] = std::min({replaced, row[j] + 1, next[j - 1] + 1});
      const bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swapped) next[j] = std::min(next[j], above[j - 2] + 1);
    }
    above = std::exchange(row, std::move(next));
  }
  return row.back();
}

}  // namespace

std::string shown(std::string_view text) {
  std::string line;
  for (const char c : text) {
    if (line.size() >= kShown) return line + "...";
    if (c >= 0x20 && c < 0x7F) {
      line += c;
    } else {
      std::array<char, 8> escape{};
      std::snprintf(escape.data(), escape.size(), "\\x%02x", static_cast<unsigned char>(c));
      line += escape.data();
    }
  }
  return line;
}

std::string in_quotes(std::string_view text) {
  return concat("\"", shown(text), "\"");
}

std::string did_you_mean(std::string_view name, const std::vector<std::string>& known) {
  const std::string* nearest = nullptr;
  // Up to a third of the letters may be wrong, and one in a short name.
  size_t allowed = std::max<size_t>(1, name.size() / 3);
  for (const std::string& candidate : known) {
    if (name.size() > kLongestName || candidate.size() > name.size() + allowed ||
        name.size() > candidate.size() + allowed) {
      continue;  // cannot be near
    }
    const size_t distance = edit_distance(name, candidate);
    if (distance > allowed || (nearest != nullptr && distance == allowed)) continue;
    nearest = &candidate;
    allowed = distance;
  }
  if (nearest != nullptr) return concat("; did you mean \"", *nearest, "\"?");
  std::string list;
  for (const std::string& candidate : known) list += (list.empty() ? "" : ", ") + candidate;
  return "; expected one of " + list;
}

std::string joined(const std::vector<std::string>& problems) {
  std::string text;
  for (size_t i = 0; i < std::min(problems.size(), kMaxProblems); ++i) {
    text += (i == 0 ? "" : "\n") + problems[i];
  }
  if (problems.size() > kMaxProblems) {
    text += concat("\nand ", problems.size() - kMaxProblems, " more problems; mend these first");
  }
  return text;
}

}  // namespace tessera
