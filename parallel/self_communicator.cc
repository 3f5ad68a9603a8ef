#include "parallel/self_communicator.h"

#include <cstring>

#include "parallel/subgroup.h"

namespace tessera {

namespace {

void copy(const Stream& stream, const void* from, void* to, int64_t bytes) {
  CHECK(stream.on(DeviceKind::kCpu), "self communicator: the tensors are not in host memory");
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

}  // namespace

SelfCommunicator::SelfCommunicator(int rank, int size) : Communicator(rank, size) {
  CHECK(rank >= 0 && rank < size, "self communicator: rank is ", rank, ", expected 0 to ",
        size - 1);
}

void SelfCommunicator::check_alone(const char* who) const {
  CHECK(size() == 1, who, ": rank ", rank(), " of ", size(), " is only planned, expected a stream ",
        "on the plan device");
}

void SelfCommunicator::do_all_reduce(Stream&, TensorView, Reduction) {
  check_alone("all_reduce");
}

void SelfCommunicator::do_all_gather(Stream& stream, ConstTensorView part, TensorView whole) {
  check_alone("all_gather");
  copy(stream, part.data(), whole.data(), part.bytes());
}

void SelfCommunicator::do_reduce_scatter(Stream& stream, ConstTensorView whole, TensorView part) {
  check_alone("reduce_scatter");
  copy(stream, whole.data(), part.data(), part.bytes());
}

void SelfCommunicator::do_all_to_all(Stream& stream, ConstTensorView send,
                                     std::span<const int64_t> send_rows, TensorView receive,
                                     std::span<const int64_t>) {
  check_alone("all_to_all");
  const int64_t row_bytes = send.shape().with(0, 1).elements() * size_of(send.dtype());
  copy(stream, send.data(), receive.data(), send_rows[0] * row_bytes);
}

void SelfCommunicator::do_broadcast(Stream&, TensorView, int) {
  check_alone("broadcast");
}

void SelfCommunicator::do_all_reduce_values(std::span<double>) {
  check_alone("all_reduce_values");
}

std::unique_ptr<Communicator> SelfCommunicator::do_split(std::span<const int> colors) {
  const Subgroup group(colors, rank());
  return std::make_unique<SelfCommunicator>(group.rank, static_cast<int>(group.members.size()));
}

}  // namespace tessera
