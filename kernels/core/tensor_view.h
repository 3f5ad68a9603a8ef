#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>

#include "kernels/core/device.h"
#include "kernels/core/dtype.h"
#include "kernels/core/error.h"

namespace tessera {

/// Up to four extents, outermost first. Rank 0 means "no tensor".
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<int64_t> extents) {
    for (const int64_t extent : extents) extents_[static_cast<size_t>(rank_++)] = extent;
  }

  constexpr int rank() const { return rank_; }
  /// Negative axes count from the back: `shape[-1]` is the innermost extent.
  constexpr int64_t operator[](int axis) const {
    return extents_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)];
  }
  constexpr int64_t elements() const {
    int64_t product = 1;
    for (int axis = 0; axis < rank_; ++axis) product *= (*this)[axis];
    return product;
  }
  /// A copy with one extent changed.
  constexpr Shape with(int axis, int64_t extent) const {
    Shape changed = *this;
    changed.extents_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)] = extent;
    return changed;
  }

  friend constexpr bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

/// "[4, 16]".
std::ostream& operator<<(std::ostream& out, const Shape& shape);

/// A non-owning, contiguous, row-major, read-only tensor. Copy freely.
class ConstTensorView {
 public:
  ConstTensorView() = default;
  ConstTensorView(const void* data, DType dtype, Shape shape, Device device)
      : data_(const_cast<void*>(data)), shape_(shape), device_(device), dtype_(dtype) {}

  bool empty() const { return shape_.rank() == 0; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const Shape& shape() const { return shape_; }
  int64_t elements() const { return empty() ? 0 : shape_.elements(); }
  int64_t bytes() const { return elements() * size_of(dtype_); }
  const void* data() const { return data_; }

  /// The elements as T. Throws when T is not the dtype.
  template <class T>
  std::span<const T> as() const {
    check_type(kDTypeOf<T>);
    return {static_cast<const T*>(data_), static_cast<size_t>(elements())};
  }
  /// Rows [first, first + count) of the outermost axis.
  ConstTensorView rows(int64_t first, int64_t count) const;
  /// The same elements in another shape.
  ConstTensorView reshape(Shape shape) const;

 protected:
  void check_type(DType wanted) const {
    CHECK(wanted == dtype_, "tensor ", shape_, " is ", name_of(dtype_), ", expected ",
          name_of(wanted));
  }

  void* data_ = nullptr;
  Shape shape_;
  Device device_;
  DType dtype_ = DType::kF32;
};

/// The writable kind. Converts to ConstTensorView.
class TensorView : public ConstTensorView {
 public:
  TensorView() = default;
  TensorView(void* data, DType dtype, Shape shape, Device device)
      : ConstTensorView(data, dtype, shape, device) {}

  void* data() const { return data_; }

  template <class T>
  std::span<T> as() const {
    check_type(kDTypeOf<T>);
    return {static_cast<T*>(data_), static_cast<size_t>(elements())};
  }
  TensorView rows(int64_t first, int64_t count) const;
  TensorView reshape(Shape shape) const;
};

}  // namespace tessera
