#include <cublasLt.h>

#include <algorithm>
#include <compare>
#include <map>
#include <mutex>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/workspace.h"
#include "kernels/matmul.h"

// Through cuBLASLt, which thinks in columns: its matrices are ours transposed, so c^T = op(b)^T
// op(a)^T is asked for. The algorithm for a shape is chosen when the shape is first seen and kept:
// a call is then a look-up and a launch. Sums are f32 (not TF32) throughout, partial ones too, and
// none is added up with atomics. What cuBLASLt lacks, f32 products rounded to bf16, takes a detour
// through the workspace.

namespace tessera::gpu {
namespace {

/// Half of the stream's workspace, which is what Hopper's kernels ask for; ours has the rest.
constexpr int64_t kLibraryBytes = Stream::kWorkspaceBytes / 2;
/// Alignment of a matrix that more of makes no difference.
constexpr uint32_t kWholeAlignment = 16;

void expect(cublasStatus_t status, const char* what) {
  CHECK(status == CUBLAS_STATUS_SUCCESS, "matmul: ", what,
        " failed: ", cublasLtGetStatusString(status));
}

/// What a plan depends on.
struct Product {
  int64_t m, n, k;
  int64_t a_stride, b_stride;
  DType dtype, c_dtype;
  bool transpose_a, transpose_b;
  uint32_t a_alignment = 0, b_alignment = 0, c_alignment = 0;

  auto operator<=>(const Product&) const = default;
};

/// In the library's words. Its descriptors are plain memory here: nothing to destroy.
struct Plan {
  cublasLtMatmulDescOpaque_t product;
  cublasLtMatrixLayoutOpaque_t a, b, c;
  cublasLtMatmulAlgo_t algorithm;
};

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
}

uint32_t alignment_of(const void* data) {
  uint32_t alignment = kWholeAlignment;
  while (reinterpret_cast<uintptr_t>(data) % alignment != 0) alignment /= 2;
  return alignment;
}

/// A matrix of ours: `rows` rows in memory of `columns` numbers.
cublasLtMatrixLayoutOpaque_t layout(DType dtype, int64_t rows, int64_t columns, int64_t stride) {
  cublasLtMatrixLayoutOpaque_t matrix;
  expect(cublasLtMatrixLayoutInit(&matrix, type_of(dtype), static_cast<uint64_t>(columns),
                                  static_cast<uint64_t>(rows), stride),
         "cublasLtMatrixLayoutInit");
  return matrix;
}

void choose_algorithm(cublasLtHandle_t handle, const Product& p, Plan& plan) {
  cublasLtMatmulPreferenceOpaque_t preference;
  expect(cublasLtMatmulPreferenceInit(&preference), "cublasLtMatmulPreferenceInit");
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    expect(cublasLtMatmulPreferenceSetAttribute(&preference, name, &value, sizeof(value)),
           "cublasLtMatmulPreferenceSetAttribute");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kLibraryBytes));
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.b_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.a_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.c_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.c_alignment);
  cublasLtMatmulHeuristicResult_t best{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle, &plan.product, &plan.b, &plan.a, &plan.c, &plan.c, &preference, 1, &best, &found);
  CHECK(status == CUBLAS_STATUS_SUCCESS && found == 1, "matmul: cuBLASLt has no algorithm for m ",
        p.m, ", n ", p.n, ", k ", p.k, " of ", name_of(p.dtype), " to ", name_of(p.c_dtype), ": ",
        cublasLtGetStatusString(status));
  plan.algorithm = best.algo;
}

