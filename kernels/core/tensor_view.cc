#include "kernels/core/tensor_view.h"

namespace tessera {

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << "[";
  for (int axis = 0; axis < shape.rank(); ++axis) out << (axis == 0 ? "" : ", ") << shape[axis];
  return out << "]";
}

ConstTensorView ConstTensorView::rows(int64_t first, int64_t count) const {
  CHECK(shape_.rank() > 0 && first >= 0 && count >= 0 && first + count <= shape_[0], "rows [",
        first, ", ", first + count, ") are outside of ", shape_);
  if (data_ == nullptr) return {nullptr, dtype_, shape_.with(0, count), device_};
  const int64_t row_bytes = shape_.with(0, 1).elements() * size_of(dtype_);
  return {static_cast<const char*>(data_) + first * row_bytes, dtype_, shape_.with(0, count),
          device_};
}

ConstTensorView ConstTensorView::reshape(Shape shape) const {
  CHECK(shape.elements() == elements(), "cannot reshape ", shape_, " to ", shape);
  return {data_, dtype_, shape, device_};
}

TensorView TensorView::rows(int64_t first, int64_t count) const {
  const ConstTensorView part = ConstTensorView::rows(first, count);
  return {const_cast<void*>(part.data()), dtype_, part.shape(), device_};
}

TensorView TensorView::reshape(Shape shape) const {
  const ConstTensorView same = ConstTensorView::reshape(shape);
  return {data_, dtype_, same.shape(), device_};
}

}  // namespace tessera
