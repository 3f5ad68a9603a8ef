#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// What happened to a run, beside its steps.
struct RunEvent {
  enum class Kind : uint8_t { kStart, kResume, kSave, kSkip, kStop, kChange, kHold, kWarning };
  Kind kind = Kind::kStart;
  int64_t step = 0;   ///< the last one that was done, as far as the log says
  std::string clock;  ///< "23:43:55", empty when it is not known
  std::string text;   ///< as in the log
};
/// "start", "resume", ...
const char* name_of(RunEvent::Kind kind);

/// The event that a line of log.txt tells of, in `event`, whose step is that of the line before.
/// False when it tells of none; its step is kept up to date then, too.
bool read_event(std::string_view line, RunEvent& event);

/// The events of RUN/log.txt, in their order; empty when there is none.
std::vector<RunEvent> read_log(const std::filesystem::path& path);

}  // namespace tessera
