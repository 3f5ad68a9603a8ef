#pragma once

#include "kernels/core/device.h"
#include "kernels/core/error.h"

namespace tessera::gpu {

/// Scratch memory of one kernel call on the device: a part of the stream's workspace. Work of a
/// stream is in order, so the next call may use it again. Uninitialised.
class Workspace {
 public:
  /// `who` begins the sentence when it is too small.
  Workspace(Stream& stream, const char* who) : stream_(stream), who_(who) {}

  /// `count` of T, aligned to 256. Throws when the workspace is used up.
  template <class T>
  T* take(int64_t count) {
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    CHECK(used_ + bytes <= stream_.workspace_bytes(), who_, ": needs ", used_ + bytes,
          " bytes of workspace, the stream has ", stream_.workspace_bytes());
    char* const piece = static_cast<char*>(stream_.workspace()) + used_;
    used_ += bytes;
    return reinterpret_cast<T*>(piece);
  }

 private:
  Stream& stream_;
  const char* who_;
  int64_t used_ = 0;
};

}  // namespace tessera::gpu
