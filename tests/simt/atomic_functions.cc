#include "tests/simt/atomic_functions.h"

#include <algorithm>

#include "tests/simt/memory_checks.h"

namespace {

template <class T, class F>
T update(T* address, F&& f) {
  tessera::simt::check_access(address, sizeof(T), tessera::simt::Access::kAtomic);
  const T old = *address;
  *address = f(old);
  return old;
}

}  // namespace

unsigned atomicAdd(unsigned* address, unsigned value) {
  return update(address, [=](unsigned old) { return old + value; });
}
int atomicAdd(int* address, int value) {
  return update(address, [=](int old) { return old + value; });
}
unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return update(address, [=](unsigned long long old) { return old + value; });
}
float atomicAdd(float* address, float value) {
  return update(address, [=](float old) { return old + value; });
}
unsigned atomicMax(unsigned* address, unsigned value) {
  return update(address, [=](unsigned old) { return std::max(old, value); });
}
int atomicMax(int* address, int value) {
  return update(address, [=](int old) { return std::max(old, value); });
}
unsigned atomicMin(unsigned* address, unsigned value) {
  return update(address, [=](unsigned old) { return std::min(old, value); });
}
int atomicMin(int* address, int value) {
  return update(address, [=](int old) { return std::min(old, value); });
}
unsigned atomicOr(unsigned* address, unsigned value) {
  return update(address, [=](unsigned old) { return old | value; });
}
int atomicOr(int* address, int value) {
  return update(address, [=](int old) { return old | value; });
}
unsigned atomicAnd(unsigned* address, unsigned value) {
  return update(address, [=](unsigned old) { return old & value; });
}
unsigned atomicExch(unsigned* address, unsigned value) {
  return update(address, [=](unsigned) { return value; });
}
int atomicExch(int* address, int value) {
  return update(address, [=](int) { return value; });
}
unsigned atomicCAS(unsigned* address, unsigned compare, unsigned value) {
  return update(address, [=](unsigned old) { return old == compare ? value : old; });
}
unsigned long long atomicCAS(unsigned long long* address, unsigned long long compare,
                             unsigned long long value) {
  return update(address, [=](unsigned long long old) { return old == compare ? value : old; });
}

void __threadfence() {
  tessera::simt::lane_fenced();
}
void __threadfence_block() {}

namespace tessera::simt {}
