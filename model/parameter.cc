#include "model/parameter.h"

#include <array>

#include "kernels/core/random.h"
#include "kernels/elementwise.h"

namespace tessera {

namespace {

// The local block as a matrix of `outer` runs of `run` consecutive global indices.
struct Runs {
  int64_t outer = 1;
  int64_t run = 1;
  int64_t stride = 1;  // global distance between the starts of two runs
  int64_t first = 0;   // global index of the first element
};

Runs runs_of(const Shard& shard) {
  Runs runs;
  int64_t inner = 1;
  for (int axis = 0; axis < shard.whole.rank(); ++axis) {
    if (axis < shard.axis) runs.outer *= shard.whole[axis];
    if (axis > shard.axis) inner *= shard.whole[axis];
  }
  runs.run = shard.length * inner;
  runs.stride = shard.whole[shard.axis] * inner;
  runs.first = shard.begin * inner;
  return runs;
}

void initialize_normal(Stream& stream, const Parameter& parameter, uint64_t seed) {
  const uint64_t key = seed ^ hash_name(parameter.name.c_str());
  const Runs runs = runs_of(parameter.shard);
  with_float_type(parameter.dtype, [&]<class T>() {
    const auto value = parameter.value.as<T>();
    stream.threads().for_ranges(parameter.value.elements(), 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t global = runs.first + i / runs.run * runs.stride + i % runs.run;
        const std::array<uint32_t, 4> words = philox(key, 0, static_cast<uint64_t>(global));
        value[static_cast<size_t>(i)] =
            from_float<T>(static_cast<float>(parameter.init * normal(words[0], words[1])));
      }
    });
  });
}

}  // namespace

Parameter& ParameterStore::declare(Parameter parameter) {
  for (const Parameter& other : parameters_) {
    CHECK(other.name != parameter.name, "parameter '", parameter.name, "' is declared twice");
  }
  return parameters_.emplace_back(std::move(parameter));
}

void ParameterStore::allocate(Device device, bool gradients) {
  int64_t value_bytes = 0;
  int64_t gradient_bytes = 0;
  for (const Parameter& parameter : parameters_) {
    const int64_t elements = parameter.shard.local().elements();
    value_bytes += aligned(elements * size_of(parameter.dtype));
    if (gradients && parameter.trained) gradient_bytes += aligned(elements * 4);
  }
  values_ = Buffer(device, value_bytes);
  gradients_ = Buffer(device, gradient_bytes);
  int64_t value_at = 0;
  int64_t gradient_at = 0;
  for (Parameter& parameter : parameters_) {
    const Shape shape = parameter.shard.local();
    parameter.value = values_.view(parameter.dtype, shape, value_at);
    value_at += aligned(parameter.value.bytes());
    if (!gradients || !parameter.trained) continue;
    parameter.grad = gradients_.view(DType::kF32, shape, gradient_at);
    gradient_at += aligned(parameter.grad.bytes());
  }
}

void ParameterStore::initialize(Stream& stream, uint64_t seed) {
  if (stream.on(DeviceKind::kPlan)) return;
  for (const Parameter& parameter : parameters_) {
    if (parameter.initializer == Initializer::kConstant) {
      fill(stream, {.x = parameter.value, .value = static_cast<float>(parameter.init)});
    } else {
      initialize_normal(stream, parameter, seed);
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
