#pragma once

#include <algorithm>
#include <span>
#include <type_traits>
#include <vector>

#include "kernels/core/random.h"
#include "kernels/core/tensor_view.h"
#include "tests/support/device.h"

namespace tessera::support {

/// A tensor on support::device() that owns its memory, which the test reaches too; starts as zeros.
/// Converts to a view of itself.
class Tensor {
 public:
  Tensor(DType dtype, Shape shape)
      : bytes_(shape.elements() * size_of(dtype)), view_(bytes_.data(), dtype, shape, device()) {}

  TensorView view() const { return view_; }
  operator TensorView() const { return view_; }
  template <class T>
  std::span<T> as() const {
    return view_.as<T>();
  }
  const Shape& shape() const { return view_.shape(); }
  DType dtype() const { return view_.dtype(); }

 private:
  SharedBytes bytes_;
  TensorView view_;
};

/// A view without memory on the plan device, for tests of shape checks.
inline TensorView plan_view(DType dtype, Shape shape) {
  return {nullptr, dtype, shape, Device{DeviceKind::kPlan}};
}

namespace detail {

template <class T>
double load(T value) {
  if constexpr (std::is_same_v<T, BF16>) {
    return to_float(value);
  } else {
    return static_cast<double>(value);
  }
}

template <class T>
T store(double value) {
  if constexpr (std::is_same_v<T, BF16>) {
    return from_float<BF16>(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

template <class F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f.template operator()<float>();
    case DType::kBF16:
      return f.template operator()<BF16>();
    case DType::kI32:
      return f.template operator()<int32_t>();
    case DType::kI64:
      return f.template operator()<int64_t>();
    case DType::kU16:
      return f.template operator()<uint16_t>();
    case DType::kU8:
      return f.template operator()<uint8_t>();
    case DType::kF64:
      return f.template operator()<double>();
  }
}

}  // namespace detail

/// The elements of a tensor, wherever it lies.
template <class T>
std::vector<T> elements(const ConstTensorView& view) {
  std::vector<T> values(static_cast<size_t>(view.elements()));
  copy_bytes(values.data(), view.as<T>().data(), view.bytes());
  return values;
}
template <class T>
void set_elements(const TensorView& view, const std::vector<T>& values) {
  CHECK(std::ssize(values) == view.elements(), "set_elements: ", values.size(), " values for ",
        view.shape());
  copy_bytes(view.as<T>().data(), values.data(), view.bytes());
}

/// The elements of a tensor of any dtype, exactly.
inline std::vector<double> to_doubles(const ConstTensorView& view) {
  std::vector<double> values;
  values.reserve(static_cast<size_t>(view.elements()));
  detail::with_type(view.dtype(), [&]<class T>() {
    for (const T& value : elements<T>(view)) values.push_back(detail::load(value));
  });
  return values;
}

/// Values rounded to `dtype`.
inline Tensor from_doubles(DType dtype, Shape shape, std::span<const double> values) {
  Tensor tensor(dtype, shape);
  CHECK(static_cast<size_t>(tensor.view().elements()) == values.size(),
        "from_doubles: ", values.size(), " values for ", shape);
  detail::with_type(dtype, [&]<class T>() {
    for (size_t i = 0; i < values.size(); ++i) tensor.as<T>()[i] = detail::store<T>(values[i]);
  });
  return tensor;
}

/// One axis of i32.
inline Tensor from_ints(const std::vector<int32_t>& values) {
  Tensor tensor(DType::kI32, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), tensor.as<int32_t>().begin());
  return tensor;
}

inline Tensor filled(DType dtype, Shape shape, double value) {
  const std::vector<double> values(static_cast<size_t>(shape.elements()), value);
  return from_doubles(dtype, shape, values);
}

inline Tensor copy_of(const ConstTensorView& view) {
  Tensor tensor(view.dtype(), view.shape());
  copy_bytes(tensor.view().data(), view.data(), view.bytes());
  return tensor;
}

/// scale * normal numbers, rounded to `dtype`; a pure function of its arguments.
inline Tensor random_tensor(DType dtype, Shape shape, uint64_t seed, double scale = 1) {
  std::vector<double> values(static_cast<size_t>(shape.elements()));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto words = philox(seed, 0, i);
    values[i] = scale * normal(words[0], words[1]);
  }
  return from_doubles(dtype, shape, values);
}

/// Whole numbers in [low, high) as i32.
inline Tensor random_ints(Shape shape, uint64_t seed, int32_t low, int32_t high) {
  Tensor tensor(DType::kI32, shape);
  const auto values = tensor.as<int32_t>();
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t word = philox(seed, 1, i)[0];
    values[i] = low + static_cast<int32_t>(word % static_cast<uint32_t>(high - low));
  }
  return tensor;
}

}  // namespace tessera::support
