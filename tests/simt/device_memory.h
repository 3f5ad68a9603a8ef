#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace tessera::simt {

/// One range of addresses for all global memory that is not managed, so that one call takes it away
/// from the host and gives it back.
class DeviceMemory {
 public:
  DeviceMemory();

  /// `bytes`, a multiple of the page. Zeros when taken for the first time. MAP_FAILED when full.
  void* take(size_t bytes);
  void give_back(void* data, size_t bytes);

  /// Between the first open and the last close everything may be touched.
  void open();
  void close();

 private:
  static constexpr size_t kBytes = size_t{64} << 30;

  void protect(int how);

  std::mutex mutex_;
  char* base_;
  size_t used_ = 0;
  int open_ = 0;
  std::multimap<size_t, char*> free_;  // by size
};
DeviceMemory& device_memory();

}  // namespace tessera::simt
