#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/data/file.h"

namespace tessera {

/// A file to read text from.
struct TextFile {
  std::filesystem::path path;
  int64_t bytes = 0;
  int64_t modified_ns = 0;  ///< since the epoch
  bool named = false;       ///< by the user, so trouble with it is an error; else it is skipped

  friend bool operator==(const TextFile&, const TextFile&) = default;
};

/// The files below `inputs`, in the order of the inputs and, in a directory, of the names' bytes.
/// Directories are walked; hidden entries (".git"), entries that are neither file nor directory,
/// and what cannot be read are passed over in silence. Symbolic links are followed, and each
/// file and directory is taken once, however many names lead to it, so loops end.
/// Throws Error (kUsage) when an input itself is missing, unreadable or something else; `option`
/// is what named it.
std::vector<TextFile> list_text_files(std::span<const std::filesystem::path> inputs,
                                      const std::string& option = "--input");

struct TextOptions {
  std::string json_field = "text";  ///< holds the text of a JSON line
  bool skip_bad_lines = false;      ///< false: the first bad JSON line is an error
  /// For messages: what named the files, and what may be done about a bad line.
  std::string option = "--input";
  std::string way_out = "mend it or give --on-bad-line skip";
};

struct TextCounts {
  int64_t files = 0;          ///< opened, without the skipped ones
  int64_t documents = 0;      ///< handed out
  int64_t bytes = 0;          ///< of text handed out
  int64_t skipped_files = 0;  ///< binary (with a NUL byte), or unreadable
  int64_t skipped_lines = 0;  ///< bad JSON lines
};

/// Documents of a list of files, one after the other.
/// * "*.jsonl", "*.ndjson": one document per line, the text in an object's field. A line that
///   is no such object is an Error (kBadData) "file:line: ...", or skipped. Blank lines and empty
///   texts are passed over.
/// * Any other file is one document, whatever its name; empty files are passed over.
/// A file with a NUL byte in its first part is binary: skipped, or, when named, an Error (kUsage).
/// A file of more than kPartBytes is handed out in parts, cut behind a line end where there is
/// one; a JSON line of more is a bad line. So memory is bounded, whatever the input.
class TextSource {
 public:
  static constexpr int64_t kPartBytes = int64_t{16} << 20;

  /// Keeps a copy of the list. `files` is not checked again: what changed since is read as it is.
  TextSource(std::vector<TextFile> files, TextOptions options);

  /// Overwrites `document` and returns true, or returns false at the end.
  bool next(std::string& document);
  /// Bytes of files read so far: for a progress bar.
  int64_t bytes_read() const { return bytes_read_; }
  const TextCounts& counts() const { return counts_; }

 private:
  bool open_next();
  void skip_file(const std::string& why);
  bool next_part(std::string& document);
  bool next_line(std::string& document);
  bool read_more();
  std::optional<std::string_view> read_line();
  bool parse_line(std::string_view line, std::string& document);
  void bad_line(const std::string& why);

  std::vector<TextFile> files_;
  TextOptions options_;
  TextCounts counts_;
  int64_t bytes_read_ = 0;

  size_t file_number_ = 0;         // of the open file, plus one
  std::optional<InputFile> file_;  // the open file
  bool json_lines_ = false;
  int64_t offset_ = 0;  // in the open file, of the end of buffer_
  int64_t line_ = 0;    // last line handed out
  std::string buffer_;  // read, from used_ on not yet handed out
  size_t used_ = 0;
};

}  // namespace tessera
