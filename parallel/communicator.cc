#include "parallel/communicator.h"

#include <algorithm>

namespace tessera {

namespace {

void check_place(const Stream& stream, const ConstTensorView& tensor, const char* who,
                 const char* what) {
  CHECK(tensor.shape().rank() > 0, who, ": ", what, " is no tensor, expected at least one axis");
  CHECK(tensor.device() == stream.device(), who, ": ", what, " ", tensor.shape(),
        " is not on the device of the stream");
}

void check_reducible(const ConstTensorView& tensor, const char* who) {
  const DType dtype = tensor.dtype();
  CHECK(
      dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kI32 || dtype == DType::kI64,
      who, ": dtype is ", name_of(dtype), ", expected f32, bf16, i32 or i64");
}

void check_parts(const ConstTensorView& whole, const ConstTensorView& part, int ranks,
                 const char* who) {
  CHECK(whole.dtype() == part.dtype(), who, ": part is ", name_of(part.dtype()),
        ", expected the dtype of whole, ", name_of(whole.dtype()));
  const Shape expected = part.shape().with(0, part.shape()[0] * ranks);
  CHECK(whole.shape() == expected, who, ": whole is ", whole.shape(), ", expected ", expected,
        ", which is ", ranks, " ranks times the part, ", part.shape());
}

void check_rows(std::span<const int64_t> rows, const ConstTensorView& tensor, int ranks,
                const char* what) {
  CHECK(static_cast<int64_t>(rows.size()) == ranks, "all_to_all: ", what, "_rows has ", rows.size(),
        " counts, expected one for each of ", ranks, " ranks");
  int64_t sum = 0;
  for (const int64_t count : rows) {
    CHECK(count >= 0, "all_to_all: ", what, "_rows has ", count, ", expected counts of at least 0");
    sum += count;
  }
  CHECK(sum <= tensor.shape()[0], "all_to_all: ", what, "_rows add up to ", sum, ", but ", what,
        " is ", tensor.shape());
}

}  // namespace

void Communicator::all_reduce(Stream& stream, TensorView data, Reduction reduction) {
  check_place(stream, data, "all_reduce", "data");
  check_reducible(data, "all_reduce");
  if (stream.on(DeviceKind::kPlan) || size_ == 1) return;
  do_all_reduce(stream, data, reduction);
}

void Communicator::all_gather(Stream& stream, ConstTensorView part, TensorView whole) {
  check_place(stream, part, "all_gather", "part");
  check_place(stream, whole, "all_gather", "whole");
  check_parts(whole, part, size_, "all_gather");
  if (!stream.on(DeviceKind::kPlan)) do_all_gather(stream, part, whole);
}

void Communicator::reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part) {
  check_place(stream, whole, "reduce_scatter", "whole");
  check_place(stream, part, "reduce_scatter", "part");
  check_reducible(whole, "reduce_scatter");
  check_parts(whole, part, size_, "reduce_scatter");
  if (!stream.on(DeviceKind::kPlan)) do_reduce_scatter(stream, whole, part);
}

void Communicator::all_to_all(Stream& stream, ConstTensorView send,
                              std::span<const int64_t> send_rows, TensorView receive,
                              std::span<const int64_t> receive_rows) {
  check_place(stream, send, "all_to_all", "send");
  check_place(stream, receive, "all_to_all", "receive");
  CHECK(send.dtype() == receive.dtype(), "all_to_all: receive is ", name_of(receive.dtype()),
        ", expected the dtype of send, ", name_of(send.dtype()));
  CHECK(send.shape().with(0, 1) == receive.shape().with(0, 1), "all_to_all: receive is ",
        receive.shape(), ", expected rows like those of send, ", send.shape());
  check_rows(send_rows, send, size_, "send");
  check_rows(receive_rows, receive, size_, "receive");
  const size_t own = static_cast<size_t>(rank_);
  CHECK(send_rows[own] == receive_rows[own], "all_to_all: this rank sends itself ", send_rows[own],
        " rows and expects ", receive_rows[own]);
  if (!stream.on(DeviceKind::kPlan)) do_all_to_all(stream, send, send_rows, receive, receive_rows);
}

void Communicator::broadcast(Stream& stream, TensorView data, int root) {
  check_place(stream, data, "broadcast", "data");
  CHECK(root >= 0 && root < size_, "broadcast: root is ", root, ", expected 0 to ", size_ - 1);
  if (stream.on(DeviceKind::kPlan) || size_ == 1) return;
  do_broadcast(stream, data, root);
}

void Communicator::all_reduce_values(std::span<double> values) {
  if (size_ > 1) do_all_reduce_values(values);
}

void Communicator::barrier() {
  if (size_ > 1) do_barrier();
}

std::unique_ptr<Communicator> Communicator::split(std::span<const int> colors) {
  CHECK(static_cast<int64_t>(colors.size()) == size_, "split: colors has ", colors.size(),
        " entries, expected one for each of ", size_, " ranks");
  const auto lowest = std::min_element(colors.begin(), colors.end());
  CHECK(*lowest >= 0, "split: a color is ", *lowest, ", expected at least 0");
  return do_split(colors);
}

}  // namespace tessera
