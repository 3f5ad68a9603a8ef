#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"
#include "kernels/core/pointwise.cuh"
#include "kernels/core/stochastic_rounding.h"

// Bound by memory: 28 bytes per element in f32, 30 with a value in bf16, each moved once, four
// packs of a lane under way at a time. Up to kMost tensors share a launch, described by its
// arguments, so that the small ones cost none of their own.

namespace tessera::gpu {
namespace {

constexpr int kN = 4;  // elements of a lane
constexpr int kChunk = kMapThreads * kN;

struct TensorUpdate {
  float* f32_value;  // or null: bf16, or the master itself
  BF16* bf16_value;  // or null
  float* master;
  float* m;
  float* v;
  const float* gradient;
  int64_t count;
  int64_t step;
  uint64_t seed;
  int64_t first_index;
  float rate;
  float beta1;
  float beta2;
  float epsilon;
  float decay;
  float gradient_scale;
  float m_scale;
  float v_scale;
  bool stochastic;
  bool packed;
};

struct Updates {
  static constexpr int kMost = 28;
  TensorUpdate tensors[kMost];
  int64_t first_chunks[kMost + 1];
  int count;
};
static_assert(sizeof(Updates) <= 4096, "the arguments of a kernel");

/// Elements i .. i + kCount - 1.
template <int kCount>
__device__ __forceinline__ void update(const TensorUpdate& a, int64_t i) {
  Floats<kCount> m = load_floats<kCount>(a.m + i);
  Floats<kCount> v = load_floats<kCount>(a.v + i);
  Floats<kCount> master = load_floats<kCount>(a.master + i);
  const Floats<kCount> gradient = load_floats<kCount>(a.gradient + i);
  for (int k = 0; k < kCount; ++k) {
    const float g = gradient.at[k] * a.gradient_scale;
    m.at[k] = a.beta1 * m.at[k] + (1 - a.beta1) * g;
    v.at[k] = a.beta2 * v.at[k] + (1 - a.beta2) * (g * g);
    const float direction = m.at[k] * a.m_scale / (sqrtf(v.at[k] * a.v_scale) + a.epsilon);
    master.at[k] -= a.rate * (direction + a.decay * master.at[k]);
  }
  store_floats(a.m + i, m);
  store_floats(a.v + i, v);
  store_floats(a.master + i, master);
  if (a.f32_value != nullptr) store_floats(a.f32_value + i, master);
  if (a.bf16_value == nullptr) return;
  if (a.stochastic) {
    const int64_t index = a.first_index + i;
    RoundingBits bits(a.seed, a.step, index);
    for (int k = 0; k < kCount; ++k) {
      if (k > 0 && (index + k) % RoundingBits::kElements == 0) {
        bits = RoundingBits(a.seed, a.step, index + k);
      }
      master.at[k] = to_float(round_stochastically(master.at[k], bits.of(index + k)));
    }
  }
  store_floats(a.bf16_value + i, master);
}

/// A block has kChunk elements of one tensor.
__global__ void __launch_bounds__(kMapThreads) update_tensors(Updates a) {
  const int64_t chunk = blockIdx.x;
  int which = 0;
  while (a.first_chunks[which + 1] <= chunk) ++which;
  const TensorUpdate& tensor = a.tensors[which];
  const int64_t begin = (chunk - a.first_chunks[which]) * kChunk;
  const int64_t first = begin + static_cast<int64_t>(threadIdx.x) * kN;
  if (tensor.packed && begin + kChunk <= tensor.count) return update<kN>(tensor, first);
  for (int64_t i = begin + threadIdx.x; i < begin + kChunk && i < tensor.count; i += kMapThreads) {
    update<1>(tensor, i);
  }
}

TensorUpdate describe(const AdamW& a) {
  const auto step = static_cast<double>(a.step);
  const bool bf16 = a.value.dtype() == DType::kBF16;
  float* const master = a.master.as<float>().data();
  TensorUpdate u{
      .f32_value = bf16 || a.value.data() == master ? nullptr : a.value.as<float>().data(),
      .bf16_value = bf16 ? a.value.as<BF16>().data() : nullptr,
      .master = master,
      .m = a.m.as<float>().data(),
      .v = a.v.as<float>().data(),
      .gradient = a.gradient.as<float>().data(),
      .count = a.master.elements(),
      .step = a.step,
      .seed = a.rounding.seed,
      .first_index = a.rounding.first_index,
      .rate = a.rate,
      .beta1 = a.beta1,
      .beta2 = a.beta2,
      .epsilon = a.epsilon,
      .decay = a.decay,
      .gradient_scale = a.gradient_scale,
      .m_scale = static_cast<float>(1 / (1 - std::pow(double{a.beta1}, step))),
      .v_scale = static_cast<float>(1 / (1 - std::pow(double{a.beta2}, step))),
      .stochastic = a.rounding.stochastic,
      .packed = false};
  u.packed = aligned_to_packs(u.f32_value, u.bf16_value, u.master, u.m, u.v, u.gradient);
  return u;
}

}  // namespace

void adamw(Stream& stream, std::span<const AdamW> tensors) {
  while (!tensors.empty()) {
    Updates updates{};
    updates.count = static_cast<int>(std::min<size_t>(tensors.size(), Updates::kMost));
    for (int i = 0; i < updates.count; ++i) {
      updates.tensors[i] = describe(tensors[static_cast<size_t>(i)]);
      updates.first_chunks[i + 1] =
          updates.first_chunks[i] + (updates.tensors[i].count + kChunk - 1) / kChunk;
    }
    launch(stream, update_tensors, dim3(static_cast<unsigned>(updates.first_chunks[updates.count])),
           kMapThreads, 0, updates);
    tensors = tensors.subspan(static_cast<size_t>(updates.count));
  }
}

}  // namespace tessera::gpu
