#include "parallel/self_communicator.h"

#include <algorithm>
#include <cstring>

#include "parallel/message_sizes.h"
#include "parallel/subgroup.h"

namespace tessera {

namespace {

bool is_short_sum(Collective operation, const ConstTensorView& to, int ranks) {
  return operation == Collective::kAllReduce && is_short(to.bytes() * ranks);
}

}  // namespace

SelfCommunicator::SelfCommunicator(int rank, int size)
    : Communicator(rank, size), planned_(size > 1) {
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

void SelfCommunicator::grow(int64_t& held, int64_t bytes) {
  if (bytes <= held) return;
  log().add_scratch(bytes - held);
  held = bytes;
}

// As MpiCommunicator does: each exchange under way has memory of its own.
int SelfCommunicator::do_plan(const Call& call) {
  if (!planned_) return kDone;
  const int64_t width = size_of(call.to.dtype());
  if (call.blocking && is_short_sum(call.operation, call.to, size())) {
    grow(short_scratch_, call.to.bytes() * size());
    return kDone;
  }
  auto flight = std::find_if(flights_.begin(), flights_.end(), [](auto& f) { return f.free; });
  if (flight == flights_.end()) flight = flights_.insert(flight, Flight{});
  flight->free = false;
  if (call.operation == Collective::kAllReduce) {
    grow(flight->scratch, all_reduce_scratch(call.to.elements(), width, rank(), size()));
  } else if (call.operation == Collective::kReduceScatter) {
    grow(flight->scratch, reduce_scatter_scratch(call.to.elements(), width, size()));
  }
  return static_cast<int>(flight - flights_.begin());
}

void SelfCommunicator::do_plan_values(int64_t values) {
  if (planned_) grow(short_scratch_, values * static_cast<int64_t>(sizeof(double)) * size());
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
