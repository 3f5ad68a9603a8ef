#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tessera {

/// What the process returns to its launcher. The numbers are a contract with batch scripts.
enum class ExitCode : int {
  kFinished = 0,
  kError = 1,               ///< any other error
  kUsage = 2,               ///< wrong usage or configuration; nothing was started
  kBadData = 65,            ///< incompatible or damaged checkpoint or data set
  kNoCheckpoint = 66,       ///< a checkpoint was demanded and none is valid
  kTryAgain = 75,           ///< state saved or temporary trouble: run me again
  kNoProgress = 93,         ///< no progress after several restarts
};

/// The one exception type: one sentence that says who found what and what was expected.
class Error : public std::runtime_error {
 public:
  Error(const char* file, int line, const std::string& message);
  /// For trouble that the user can mend: no source position, and its own exit code.
  Error(ExitCode code, const std::string& message);

  ExitCode code() const { return code_; }

 private:
  ExitCode code_ = ExitCode::kError;
};

/// The rank printed in front of every error and log line. Set once, by main.
void set_error_rank(int rank, int world);
/// "[rank 3/16] ", or empty while the world has one rank.
std::string rank_prefix();

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace tessera

/// Throws Error when `condition` is false. Say who, what was found and what was expected.
#define CHECK(condition, ...)                                                                  \
  do {                                                                                         \
    if (!(condition)) throw ::tessera::Error(__FILE__, __LINE__, ::tessera::concat(__VA_ARGS__)); \
  } while (false)
