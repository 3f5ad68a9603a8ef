#include "parallel/self_communicator.h"

#include <cstring>

#include "parallel/subgroup.h"

namespace tessera {

SelfCommunicator::SelfCommunicator(int rank, int size) : Communicator(rank, size) {
  CHECK(rank >= 0 && rank < size, "self communicator: rank is ", rank, ", expected 0 to ",
        size - 1);
}

void SelfCommunicator::check_alone(const char* who) const {
  CHECK(size() == 1, who, ": rank ", rank(), " of ", size(), " is only planned, expected a stream ",
        "on the plan device");
}

int SelfCommunicator::do_start(Stream& stream, const Call& call) {
  check_alone(name_of(call.operation));
  CHECK(stream.on(DeviceKind::kCpu), "self communicator: the tensors are not in host memory");
  if (call.operation == Collective::kExchangeRows) {
    copy_own_rows(call);
    return kDone;
  }
  const bool rows = call.operation == Collective::kAllToAll;
  const int64_t bytes = rows ? call.send_rows[0] * row_bytes(call.from) : call.from.bytes();
  if (bytes > 0 && call.from.data() != call.to.data()) {
    std::memcpy(call.to.data(), call.from.data(), static_cast<size_t>(bytes));
  }
  return kDone;
}

void SelfCommunicator::do_broadcast(Stream&, TensorView, int) {
  check_alone("broadcast");
}

void SelfCommunicator::do_all_reduce_values(std::span<double>) {
  check_alone("all_reduce_values");
}

std::unique_ptr<Communicator> SelfCommunicator::do_split(std::span<const int> colors,
                                                         const std::string& name) {
  const Subgroup group(colors, rank());
  return std::make_unique<SelfCommunicator>(group.rank, static_cast<int>(group.members.size()),
                                            *this, name);
}

}  // namespace tessera
