#include "tests/simt/device_memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <new>
#include <string_view>

namespace tessera::simt {
namespace {

struct Range {
  const char* begin = nullptr;
  size_t bytes = 0;
};
Range& guarded() {
  static Range range;
  return range;
}

void on_fault(int, siginfo_t* info, void*) {
  const auto* const at = static_cast<const char*>(info->si_addr);
  if (at >= guarded().begin && at < guarded().begin + guarded().bytes) {
    constexpr std::string_view kText =
        "simt: code of the host touches memory of the device, outside of kernels and copies\n";
    (void)!write(STDERR_FILENO, kText.data(), kText.size());
  }
  signal(SIGSEGV, SIG_DFL);  // the access is tried again and ends the program
}

}  // namespace

DeviceMemory::DeviceMemory() {
  void* const all =
      mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(all);
  guarded() = {base_, kBytes};
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
}

void* DeviceMemory::take(size_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto found = free_.lower_bound(bytes);
  if (found != free_.end() && found->first == bytes) {
    char* const data = found->second;
    free_.erase(found);
    return data;
  }
  if (used_ + bytes > kBytes) return MAP_FAILED;
  char* const data = base_ + used_;
  used_ += bytes;
  if (open_ > 0) protect(PROT_READ | PROT_WRITE);
  return data;
}

void DeviceMemory::give_back(void* data, size_t bytes) {
  const std::lock_guard lock(mutex_);
  madvise(data, bytes, MADV_DONTNEED);
  free_.emplace(bytes, static_cast<char*>(data));
}

void DeviceMemory::open() {
  const std::lock_guard lock(mutex_);
  if (open_++ == 0) protect(PROT_READ | PROT_WRITE);
}

void DeviceMemory::close() {
  const std::lock_guard lock(mutex_);
  if (--open_ == 0) protect(PROT_NONE);
}

void DeviceMemory::protect(int how) {
  if (used_ > 0) mprotect(base_, used_, how);
}

DeviceMemory& device_memory() {
  static DeviceMemory only;
  return only;
}

}  // namespace tessera::simt
