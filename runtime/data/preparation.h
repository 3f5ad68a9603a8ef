#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "kernels/core/error.h"

namespace tessera {

/// What the makers of data sets share: a data set appears whole or not at all, is made by one
/// process at a time, and never replaces what is not asked for.

/// Locks a directory against other processes that prepare it. The lock ends with the process. The
/// file that is locked stays behind only when the process died while it replaced files: so the
/// next run knows that what it finds are leftovers of ours.
class Preparation {
 public:
  /// Makes the directory when it does not exist. Throws Error: kUsage when it cannot be written, or
  /// has files of our names that no run of ours can have left there and `overwrite` is false;
  /// kTryAgain while another process has it.
  Preparation(const std::filesystem::path& directory, bool overwrite);
  ~Preparation();
  Preparation(const Preparation&) = delete;
  Preparation& operator=(const Preparation&) = delete;

  /// From here to finish() the directory holds no data set: takes its dataset.json away.
  void begin_replacing();
  void finish() { remove_ = true; }

 private:
  bool lock() const;

  std::filesystem::path path_;
  bool remove_;
  int descriptor_ = -1;
};

/// 64-bit FNV-1a over everything that determines a data set.
class Fingerprint {
 public:
  template <class... Parts>
  void add(const Parts&... parts) {
    for (const char c : concat(parts..., '\n')) {
      hash_ = (hash_ ^ static_cast<uint8_t>(c)) * 0x100000001B3;
    }
  }
  std::string text() const;

 private:
  uint64_t hash_ = 0xCBF29CE484222325;
};

/// Whether `directory` holds the data set with that fingerprint. Throws Error (kUsage) when it
/// holds another one and `overwrite` is false.
bool holds_dataset(const std::filesystem::path& directory, const std::string& fingerprint,
                   bool overwrite);

}  // namespace tessera
