#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// The instructions of sm_80 that C++ has no words for: matrix products of a warp, asynchronous
/// copies to shared memory, conversions. Each by its documented meaning (PTX ISA 8.x, sections
/// named below). The tests replace this file by one in plain C++ (tests/simt/stand_in), so that
/// kernels written with it run without a GPU.
namespace tessera::gpu {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// ldmatrix: four 8 x 8 matrices of 16-bit elements. Lane 8 i + r gives the address of row r of
/// matrix i, 16 bytes, aligned to 16. Lane l gets of each matrix the elements 2 (l % 4) and
/// 2 (l % 4) + 1 of row l / 4 (the lower half first).
__device__ __forceinline__ void load_matrices(uint32_t (&part)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
               : "r"(shared_address(row))
               : "memory");
}
/// As load_matrices, of the transposes: elements 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
__device__ __forceinline__ void load_transposed(uint32_t (&part)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(part[0]), "=r"(part[1]), "=r"(part[2]), "=r"(part[3])
               : "r"(shared_address(row))
               : "memory");
}

/// mma.m16n8k16: c += a b, bf16 in, f32 out. With g = lane / 4, t = 2 (lane % 4):
///   a[0]: row g, columns t, t + 1;  a[1]: row g + 8;  a[2]: row g, columns t + 8, t + 9;
///   a[3]: row g + 8, columns t + 8, t + 9;  b[0]: column g, rows t, t + 1;  b[1]: rows t + 8, t +
///   9 c[0], c[1]: row g, columns t, t + 1;  c[2], c[3]: row g + 8.
__device__ __forceinline__ void multiply_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// mma.m16n8k8: c += a b, tf32 in, f32 out. With g = lane / 4, t = lane % 4:
///   a[0]: row g, column t;  a[1]: row g + 8;  a[2]: row g, column t + 4;  a[3]: row g + 8, t + 4
///   b0: row t, column g;  b1: row t + 4;  c as in multiply_bf16.
__device__ __forceinline__ void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// cvt.rna.tf32: x rounded to 10 bits of mantissa, in the bits of a float.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

/// cvt.rn.bf16x2: two numbers rounded to nearest even, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
/// fma.rn.bf16x2: a b + c, of two numbers each, rounded once.
__device__ __forceinline__ uint32_t multiply_add_bf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t bits;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(bits) : "r"(a), "r"(b), "r"(c));
  return bits;
}
/// ex2.approx: 2^x to two units in the last place; 0 for -inf.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// cp.async: 16 bytes to shared memory, both aligned to 16; zeros, and no read, unless `valid`.
/// They are there for this lane after a wait that covers their group, for others after a barrier
/// too.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
/// Closes the group of the copies since the last one.
__device__ __forceinline__ void close_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most the last `Pending` groups are under way.
template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// st.v4.b32: 16 bytes to global memory at once, aligned to 16. For stores that the compiler would
/// take apart.
__device__ __forceinline__ void store_words(void* to, uint32_t a, uint32_t b, uint32_t c,
                                            uint32_t d) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(to), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
/// st.v2.b32: 8 bytes, aligned to 8.
__device__ __forceinline__ void store_words(void* to, uint32_t a, uint32_t b) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" : : "l"(to), "r"(a), "r"(b) : "memory");
}

}  // namespace tessera::gpu
