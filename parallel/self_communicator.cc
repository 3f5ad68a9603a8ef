#include "parallel/self_communicator.h"

#include <algorithm>

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

void SelfCommunicator::refuse(const char* who) const {
  CHECK(false, who, ": rank ", rank(), " of ", size(), " is only planned, expected a stream ",
        "on the plan device");
}

int SelfCommunicator::do_start(Stream&, const Call& call) {
  refuse(name_of(call.operation));
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
  refuse("broadcast");
}

void SelfCommunicator::do_all_reduce_values(std::span<double>) {
  refuse("all_reduce_values");
}

std::unique_ptr<Communicator> SelfCommunicator::do_split(std::span<const int> colors,
                                                         const std::string& name) {
  const Subgroup group(colors, rank());
  return std::make_unique<SelfCommunicator>(group.rank, static_cast<int>(group.members.size()),
                                            *this, name);
}

}  // namespace tessera
