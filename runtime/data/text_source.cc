#include "runtime/data/text_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>

#include "kernels/core/log.h"
#include "runtime/data/text_cut.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr size_t kReadBytes = size_t{1} << 20;
constexpr int64_t kBadLinesLogged = 10;
constexpr size_t kMessageBytes = 200;

/// Walks inputs; remembers what it has seen by device and inode number.
class Walk {
 public:
  explicit Walk(const std::string& option) : option_(option) {}

  void input(const fs::path& path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) fail(path, std::generic_category().message(errno));
    if (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode)) {
      fail(path, "it is neither a file nor a directory");
    }
    if (::access(path.c_str(), R_OK) != 0) fail(path, std::generic_category().message(errno));
    take(path, status, /*named=*/true);
  }
  std::vector<TextFile> files;

 private:
  [[noreturn]] void fail(const fs::path& path, const std::string& why) const {
    throw Error(ExitCode::kUsage, concat(option_, " ", path.string(), " cannot be read: ", why));
  }

  void take(const fs::path& path, const struct stat& status, bool named) {
    if (!seen_.emplace(status.st_dev, status.st_ino).second) return;
    if (S_ISREG(status.st_mode)) {
      files.push_back(
          {.path = path,
           .bytes = status.st_size,
           .modified_ns = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec,
           .named = named});
    } else if (S_ISDIR(status.st_mode)) {
      directory(path);
    }
  }

  void directory(const fs::path& path) {
    std::vector<fs::path> entries;
    std::error_code problem;
    for (fs::directory_iterator it(path, problem), end; !problem && it != end;
         it.increment(problem)) {
      if (!it->path().filename().native().starts_with('.')) entries.push_back(it->path());
    }
    std::sort(entries.begin(), entries.end(),
              [](const auto& a, const auto& b) { return a.native() < b.native(); });
    for (const fs::path& entry : entries) {
      struct stat status {};
      if (::stat(entry.c_str(), &status) == 0) take(entry, status, /*named=*/false);
    }
  }

  const std::string& option_;
  std::set<std::pair<dev_t, ino_t>> seen_;
};

bool is_json_lines(const fs::path& path) {
  return path.extension() == ".jsonl" || path.extension() == ".ndjson";
}

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

bool has_nul(std::string_view text) {
  return text.find('\0') != std::string_view::npos;
}

/// The JSON library's message without "[json.exception.parse_error.101] ", and not the whole line.
std::string plain(std::string message) {
  if (const size_t end = message.find("] "); end != std::string::npos) message.erase(0, end + 2);
  if (message.size() > kMessageBytes) message = message.substr(0, kMessageBytes) + "...";
  return message;
}

}  // namespace

std::vector<TextFile> list_text_files(std::span<const fs::path> inputs, const std::string& option) {
  Walk walk(option);
  for (const fs::path& path : inputs) walk.input(path);
  return std::move(walk.files);
}

TextSource::TextSource(std::vector<TextFile> files, TextOptions options)
    : files_(std::move(files)), options_(std::move(options)) {}

bool TextSource::next(std::string& document) {
  while (file_ || open_next()) {
    const bool found = json_lines_ ? next_line(document) : next_part(document);
    if (found) {
      ++counts_.documents;
      counts_.bytes += static_cast<int64_t>(document.size());
      return true;
    }
    file_.reset();
  }
  return false;
}

bool TextSource::open_next() {
  while (file_number_ < files_.size()) {
    const TextFile& file = files_[file_number_++];
    try {
      file_.emplace(file.path, ExitCode::kUsage);
    } catch (const Error& problem) {
      if (file.named) throw;
      ++counts_.skipped_files;
      continue;
    }
    json_lines_ = is_json_lines(file.path);
    offset_ = 0;
    line_ = 0;
    buffer_.clear();
    used_ = 0;
    ++counts_.files;
    return true;
  }
  return false;
}

