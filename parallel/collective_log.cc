#include "parallel/collective_log.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace tessera {

const char* name_of(Collective operation) {
  static constexpr std::array<const char*, kCollectives> kNames{
      "all_reduce", "all_gather",        "reduce_scatter", "all_to_all", "exchange_rows",
      "broadcast",  "all_reduce_values", "barrier",        "split"};
  return kNames[static_cast<size_t>(operation)];
}

CollectiveLog::CollectiveLog() : ring_(kCapacity) {}

void CollectiveLog::set_place(int64_t step, int layer) {
  const std::lock_guard lock(mutex_);
  step_ = step;
  layer_ = layer;
}

void CollectiveLog::set_layer(int layer) {
  const std::lock_guard lock(mutex_);
  layer_ = layer;
}

int64_t CollectiveLog::size() const {
  const std::lock_guard lock(mutex_);
  return size_;
}

CollectiveRecord CollectiveLog::record(int64_t index) const {
  const std::lock_guard lock(mutex_);
  const int64_t oldest = std::max<int64_t>(0, size_ - kCapacity);
  CHECK(index >= oldest && index < size_, "collective_log: record is ", index, ", expected ",
        oldest, " to ", size_ - 1);
  return ring_[place(index)];
}

std::vector<std::string> CollectiveLog::communicators() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const Sums& sums : sums_) names.push_back(sums.communicator);
  return names;
}

Traffic CollectiveLog::traffic(std::string_view communicator, Collective operation) const {
  const std::lock_guard lock(mutex_);
  for (const Sums& sums : sums_) {
    if (sums.communicator == communicator) return sums.of[static_cast<size_t>(operation)];
  }
  return {};
}

Traffic CollectiveLog::traffic(std::string_view communicator) const {
  Traffic all;
  for (int operation = 0; operation < kCollectives; ++operation) {
    const Traffic one = traffic(communicator, static_cast<Collective>(operation));
    all.calls += one.calls;
    all.sent += one.sent;
    all.received += one.received;
  }
  return all;
}

int64_t CollectiveLog::scratch() const {
  const std::lock_guard lock(mutex_);
  return scratch_;
}

void CollectiveLog::add_scratch(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  scratch_ += bytes;
}

int CollectiveLog::add(const std::string& communicator) {
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < sums_.size(); ++i) {
    if (sums_[i].communicator == communicator) return static_cast<int>(i);
  }
  sums_.push_back({.communicator = communicator});
  return static_cast<int>(sums_.size()) - 1;
}

int64_t CollectiveLog::start(int communicator, CollectiveRecord record) {
  const std::lock_guard lock(mutex_);
  Sums& sums = sums_[static_cast<size_t>(communicator)];
  sums.communicator.copy(record.communicator.data(), record.communicator.size() - 1);
  record.step = step_;
  record.layer = layer_;
  Traffic& traffic = sums.of[static_cast<size_t>(record.operation)];
  ++traffic.calls;
  traffic.sent += record.sent;
  traffic.received += record.received;
  ring_[place(size_)] = record;
  return size_++;
}

void CollectiveLog::complete(int64_t index) {
  const std::lock_guard lock(mutex_);
  // A record that was overwritten meanwhile is gone.
  if (index >= size_ - kCapacity) ring_[place(index)].completed = true;
}

}  // namespace tessera
