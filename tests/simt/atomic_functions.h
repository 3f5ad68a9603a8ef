#pragma once

#include <cstdint>

/// CUDA's atomics on global and shared memory: each returns the old value. Lanes run one at a time,
/// so a plain update is atomic; the access is checked as one.

unsigned atomicAdd(unsigned* address, unsigned value);
int atomicAdd(int* address, int value);
unsigned long long atomicAdd(unsigned long long* address, unsigned long long value);
float atomicAdd(float* address, float value);
unsigned atomicMax(unsigned* address, unsigned value);
int atomicMax(int* address, int value);
unsigned atomicMin(unsigned* address, unsigned value);
int atomicMin(int* address, int value);
unsigned atomicOr(unsigned* address, unsigned value);
int atomicOr(int* address, int value);
unsigned atomicAnd(unsigned* address, unsigned value);
unsigned atomicExch(unsigned* address, unsigned value);
int atomicExch(int* address, int value);
unsigned atomicCAS(unsigned* address, unsigned compare, unsigned value);
unsigned long long atomicCAS(unsigned long long* address, unsigned long long compare,
                             unsigned long long value);

/// Makes earlier writes of the lane visible to blocks that go on after an atomic.
void __threadfence();
void __threadfence_block();

namespace tessera::simt {}
