#include "parallel/collective_log.h"

#include <algorithm>
#include <optional>

#include "kernels/core/error.h"

namespace tessera {

namespace {

/// Streams that exchanges are on at the same time: one for each communicator of a mesh.
constexpr int kStreams = 9;

}  // namespace

void CollectiveLog::set_place(int64_t step, int layer) {
  recorder_.set_step(step);
  recorder_.set_layer(layer);
}

void CollectiveLog::set_layer(int layer) {
  recorder_.set_layer(layer);
}

CollectiveRecord CollectiveLog::record(int64_t index) const {
  const int64_t oldest = std::max<int64_t>(0, size() - FlightMap::kRecords);
  const std::optional<CollectiveRecord> found =
      index >= oldest && index < size() ? read_record(map(), index) : std::nullopt;
  CHECK(found.has_value(), "collective_log: record is ", index, ", expected ", oldest, " to ",
        size() - 1);
  return *found;
}

std::string CollectiveLog::name_of_group(const CollectiveRecord& record) const {
  if (record.group < 0) return "?";
  return map().groups[static_cast<size_t>(record.group)].name.data();
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

CollectiveLog::Group CollectiveLog::add(const std::string& communicator, int first, int rank,
                                        int size) {
  const int entry = recorder_.add_group(communicator, first, rank, size);
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < sums_.size(); ++i) {
    if (sums_[i].communicator == communicator) return {static_cast<int>(i), entry};
  }
  sums_.push_back({.communicator = communicator});
  return {static_cast<int>(sums_.size()) - 1, entry};
}

int64_t CollectiveLog::start(const Group& group, CollectiveRecord record) {
  record.group = group.entry;
  const int64_t index = recorder_.start(record);
  const std::lock_guard lock(mutex_);
  Traffic& traffic =
      sums_[static_cast<size_t>(group.sums)].of[static_cast<size_t>(record.operation)];
  ++traffic.calls;
  traffic.sent += record.sent;
  traffic.received += record.received;
  return index;
}

CollectiveLog::OnStream& CollectiveLog::on_stream(int64_t index) {
  const auto found = std::find_if(on_streams_.rbegin(), on_streams_.rend(),
                                  [&](const OnStream& one) { return one.index == index; });
  if (found != on_streams_.rend()) return *found;
  return on_streams_.emplace_back(OnStream{index, {}, {}});
}

Event CollectiveLog::take_event(const Stream& stream) {
  if (events_.empty()) return Event(stream.device());
  Event event = std::move(events_.back());
  events_.pop_back();
  return event;
}

void CollectiveLog::begin_behind(int64_t index, Stream& stream) {
  on_stream(index).begin.emplace(take_event(stream)).record(stream);
}

void CollectiveLog::end_behind(int64_t index, Stream& stream) {
  const std::optional<CollectiveRecord> record = read_record(map(), index);
  if (!record || record->completed != 0) return;
  OnStream& exchange = on_stream(index);
  if (!exchange.end) exchange.end.emplace(take_event(stream)).record(stream);
}

void CollectiveLog::look_at_streams() {
  int64_t under_way = -1;
  int open = 0;
  for (OnStream& exchange : on_streams_) {
    // Streams work in order, and there are few: what comes later has not ended either.
    if (open == kStreams) break;
    if (exchange.end && exchange.end->passed()) {
      recorder_.complete(exchange.index);
      for (auto* event : {&exchange.begin, &exchange.end}) {
        if (*event) events_.push_back(std::move(**event));
      }
      exchange.index = -1;
      continue;
    }
    ++open;
    const bool begun = !exchange.begin || exchange.begin->passed();
    if (under_way < 0 && begun) under_way = exchange.index;
  }
  std::erase_if(on_streams_, [](const OnStream& exchange) { return exchange.index < 0; });
  if (!host_waits_ || under_way == waits_in_) return;
  if (waits_in_ >= 0) recorder_.end_wait();
  if (under_way >= 0) recorder_.begin_wait(under_way);
  waits_in_ = under_way;
}

StreamWait::~StreamWait() {
  if (log_.waits_in_ >= 0) log_.recorder_.end_wait();
  log_.waits_in_ = -1;
  log_.host_waits_ = false;
}

}  // namespace tessera
