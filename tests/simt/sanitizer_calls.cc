#include <cstddef>

#include "tests/simt/block_runner.h"
#include "tests/simt/memory_checks.h"

// What g++ calls before every load and store of code compiled with -fsanitize=kernel-address and
// --param asan-instrumentation-with-call-threshold=0. There is no runtime library behind it: these
// functions are all of it.

namespace {
using tessera::simt::Access;

[[gnu::always_inline]] inline void check(const void* address, size_t bytes, Access access) {
  tessera::simt::note_site(__builtin_return_address(0));
  tessera::simt::check_access(address, bytes, access);
}
}  // namespace

extern "C" {
void __asan_load1_noabort(void* address) {
  check(address, 1, Access::kRead);
}
void __asan_load2_noabort(void* address) {
  check(address, 2, Access::kRead);
}
void __asan_load4_noabort(void* address) {
  check(address, 4, Access::kRead);
}
void __asan_load8_noabort(void* address) {
  check(address, 8, Access::kRead);
}
void __asan_load16_noabort(void* address) {
  check(address, 16, Access::kRead);
}
void __asan_loadN_noabort(void* address, size_t bytes) {
  check(address, bytes, Access::kRead);
}
void __asan_store1_noabort(void* address) {
  check(address, 1, Access::kWrite);
}
void __asan_store2_noabort(void* address) {
  check(address, 2, Access::kWrite);
}
void __asan_store4_noabort(void* address) {
  check(address, 4, Access::kWrite);
}
void __asan_store8_noabort(void* address) {
  check(address, 8, Access::kWrite);
}
void __asan_store16_noabort(void* address) {
  check(address, 16, Access::kWrite);
}
void __asan_storeN_noabort(void* address, size_t bytes) {
  check(address, bytes, Access::kWrite);
}
void __asan_handle_no_return() {}
void __asan_before_dynamic_init(const char*) {}
void __asan_after_dynamic_init() {}
}

namespace tessera::simt {}