Plan make_plan(cublasLtHandle_t handle, const Product& p) {
  Plan plan;
  expect(cublasLtMatmulDescInit(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F),
         "cublasLtMatmulDescInit");
  const auto set = [&](cublasLtMatmulDescAttributes_t name, bool transposed) {
    const int32_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    expect(cublasLtMatmulDescSetAttribute(&plan.product, name, &operation, sizeof(operation)),
           "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b);
  set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a);
  plan.a = layout(p.dtype, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.a_stride);
  plan.b = layout(p.dtype, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.b_stride);
  plan.c = layout(p.c_dtype, p.m, p.n, p.n);
  choose_algorithm(handle, p, plan);
  return plan;
}

/// The library on one device, and the plans of all shapes it has seen.
class Library {
 public:
  explicit Library(int device) {
    CUDA_CHECK(cudaSetDevice(device));
    expect(cublasLtCreate(&handle_), "cublasLtCreate");
  }

  cublasLtHandle_t handle() const { return handle_; }
  /// A copy: the library asks for descriptors it may write to.
  Plan plan(const Product& product) {
    const std::lock_guard lock(mutex_);
    const auto known = plans_.find(product);
    if (known != plans_.end()) return known->second;
    return plans_.emplace(product, make_plan(handle_, product)).first->second;
  }

 private:
  cublasLtHandle_t handle_ = nullptr;  // until the process ends
  std::mutex mutex_;
  std::map<Product, Plan> plans_;
};

Library& library_on(int device) {
  static std::mutex mutex;
  static std::map<int, Library> libraries;
  const std::lock_guard lock(mutex);
  return libraries.try_emplace(device, device).first->second;
}

/// c = op(a) op(b) + (add ? c : 0), of types that the library multiplies.
struct Call {
  void* c;
  const void* a;
  const void* b;
  bool add;
};
void multiply(Stream& stream, void* scratch, Product p, const Call& call) {
  p.a_alignment = alignment_of(call.a);
  p.b_alignment = alignment_of(call.b);
  p.c_alignment = alignment_of(call.c);
  Library& library = library_on(stream.device().index);
  Plan plan = library.plan(p);
  const float alpha = 1;
  const float beta = call.add ? 1 : 0;
  expect(cublasLtMatmul(library.handle(), &plan.product, &alpha, call.b, &plan.b, call.a, &plan.a,
                        &beta, call.c, &plan.c, call.c, &plan.c, &plan.algorithm, scratch,
                        static_cast<size_t>(kLibraryBytes),
                        static_cast<cudaStream_t>(stream.handle())),
         "cublasLtMatmul");
}

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    round_to_bf16(BF16* c, const float* product, int64_t count, bool add) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  c[i] = from_float<BF16>(product[i] + (add ? to_float(c[i]) : 0));
}

/// f32 products rounded to bf16, as many rows at a time as the rest of the workspace holds.
void multiply_and_round(Stream& stream, Workspace& workspace, void* scratch, const Product& p,
                        const Call& call) {
  constexpr int64_t kFloats = (Stream::kWorkspaceBytes - kLibraryBytes) / int64_t{sizeof(float)};
  const int64_t most = std::min(p.m, std::max(kFloats / p.n, int64_t{1}));
  float* const product = workspace.take<float>(most * p.n);
  const auto* const a = static_cast<const float*>(call.a);
  auto* const c = static_cast<BF16*>(call.c);
  for (int64_t row = 0; row < p.m; row += most) {
    Product part = p;
    part.m = std::min(most, p.m - row);
    part.c_dtype = DType::kF32;
    multiply(stream, scratch, part,
             {product, a + row * (p.transpose_a ? 1 : p.a_stride), call.b, false});
    launch(stream, round_to_bf16, dim3(blocks_for(part.m * p.n, kThreads)), kThreads, 0,
           c + row * p.n, product, part.m * p.n, call.add);
  }
}

}  // namespace

void matmul(Stream& stream, const Matmul& a) {
  const Product p{.m = a.c.shape()[0],
                  .n = a.c.shape()[1],
                  .k = a.a.shape()[a.transpose_a ? 0 : 1],
                  .a_stride = a.a.shape()[1],
                  .b_stride = a.b.shape()[1],
                  .dtype = a.a.dtype(),
                  .c_dtype = a.c.dtype(),
                  .transpose_a = a.transpose_a,
                  .transpose_b = a.transpose_b};
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) {
    if (a.accumulate) return;
    CUDA_CHECK(cudaMemsetAsync(a.c.data(), 0, static_cast<size_t>(a.c.bytes()),
                               static_cast<cudaStream_t>(stream.handle())));
    return;
  }
  Workspace workspace(stream, "matmul");
  void* const scratch = workspace.take<char>(kLibraryBytes);
  const Call call{a.c.data(), a.a.data(), a.b.data(), a.accumulate};
  if (p.dtype == DType::kF32 && p.c_dtype == DType::kBF16) {
    return multiply_and_round(stream, workspace, scratch, p, call);
  }
  multiply(stream, scratch, p, call);
}

}  // namespace tessera::gpu
