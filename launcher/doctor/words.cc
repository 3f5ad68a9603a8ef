#include "launcher/doctor/words.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>

namespace tessera {

namespace {

constexpr std::string_view kBlanks = " \t\r\n\v\f";
constexpr std::string_view kDigits = "0123456789";

}  // namespace

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(kBlanks) + 1 - begin));
}

std::vector<std::string> words_of(std::string_view text, std::string_view separators) {
  std::vector<std::string> words;
  for (size_t begin = 0;;) {
    begin = text.find_first_not_of(separators, begin);
    if (begin == std::string_view::npos) return words;
    const size_t end = std::min(text.find_first_of(separators, begin), text.size());
    words.emplace_back(text.substr(begin, end - begin));
    begin = end;
  }
}

std::vector<std::string> lines_in(std::string_view text) {
  std::vector<std::string> lines;
  for (const std::string& line : words_of(text, "\r\n")) {
    std::string plain = trimmed(line);
    if (!plain.empty()) lines.push_back(std::move(plain));
  }
  return lines;
}

std::string last_line_of(std::string_view text) {
  const std::vector<std::string> lines = lines_in(text);
  return lines.empty() ? "" : lines.back();
}

std::optional<std::string> value_of(std::string_view text, std::string_view key) {
  for (const std::string& line : lines_in(text)) {
    if (!line.starts_with(key)) continue;
    const std::string rest = line.substr(key.size());
    const size_t begin = rest.find_first_not_of(" \t:=");
    return begin == std::string::npos ? "" : rest.substr(begin);
  }
  return {};
}

std::optional<double> number_in(std::string_view text) {
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  double number = 0;
  const auto [end, error] = std::from_chars(text.data() + begin, text.data() + text.size(), number);
  if (error != std::errc() || !std::isfinite(number)) return {};
  return number;
}

int whole(double number) {
  constexpr double kMost = std::numeric_limits<int>::max();
  return static_cast<int>(std::clamp(number, -kMost, kMost));
}

std::string digits_text(double number) {
  std::array<char, 400> text{};
  std::snprintf(text.data(), text.size(), "%.0f", number);
  return text.data();
}

std::string version_in(std::string_view text) {
  for (size_t begin = 0;;) {
    begin = text.find_first_of(kDigits, begin);
    if (begin == std::string_view::npos) return "";
    size_t end = std::min(text.find_first_not_of("0123456789.", begin), text.size());
    std::string_view found = text.substr(begin, end - begin);
    while (found.ends_with('.')) found.remove_suffix(1);
    if (found.find('.') != std::string_view::npos) return std::string(found);
    begin = end;
  }
}

int compare_versions(const std::string& a, const std::string& b) {
  const std::vector<std::string> left = words_of(a, ".");
  const std::vector<std::string> right = words_of(b, ".");
  for (size_t i = 0; i < std::max(left.size(), right.size()); ++i) {
    const double x = i < left.size() ? number_in(left[i]).value_or(0) : 0;
    const double y = i < right.size() ? number_in(right[i]).value_or(0) : 0;
    if (x != y) return x < y ? -1 : 1;
  }
  return 0;
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 == names.size() ? " and " : ", ";
    text += names[i];
  }
  return text;
}

std::string bytes_text(double bytes) {
  static constexpr std::array<const char*, 6> kUnits{"B", "kB", "MB", "GB", "TB", "PB"};
  size_t unit = 0;
  for (; bytes >= 999.5 && unit + 1 < kUnits.size(); ++unit) bytes /= 1000;
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.3g %s", bytes, kUnits[unit]);
  return text.data();
}

std::string seconds_text(double seconds) {
  const double scale = seconds < 0.9995e-3 ? 1e6 : seconds < 0.9995 ? 1e3 : 1;
  const char* unit = scale == 1e6 ? "us" : scale == 1e3 ? "ms" : "s";
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), seconds >= 999.5 ? "%.0f %s" : "%.3g %s", seconds * scale,
                unit);
  return text.data();
}

int count_of_ranges(std::string_view text) {
  constexpr int kMost = 1 << 20;
  int count = 0;
  for (const std::string& part : words_of(text, ", \t\r\n")) {
    const size_t dash = part.find('-');
    const auto first = number_in(part);
    const auto last = dash == std::string::npos ? first : number_in(part.substr(dash + 1));
    if (!first || !last || *first < 0 || *last < *first || *last > kMost) return 0;
    count = std::min(kMost, count + static_cast<int>(*last - *first) + 1);
  }
  return count;
}

}  // namespace tessera
