#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/file_io.h"

namespace tessera {

/// RUN/trace/steps-00000011-00000020, the parts of a trace.
std::filesystem::path trace_folder(const std::filesystem::path& run_directory, int64_t first,
                                   int64_t last);
/// Its rank-00003.json.
std::filesystem::path trace_part(const std::filesystem::path& folder, int rank);

/// The part of one rank: a list of events that viewers open even when it was cut off.
class TracePart {
 public:
  /// Throws kUsage or kTryAgain when the file cannot be made, or what is given to it not be
  /// written.
  explicit TracePart(const std::filesystem::path& path);
  /// Whole lines of TraceText.
  void append(std::string_view lines);
  /// After the last line, which has no comma behind it.
  void close();

 private:
  File file_;
  int64_t bytes_ = 0;
};

struct JoinedTrace {
  int ranks = 0;
  int64_t bytes = 0;
};

/// The ranks that have parts in `folder`, ascending.
std::vector<int> ranks_with_parts(const std::filesystem::path& folder);

/// Writes to `output` one trace of these ranks of `folder`: {"traceEvents": [...]}. Of a part that
/// was cut off it takes the whole lines. `about` is for people: a JSON object. Throws kUsage when
/// a part is missing or `output` cannot be written, which is then not there or as it was.
JoinedTrace join_trace(const std::filesystem::path& folder, const std::vector<int>& ranks,
                       const std::filesystem::path& output, const std::string& about = "{}");

}  // namespace tessera
