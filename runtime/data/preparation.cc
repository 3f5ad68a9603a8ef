#include "runtime/data/preparation.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <iomanip>
#include <sstream>
#include <system_error>

#include "runtime/data/dataset.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse_output(const fs::path& path, const std::string& why) {
  throw Error(ExitCode::kUsage, concat("--output ", path.string(), " ", why));
}

/// Throws when `directory` has files of our names that no run of ours can have left there.
void check_no_foreign_files(const fs::path& directory) {
  for (const char* name : {"train.bin", "train.idx", "validation.bin", "validation.idx"}) {
    if (!fs::exists(directory / name)) continue;
    refuse_output(directory, concat("has a file ", name,
                                    " that is not part of a finished data set: choose another "
                                    "--output, or give --overwrite to replace it"));
  }
}

}  // namespace

Preparation::Preparation(const fs::path& directory, bool overwrite)
    : path_(directory / "preparation.unfinished"), remove_(true) {
  std::error_code problem;
  fs::create_directories(directory, problem);
  if (problem) refuse_output(directory, concat("cannot be made: ", problem.message()));
  remove_ = !fs::exists(path_);  // else a run of ours died here
  if (!overwrite && remove_ && !has_dataset(directory)) check_no_foreign_files(directory);
  descriptor_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    refuse_output(directory, concat("cannot be written: ", std::generic_category().message(errno)));
  }
  if (!lock()) {
    ::close(descriptor_);
    throw Error(ExitCode::kTryAgain, concat(directory.string(),
                                            ": another process is preparing this data set; wait "
                                            "until it is done, or choose another --output"));
  }
}

Preparation::~Preparation() {
  if (remove_) ::unlink(path_.c_str());
  ::close(descriptor_);
}

// The file may have been removed by its owner between open and lock: then it guards nothing.
bool Preparation::lock() const {
  struct stat locked {};
  struct stat named {};
  return ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0 && ::fstat(descriptor_, &locked) == 0 &&
         ::stat(path_.c_str(), &named) == 0 && locked.st_ino == named.st_ino;
}

void Preparation::begin_replacing() {
  remove_ = false;
  remove_description(path_.parent_path());
}

std::string Fingerprint::text() const {
  std::ostringstream out;
  out << std::hex << std::setfill('0') << std::setw(16) << hash_;
  return out.str();
}

bool holds_dataset(const fs::path& directory, const std::string& fingerprint, bool overwrite) {
  if (!has_dataset(directory)) return false;
  std::string found;
  try {
    found = read_description(directory).fingerprint;
  } catch (const Error&) {
    if (!overwrite) throw;
  }
  if (found == fingerprint) return true;
  if (overwrite) return false;
  throw Error(ExitCode::kUsage,
              concat(directory.string(),
                     " holds a data set made from other inputs or with other options: choose "
                     "another --output, or give --overwrite to replace it"));
}

}  // namespace tessera
