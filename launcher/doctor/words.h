#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// Reading what machines say: texts of /proc and outputs of commands, of any form and length.

/// Without blanks at both ends.
std::string trimmed(std::string_view text);
/// The parts between `separators`; empty ones are left out.
std::vector<std::string> words_of(std::string_view text, std::string_view separators = " \t\r\n");
/// Its lines, trimmed; empty ones are left out.
std::vector<std::string> lines_in(std::string_view text);
/// The last of them, or empty.
std::string last_line_of(std::string_view text);
/// What follows `key` in the first line that begins with it, without blanks, ':' and '=' between.
std::optional<std::string> value_of(std::string_view text, std::string_view key);
/// The number at the beginning of `text`, behind blanks.
std::optional<double> number_in(std::string_view text);
/// `number` without its fraction, cut to what an int holds.
int whole(double number);
/// All digits of a whole number: "1024000".
std::string digits_text(double number);
/// The first "digits.digits", with more of both, in `text`: "4.1.4". Empty when there is none.
std::string version_in(std::string_view text);
/// -1, 0 or 1, as `a` is older than, equal to or newer than `b`: "4.1.10" is newer than "4.1.9".
int compare_versions(const std::string& a, const std::string& b);
/// "a, b and c".
std::string listed(const std::vector<std::string>& names);
/// "24.7 GB", "512 MB": 1000 bytes are a kB.
std::string bytes_text(double bytes);
/// "12.3 us", "4 ms", "2.5 s".
std::string seconds_text(double seconds);
/// How many numbers "0-3,8" has; 0 when it is none.
int count_of_ranges(std::string_view text);

}  // namespace tessera
