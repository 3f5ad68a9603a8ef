#include "checkpoint/compare.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#include "kernels/core/buffer.h"

namespace tessera {

namespace {

Buffer read_whole(const CheckpointReader& reader, const TensorFacts& facts) {
  Buffer buffer(Device{}, facts.bytes);
  const NamedTensor target{facts.name, Shard::replicated(facts.shape),
                           buffer.view(facts.dtype, facts.shape)};
  reader.read(facts.kind, {&target, 1});
  return buffer;
}

std::string index_text(const Shape& shape, int64_t element) {
  std::string text = "]";
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    text = concat(axis == 0 ? "[" : ", ", element % shape[axis], text);
    element /= shape[axis];
  }
  return text;
}

double number(BF16 value) {
  return to_float(value);
}
template <class T>
double number(T value) {
  return static_cast<double>(value);
}

template <class T>
void compare_values(std::span<const T> left, std::span<const T> right, const Shape& shape,
                    TensorDifference& difference) {
  for (size_t i = 0; i < left.size(); ++i) {
    if (std::memcmp(&left[i], &right[i], sizeof(T)) == 0) continue;
    const double a = number(left[i]);
    const double b = number(right[i]);
    if (difference.elements++ == 0) {
      difference.first = index_text(shape, static_cast<int64_t>(i));
      difference.first_left = a;
      difference.first_right = b;
    }
    const double distance = std::isnan(a) && std::isnan(b) ? 0 : std::abs(a - b);
    if (std::isnan(distance) || distance > difference.largest) difference.largest = distance;
  }
}

void compare_bits(const ConstTensorView& left, const ConstTensorView& right,
                  TensorDifference& difference) {
  const auto compare = [&]<class T>() {
    compare_values<T>(left.as<T>(), right.as<T>(), left.shape(), difference);
  };
  switch (left.dtype()) {
    case DType::kF32:
      return compare.template operator()<float>();
    case DType::kBF16:
      return compare.template operator()<BF16>();
    case DType::kI32:
      return compare.template operator()<int32_t>();
    case DType::kI64:
      return compare.template operator()<int64_t>();
    case DType::kU16:
      return compare.template operator()<uint16_t>();
    case DType::kU8:
      return compare.template operator()<uint8_t>();
    case DType::kF64:
      return compare.template operator()<double>();
  }
}

TensorDifference only_in(const TensorFacts& facts, const char* side) {
  TensorDifference difference;
  difference.kind = facts.kind;
  difference.name = facts.name;
  difference.reason = concat("is only in the ", side);
  return difference;
}

}  // namespace

std::vector<TensorDifference> compare_checkpoints(const CheckpointReader& left,
                                                  const CheckpointReader& right) {
  std::vector<TensorDifference> differences;
  auto a = left.tensors().begin();
  auto b = right.tensors().begin();
  while (a != left.tensors().end() || b != right.tensors().end()) {
    const bool a_ends = a == left.tensors().end();
    const bool b_ends = b == right.tensors().end();
    if (b_ends || (!a_ends && std::tie(a->kind, a->name) < std::tie(b->kind, b->name))) {
      differences.push_back(only_in(*a++, "first"));
    } else if (a_ends || std::tie(b->kind, b->name) < std::tie(a->kind, a->name)) {
      differences.push_back(only_in(*b++, "second"));
    } else {
      const TensorFacts& x = *a++;
      const TensorFacts& y = *b++;
      TensorDifference difference = only_in(x, "");
      difference.reason.clear();
      if (x.dtype != y.dtype || x.shape != y.shape) {
        difference.reason =
            concat("is ", name_of(x.dtype), " ", x.shape, " and ", name_of(y.dtype), " ", y.shape);
        differences.push_back(difference);
      } else if (x.digest != y.digest) {
        const Buffer mine = read_whole(left, x);
        const Buffer other = read_whole(right, y);
        compare_bits(mine.view(x.dtype, x.shape), other.view(y.dtype, y.shape), difference);
        differences.push_back(difference);
      }
    }
  }
  return differences;
}

}  // namespace tessera