void TextSource::skip_file(const std::string& why) {
  const TextFile& file = files_[file_number_ - 1];
  if (file.named) {
    throw Error(ExitCode::kUsage, concat(options_.option, " ", file.path.string(), " ", why));
  }
  ++counts_.skipped_files;
  --counts_.files;
  bytes_read_ += std::max(int64_t{0}, file_->size() - offset_);
}

bool TextSource::read_more() {
  const size_t kept = buffer_.size();
  // A small file is read in one call, without a second one to find its end.
  const int64_t left = std::max(file_->size() - offset_, int64_t{1});
  const auto wanted = static_cast<size_t>(std::min<int64_t>(left, kReadBytes));
  buffer_.resize(kept + wanted);
  const int64_t got =
      file_->read_some(offset_, std::as_writable_bytes(std::span(buffer_)).subspan(kept));
  buffer_.resize(kept + static_cast<size_t>(got));
  offset_ += got;
  bytes_read_ += got;
  return got > 0;
}

bool TextSource::next_part(std::string& document) {
  const bool first = offset_ == 0;
  buffer_.erase(0, used_);
  used_ = 0;
  while (static_cast<int64_t>(buffer_.size()) < kPartBytes && offset_ < file_->size()) {
    if (!read_more() || (first && has_nul(buffer_))) break;
  }
  if (buffer_.empty()) return false;
  if (has_nul(buffer_)) {
    if (first) {
      skip_file("is a binary file (it has a NUL byte), expected text");
    } else {
      log_line(concat(files_[file_number_ - 1].path.string(), ": a NUL byte near byte ", offset_,
                      ": the rest is not read"));
    }
    return false;
  }
  used_ = offset_ < file_->size() ? text_cut(buffer_) : buffer_.size();
  document.assign(buffer_, 0, used_);
  return true;
}

std::optional<std::string_view> TextSource::read_line() {
  size_t end = buffer_.find('\n', used_);
  bool too_long = false;
  while (end == std::string::npos) {
    buffer_.erase(0, used_);
    used_ = 0;
    too_long = too_long || static_cast<int64_t>(buffer_.size()) > kPartBytes;
    if (too_long) buffer_.clear();
    const size_t searched = buffer_.size();
    if (!read_more()) break;
    end = buffer_.find('\n', searched);
  }
  if (end == std::string::npos) end = buffer_.size();
  if (used_ == buffer_.size() && !too_long) return std::nullopt;
  ++line_;
  const std::string_view line = std::string_view(buffer_).substr(used_, end - used_);
  used_ = std::min(end + 1, buffer_.size());
  if (!too_long) return line;
  bad_line(concat("the line is longer than ", kPartBytes, " bytes"));
  return std::string_view();
}

bool TextSource::next_line(std::string& document) {
  while (const std::optional<std::string_view> line = read_line()) {
    if (!is_blank(*line) && parse_line(*line, document) && !document.empty()) return true;
  }
  return false;
}

bool TextSource::parse_line(std::string_view line, std::string& document) {
  using Json = nlohmann::json;
  std::string problem;
  try {
    Json object = Json::parse(line);
    if (!object.is_object()) {
      problem = concat("expected a JSON object, got ", object.type_name());
    } else if (const auto field = object.find(options_.json_field); field == object.end()) {
      problem = concat("the object has no field \"", options_.json_field, "\"");
    } else if (!field->is_string()) {
      problem = concat("field \"", options_.json_field, "\" is ", field->type_name(),
                       ", expected a string");
    } else {
      document = std::move(field->get_ref<std::string&>());
      return true;
    }
  } catch (const Json::exception& malformed) {
    problem = plain(malformed.what());
  }
  bad_line(problem);
  return false;
}

void TextSource::bad_line(const std::string& why) {
  const std::string problem = concat(file_->path().string(), ":", line_, ": ", why);
  if (!options_.skip_bad_lines) {
    throw Error(ExitCode::kBadData, problem + "; " + options_.way_out);
  }
  if (++counts_.skipped_lines <= kBadLinesLogged) log_line("skipped " + problem);
}

}  // namespace tessera
