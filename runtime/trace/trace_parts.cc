#include "runtime/trace/trace_parts.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <optional>
#include <span>
#include <system_error>

#include "runtime/data/file.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "rank-";
constexpr std::string_view kSuffix = ".json";

File create(const fs::path& path) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) {
    throw Error(ExitCode::kUsage,
                concat("cannot write ", path.string(), ": ", std::strerror(errno),
                       "; check that the run directory is writable and has space"));
  }
  return {descriptor, path.string()};
}

void write(File& file, std::string_view text, int64_t& bytes) {
  file.write_at(std::as_bytes(std::span(text)), bytes);
  bytes += static_cast<int64_t>(text.size());
}

std::optional<int> rank_of(const std::string& name) {
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return std::nullopt;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size() - kSuffix.size();
  int rank = 0;
  const auto [last, trouble] = std::from_chars(begin, end, rank);
  if (trouble != std::errc() || last != end || rank < 0) return std::nullopt;
  return rank;
}

/// The events of a part, without what is around them.
std::string_view events_of(std::string_view text) {
  const size_t begin = text.find('{');
  if (begin == std::string_view::npos) return {};
  text.remove_prefix(begin);
  // The end of the last whole line, which a part that was cut off may have behind it.
  const size_t last = text.ends_with("\n]\n") ? text.size() - 3 : text.rfind(",\n");
  return last == std::string_view::npos ? std::string_view() : text.substr(0, last);
}

std::string padded(const char* format, int64_t number) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), format, static_cast<long>(number));
  return text.data();
}

}  // namespace

fs::path trace_folder(const fs::path& run_directory, int64_t first, int64_t last) {
  return run_directory / "trace" / (padded("steps-%08ld", first) + padded("-%08ld", last));
}

fs::path trace_part(const fs::path& folder, int rank) {
  return folder / concat(kPrefix, padded("%05ld", rank), kSuffix);
}

TracePart::TracePart(const fs::path& path) : file_(create(path)) {
  write(file_, "[\n", bytes_);
}

void TracePart::append(std::string_view lines) {
  write(file_, lines, bytes_);
}

void TracePart::close() {
  write(file_, "]\n", bytes_);
  file_.close();
}

std::vector<int> ranks_with_parts(const fs::path& folder) {
  std::vector<int> ranks;
  std::error_code trouble;
  for (const auto& entry : fs::directory_iterator(folder, trouble)) {
    if (const auto rank = rank_of(entry.path().filename())) ranks.push_back(*rank);
  }
  std::sort(ranks.begin(), ranks.end());
  return ranks;
}

JoinedTrace join_trace(const fs::path& folder, const std::vector<int>& ranks,
                       const fs::path& output, const std::string& about) {
  JoinedTrace joined;
  const fs::path temporary = output.string() + ".tmp";
  try {
    File file = create(temporary);
    write(file, concat("{\"displayTimeUnit\":\"ms\",\"otherData\":", about, ",\"traceEvents\":[\n"),
          joined.bytes);
    for (const int rank : ranks) {
      const std::string text = read_file(trace_part(folder, rank), ExitCode::kUsage);
      const std::string_view events = events_of(text);
      if (events.empty()) continue;
      if (joined.ranks > 0) write(file, ",\n", joined.bytes);
      write(file, events, joined.bytes);
      ++joined.ranks;
    }
    write(file, "\n]}\n", joined.bytes);
    file.close();
    std::error_code trouble;
    fs::rename(temporary, output, trouble);
    if (trouble) {
      throw Error(ExitCode::kUsage,
                  concat("cannot rename ", temporary.string(), ": ", trouble.message()));
    }
  } catch (...) {
    std::error_code none;
    fs::remove(temporary, none);
    throw;
  }
  return joined;
}

}  // namespace tessera
