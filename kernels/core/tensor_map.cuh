#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/cuda_check.h"
#include "kernels/core/tensor_view.h"

/// What tells the unit that copies boxes (ptx_sm90.cuh) of a tensor: a kernel's argument, which is
/// `const __grid_constant__ CUtensorMap`.
namespace tessera::gpu {

/// Innermost first.
struct Extents3 {
  int64_t x, y, z;
};

/// Of a tensor of bf16 [extents.z, extents.y, extents.x], for boxes whose lines of 64 elements, 128
/// bytes, are swizzled. Throws where it is not aligned to 16 bytes or x not a multiple of 8, or a
/// box is longer than 256 along an axis. `who` begins the sentence.
inline CUtensorMap tensor_map(const ConstTensorView& x, const Extents3& extents,
                              const Extents3& box, const char* who) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                              cudaEnableDefault, &found));
  CHECK(found == cudaDriverEntryPointSuccess, who,
        ": the driver has no cuTensorMapEncodeTiled, expected one of CUDA 12 or later");
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  const auto unsigned_of = [](int64_t extent) { return static_cast<cuuint64_t>(extent); };
  const cuuint64_t sizes[] = {unsigned_of(extents.x), unsigned_of(extents.y),
                              unsigned_of(extents.z)};
  const cuuint64_t strides[] = {2 * sizes[0], 2 * sizes[0] * sizes[1]};  // bytes
  const cuuint32_t box_sizes[] = {static_cast<cuuint32_t>(box.x), static_cast<cuuint32_t>(box.y),
                                  static_cast<cuuint32_t>(box.z)};
  const cuuint32_t steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(x.data()), sizes, strides,
             box_sizes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, who, ": no tensor map of ", x.shape(), " with boxes of ", box.x,
        " x ", box.y, " x ", box.z, ": error ", static_cast<int>(result));
  return map;
}

}  // namespace tessera::gpu
