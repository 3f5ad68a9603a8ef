#include <omp.h>

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>
#include <span>
#include <unordered_map>

#include "kernels/block_matmul.h"
#include "kernels/core/buffer.h"

namespace tessera::cpu {

namespace {

using Memory = dnnl::memory;

// A primitive holds 0.1 MiB of generated code and takes 0.4 ms to make; the rows of experts and of
// prompts vary, so their number is bounded.
constexpr size_t kMaxPrimitives = 1024;

// Widened operands take this many summands at a time, to bound the scratch of long sums.
constexpr int64_t kWideDepth = 1024;

/// What the generated code depends on.
struct Key {
  int64_t m, n, k, c_stride, a_stride, b_stride;
  DType c_dtype, dtype;
  bool transpose_a, transpose_b, accumulate;

  friend bool operator==(const Key&, const Key&) = default;
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0;
    for (const int64_t part :
         {key.m, key.n, key.k, key.c_stride, key.a_stride, key.b_stride,
          int64_t{key.transpose_a} | int64_t{key.transpose_b} << 1 | int64_t{key.accumulate} << 2 |
              static_cast<int64_t>(key.c_dtype) << 3 | static_cast<int64_t>(key.dtype) << 8}) {
      hash = (hash ^ static_cast<uint64_t>(part)) * 0x9E3779B97F4A7C15;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

Memory::data_type type_of(DType dtype) {
  return dtype == DType::kBF16 ? Memory::data_type::bf16 : Memory::data_type::f32;
}

Memory::desc matrix(int64_t rows, int64_t columns, DType dtype, int64_t stride, bool transposed) {
  const Memory::dims strides = transposed ? Memory::dims{1, stride} : Memory::dims{stride, 1};
  return {{rows, columns}, type_of(dtype), strides};
}

/// Memory that grows to the largest request and stays. What it held is lost when it grows.
class Scratch {
 public:
  void* reserve(int64_t bytes) {
    if (bytes > buffer_.bytes()) buffer_ = Buffer(Device{}, bytes);
    return buffer_.view(DType::kU8, {buffer_.bytes()}).data();
  }

 private:
  Buffer buffer_;
};

/// A compiled product, ready for pointers.
struct Primitive {
  dnnl::matmul run;
  int64_t scratch_bytes;
  std::unordered_map<int, Memory> arguments;
};

/// The primitives of one thread: a memo of pure values, and the scratch they work in. The library
/// is asked for one thread per call, because the pool cuts the work; the setting is the thread's.
class Primitives {
 public:
  Primitives() : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) { omp_set_num_threads(1); }

  void run(const BlockMatmul& a) {
    Primitive& primitive = find({a.m, a.n, a.k, a.c_stride, a.a_stride, a.b_stride, a.c_dtype,
                                 a.dtype, a.transpose_a, a.transpose_b, a.accumulate});
    auto& arguments = primitive.arguments;
    arguments.at(DNNL_ARG_SRC).set_data_handle(const_cast<void*>(a.a));
    arguments.at(DNNL_ARG_WEIGHTS).set_data_handle(const_cast<void*>(a.b));
    arguments.at(DNNL_ARG_DST).set_data_handle(a.c);
    arguments.at(DNNL_ARG_SCRATCHPAD)
        .set_data_handle(library_scratch_.reserve(primitive.scratch_bytes));
    primitive.run.execute(stream_, arguments);
  }

  Scratch& wide_scratch() { return wide_scratch_; }

 private:
  Primitive& find(const Key& key) {
    const auto found = primitives_.find(key);
    if (found != primitives_.end()) return found->second;
    if (primitives_.size() >= kMaxPrimitives) primitives_.clear();
    return primitives_.emplace(key, make(key)).first->second;
  }

  Primitive make(const Key& key) {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (key.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc description(
        {matrix(key.m, key.k, key.dtype, key.a_stride, key.transpose_a),
         matrix(key.k, key.n, key.dtype, key.b_stride, key.transpose_b),
         matrix(key.m, key.n, key.c_dtype, key.c_stride, false)},
        attributes, engine_);
    const auto memory = [&](const Memory::desc& shape) { return Memory(shape, engine_, nullptr); };
    return {dnnl::matmul(description),
            static_cast<int64_t>(description.scratchpad_desc().get_size()),
            {{DNNL_ARG_SRC, memory(description.src_desc())},
             {DNNL_ARG_WEIGHTS, memory(description.weights_desc())},
             {DNNL_ARG_DST, memory(description.dst_desc())},
             {DNNL_ARG_SCRATCHPAD, memory(description.scratchpad_desc())}}};
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  std::unordered_map<Key, Primitive, KeyHash> primitives_;
  Scratch library_scratch_;
  Scratch wide_scratch_;
};

Primitives& primitives() {
  thread_local Primitives of_this_thread;
  return of_this_thread;
}

bool has_bf16_instructions() {
  constexpr auto kNeeded = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & kNeeded) == kNeeded;
}

/// Copies a [rows, columns] block, converting.
template <class To, class From>
void copy_block(To* to, int64_t to_stride, const From* from, int64_t from_stride, int64_t rows,
                int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < columns; ++i) {
      to[row * to_stride + i] = from_float<To>(to_float(from[row * from_stride + i]));
    }
  }
}

void fill_zero(const BlockMatmul& a) {
  for (int64_t row = 0; row < a.m; ++row) {
    std::memset(static_cast<char*>(a.c) + row * a.c_stride * size_of(a.c_dtype), 0,
                static_cast<size_t>(a.n * size_of(a.c_dtype)));
  }
}

const BF16* as_bf16(const void* data) {
  return static_cast<const BF16*>(data);
}

/// The part [first, first + part.k) of the sum, with bf16 operands widened into `scratch`.
BlockMatmul widened(const BlockMatmul& a, int64_t first, int64_t depth, float* scratch) {
  BlockMatmul part = a;
  part.k = depth;
  const int64_t a_offset = a.transpose_a ? first * a.a_stride : first;
  const int64_t b_offset = a.transpose_b ? first : first * a.b_stride;
  if (a.dtype == DType::kF32) {
    part.a = static_cast<const float*>(a.a) + a_offset;
    part.b = static_cast<const float*>(a.b) + b_offset;
    return part;
  }
  float* wide_b = scratch + a.m * depth;
  part.dtype = DType::kF32;
  part.a = scratch;
  part.b = wide_b;
  part.a_stride = a.transpose_a ? a.m : depth;
  part.b_stride = a.transpose_b ? depth : a.n;
  copy_block(scratch, part.a_stride, as_bf16(a.a) + a_offset, a.a_stride,
             a.transpose_a ? depth : a.m, part.a_stride);
  copy_block(wide_b, part.b_stride, as_bf16(a.b) + b_offset, a.b_stride,
             a.transpose_b ? a.n : depth, part.b_stride);
  return part;
}

}  // namespace

void block_matmul(const BlockMatmul& a) {
  if (a.m == 0 || a.n == 0) return;
  if (a.k == 0) {
    if (!a.accumulate) fill_zero(a);
    return;
  }
  const bool native = a.dtype == DType::kF32 ? a.c_dtype == DType::kF32 : has_bf16_instructions();
  if (native) {
    primitives().run(a);
  } else {
    block_matmul_in_f32(a);
  }
}

void block_matmul_in_f32(const BlockMatmul& a) {
  const bool round = a.c_dtype == DType::kBF16;
  const int64_t depth = std::min(a.k, kWideDepth);
  const int64_t elements = (a.m + a.n) * depth + a.m * a.n;
  auto* sum = static_cast<float*>(primitives().wide_scratch().reserve(elements * 4));
  BlockMatmul wide = a;
  if (round) {
    wide.c = sum;
    wide.c_stride = a.n;
    wide.c_dtype = DType::kF32;
    if (a.accumulate) copy_block(sum, a.n, as_bf16(a.c), a.c_stride, a.m, a.n);
  }
  for (int64_t first = 0; first < a.k; first += depth) {
    block_matmul(widened(wide, first, std::min(depth, a.k - first), sum + a.m * a.n));
    wide.accumulate = true;
  }
  if (round) copy_block(static_cast<BF16*>(a.c), a.c_stride, sum, a.n, a.m, a.n);
}

}  // namespace tessera::cpu
