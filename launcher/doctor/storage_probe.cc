#include "launcher/doctor/storage_probe.h"

#include <unistd.h>

#include <chrono>
#include <exception>
#include <vector>

#include "checkpoint/file_io.h"
#include "kernels/core/error.h"
#include "launcher/doctor/machine.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

using Clock = std::chrono::steady_clock;

constexpr double kSeconds = 0.4;  // of each measurement, but for the last sync
constexpr int kMostSyncs = 2000;
constexpr int64_t kPage = 4096;
constexpr int64_t kPiece = 8 << 20;
constexpr int64_t kMostBytes = 256 << 20;
constexpr uint64_t kSpareBytes = 4ULL << 30;  // that others keep while we write

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

double syncs_per_second(File& file) {
  const std::vector<std::byte> page(kPage, std::byte{1});
  const auto begin = Clock::now();
  int count = 0;
  while (count < kMostSyncs && seconds_since(begin) < kSeconds) {
    file.write_at(page, count % 16 * kPage);
    file.sync();
    ++count;
  }
  return count / seconds_since(begin);
}

// Not zeros all the same, which some storage does not store.
std::vector<std::byte> piece() {
  std::vector<std::byte> data(kPiece);
  uint32_t state = 1;
  for (std::byte& one : data) {
    state = state * 1664525 + 1013904223;  // Knuth's linear congruential generator
    one = static_cast<std::byte>(state >> 24);
  }
  return data;
}

double bytes_per_second(File& file) {
  const std::vector<std::byte> data = piece();
  const auto begin = Clock::now();
  int64_t written = 0;
  while (written < kMostBytes && seconds_since(begin) < kSeconds) {
    file.write_at(data, written);
    file.sync();
    written += kPiece;
  }
  return static_cast<double>(written) / seconds_since(begin);
}

void try_files(const Directory& directory, bool roomy,
               const std::function<void(const std::string& line)>& tell) {
  // Other hosts may be at it, with the same number of a process.
  const std::string name =
      concat(".tessera-doctor-", getpid(), "-", Clock::now().time_since_epoch().count());
  File file = directory.create(name);
  try {
    tell(concat("storage: syncs ", syncs_per_second(file)));
    if (roomy) tell(concat("storage: rate ", bytes_per_second(file)));
    file.close();
    directory.rename(name, name + "-renamed");
    directory.sync();
    directory.remove(name + "-renamed");
  } catch (const std::exception&) {
    try {
      directory.remove(directory.contains(name) ? name : name + "-renamed");
    } catch (const std::exception&) {
      // What is told is why it could not be written.
    }
    throw;
  }
}

// The directory itself, or the nearest one above it that is there.
fs::path nearest_directory(fs::path place) {
  for (;; place = place.parent_path()) {
    std::error_code error;
    const fs::file_status found = fs::status(place, error);
    if (fs::is_directory(found)) return place;
    if (fs::exists(found)) {
      throw Error(ExitCode::kUsage, concat(place.string(), " is a file, expected a directory"));
    }
    if (found.type() != fs::file_type::not_found || !place.has_relative_path()) {
      throw Error(ExitCode::kUsage,
                  concat("cannot look at ", place.string(), ": ", error.message()));
    }
  }
}

}  // namespace

void probe_storage(const fs::path& directory, const std::string& marker,
                   const std::function<void(const std::string& line)>& tell) {
  try {
    const fs::path wanted = fs::absolute(directory).lexically_normal();
    const fs::path place = nearest_directory(wanted);
    tell(concat("storage: path ", fs::canonical(place).string()));
    if (place != wanted) tell("storage: missing 1");
    const auto space = ThisMachine().space(place.string());
    if (space) {
      tell(concat("storage: space ", space->total, " ", space->free, " ", space->files, " ",
                  space->free_files));
    }
    const Directory opened(place);
    if (!marker.empty()) tell(concat("storage: marker ", opened.contains(marker) ? 1 : 0));
    try_files(opened, space && space->free > kSpareBytes, tell);
    tell("storage: done 1");
  } catch (const std::exception& error) {
    tell(concat("storage: error ", error.what()));
  }
}

}  // namespace tessera
