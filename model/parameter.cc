#include "model/parameter.h"

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "kernels/core/copy.h"
#include "kernels/core/random.h"
#include "kernels/elementwise.h"

namespace tessera {

namespace {

/// Whether two declarations are different parts of one parameter.
bool are_disjoint(const Shard& a, const Shard& b) {
  return a.whole == b.whole && a.axis == b.axis && a.blocks == b.blocks &&
         (a.begin + a.length <= b.begin || b.begin + b.length <= a.begin);
}

constexpr int64_t kChunk = int64_t{1} << 20;

// The host makes the numbers, a chunk at a time: then they have the same bits on every device.
template <class T>
void initialize_normal(Stream& stream, const Parameter& parameter, uint64_t seed) {
  const uint64_t key = seed ^ hash_name(parameter.name.c_str());
  const TensorView flat = parameter.value.reshape({parameter.value.elements()});
  std::vector<T> chunk(static_cast<size_t>(std::min(kChunk, flat.elements())));
  int64_t first = 0;  // element of the chunk's first
  int64_t filled = 0;
  const auto flush = [&] {
    copy(stream, host_view(chunk).rows(0, filled), flat.rows(first, filled));
    first += filled;
    filled = 0;
  };
  for_each_run(parameter.shard, [&](const ShardRun& run) {
    for (int64_t done = 0; done < run.count;) {
      const int64_t count = std::min(run.count - done, kChunk - filled);
      stream.threads().for_ranges(count, 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const std::array<uint32_t, 4> words =
              philox(key, 0, static_cast<uint64_t>(run.whole + done + i));
          chunk[static_cast<size_t>(filled + i)] =
              from_float<T>(static_cast<float>(parameter.init * normal(words[0], words[1])));
        }
      });
      filled += count;
      done += count;
      if (filled == kChunk) flush();
    }
  });
  flush();
}

}  // namespace

Parameter& ParameterStore::declare(Parameter parameter) {
  for (const Parameter& other : parameters_) {
    CHECK(other.name != parameter.name || are_disjoint(other.shard, parameter.shard), "parameter '",
          parameter.name, "' is declared twice");
  }
  return parameters_.emplace_back(std::move(parameter));
}

// Gives every trained parameter its place, and returns the length of each bucket. Starts every
// parameter at a multiple of Buffer::kAlignment bytes, of values and of gradients.
std::vector<int64_t> ParameterStore::fill_buckets(const GroupPlaces& places) {
  std::map<std::pair<Placement, DType>, size_t> open;
  std::vector<int64_t> lengths;
  int64_t number = -1;
  for (Parameter& parameter : parameters_) {
    ++number;
    if (!parameter.trained) continue;
    const int64_t elements =
        aligned(parameter.shard.local().elements() * size_of(parameter.dtype)) /
        size_of(parameter.dtype);
    const auto [at, is_new] =
        open.try_emplace({parameter.placement, parameter.dtype}, lengths.size());
    if (is_new || lengths[at->second] + elements > Bucket::kElements) {
      at->second = lengths.size();
      lengths.push_back(0);
      buckets_.push_back({.placement = parameter.placement, .first = number});
    }
    parameter.bucket = at->second;
    parameter.begin = lengths[at->second];
    lengths[at->second] += elements;
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    const GroupPlace& place = places.of(buckets_[i].placement);
    lengths[i] = padded_for(lengths[i], place.size);
    buckets_[i].owned_length = lengths[i] / place.size;
    buckets_[i].owned_begin = buckets_[i].owned_length * place.rank;
  }
  return lengths;
}

void ParameterStore::allocate(Device device, bool gradients, const GroupPlaces& places) {
  const std::vector<int64_t> lengths = fill_buckets(places);
  std::vector<DType> dtypes(lengths.size());
  int64_t value_bytes = 0;
  int64_t gradient_bytes = 0;
  for (const Parameter& parameter : parameters_) {
    if (parameter.trained) {
      dtypes[parameter.bucket] = parameter.dtype;
    } else {
      value_bytes += aligned(parameter.shard.local().elements() * size_of(parameter.dtype));
    }
  }
  for (size_t i = 0; i < lengths.size(); ++i) {
    value_bytes += aligned(lengths[i] * size_of(dtypes[i]));
    if (gradients) gradient_bytes += aligned(lengths[i] * 4);
  }
  values_ = Buffer(device, value_bytes);
  gradients_ = Buffer(device, gradient_bytes);
  int64_t value_at = 0;
  int64_t gradient_at = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    buckets_[i].values = values_.view(dtypes[i], {lengths[i]}, value_at);
    value_at += aligned(buckets_[i].values.bytes());
    if (!gradients) continue;
    buckets_[i].gradients = gradients_.view(DType::kF32, {lengths[i]}, gradient_at);
    gradient_at += aligned(buckets_[i].gradients.bytes());
  }
  for (Parameter& parameter : parameters_) {
    const Shape shape = parameter.shard.local();
    if (!parameter.trained) {
      parameter.value = values_.view(parameter.dtype, shape, value_at);
      value_at += aligned(parameter.value.bytes());
      continue;
    }
    const Bucket& bucket = buckets_[parameter.bucket];
    const auto within = [&](const TensorView& whole) {
      return whole.rows(parameter.begin, shape.elements()).reshape(shape);
    };
    parameter.value = within(bucket.values);
    if (gradients) parameter.grad = within(bucket.gradients);
  }
}

void ParameterStore::allocate_int4(Device device) {
  int64_t bytes = 0;
  const auto cut = [&](DType dtype, Shape shape) {
    const int64_t begin = bytes;
    bytes += aligned(shape.elements() * size_of(dtype));
    return values_.bytes() == 0 ? TensorView{} : values_.view(dtype, shape, begin);
  };
  const auto cut_all = [&] {
    bytes = 0;
    for (Parameter& parameter : parameters_) {
      const Shape shape = parameter.shard.local();
      const int64_t k = shape[-1];
      if (parameter.in_products && parameter.dtype == DType::kBF16 && k % Int4Weights::kRun == 0) {
        const int64_t matrices = shape.rank() == 3 ? shape[0] : 1;
        const int64_t n = shape.elements() / k / matrices;
        parameter.codes = cut(DType::kU8, {matrices, n, k / 2});
        parameter.scales = cut(DType::kBF16, {matrices, n, k / Int4Weights::kRun, 2});
      } else {
        parameter.value = cut(parameter.dtype, shape);
      }
    }
  };
  cut_all();
  values_ = Buffer(device, bytes);
  cut_all();
}

void ParameterStore::initialize(Stream& stream, uint64_t seed) {
  if (stream.on(DeviceKind::kPlan)) return;
  for (const Parameter& parameter : parameters_) {
    if (parameter.initializer == Initializer::kConstant) {
      fill(stream, {.x = parameter.value, .value = static_cast<float>(parameter.init)});
    } else {
      with_float_type(parameter.dtype,
                      [&]<class T>() { initialize_normal<T>(stream, parameter, seed); });
    }
  }
}

void ParameterStore::zero_gradients(Stream& stream) {
  if (gradients_.bytes() > 0) fill(stream, {.x = gradients(), .value = 0});
}

Parameter& ParameterStore::find(const std::string& name) {
  for (Parameter& parameter : parameters_) {
    if (parameter.name == name) return parameter;
  }
  throw Error(ExitCode::kBadData, concat("the model has no parameter '", name, "'"));
}

int64_t ParameterStore::elements() const {
  int64_t sum = 0;
  for (const Parameter& parameter : parameters_) {
    if (parameter.trained) sum += parameter.shard.local().elements();
  }
  return sum;
}

}  // namespace tessera
