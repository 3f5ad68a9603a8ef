#include "parallel/flight_recorder.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string_view>

#include "kernels/core/error.h"

namespace tessera {

namespace {

// Another process reads while this one writes: every field that it acts on is one atomic word.
template <class T>
void publish(T& field, T value) {
  std::atomic_ref<T>(field).store(value, std::memory_order_release);
}

void publish_phase(Phase& field, Phase value) {
  std::atomic_ref<Phase>(field).store(value, std::memory_order_release);
}

// A record goes in and out word by word, each in order with the one before it: so a reader that
// finds the same index before and after has read one record, on every processor.
using Words = std::array<uint64_t, sizeof(CollectiveRecord) / sizeof(uint64_t)>;

void store(CollectiveRecord& place, const CollectiveRecord& record) {
  const auto words = std::bit_cast<Words>(record);
  auto* to = reinterpret_cast<uint64_t*>(&place);
  for (size_t i = 0; i < words.size(); ++i) publish(to[i], words[i]);
}

CollectiveRecord load(const CollectiveRecord& place) {
  Words words;
  // atomic_ref wants a mutable object; nothing is written.
  auto* from = reinterpret_cast<uint64_t*>(const_cast<CollectiveRecord*>(&place));
  for (size_t i = 0; i < words.size(); ++i) {
    words[i] = std::atomic_ref<uint64_t>(from[i]).load(std::memory_order_acquire);
  }
  return std::bit_cast<CollectiveRecord>(words);
}

FlightMap* map_file(int descriptor, bool writable) {
  void* memory = mmap(nullptr, sizeof(FlightMap), writable ? PROT_READ | PROT_WRITE : PROT_READ,
                      MAP_SHARED, descriptor, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<FlightMap*>(memory);
}

}  // namespace

const char* name_of(Collective operation) {
  static constexpr std::array<const char*, kCollectives> kNames{
      "all_reduce", "all_gather",        "reduce_scatter", "all_to_all", "exchange_rows",
      "broadcast",  "all_reduce_values", "barrier",        "split"};
  return kNames[static_cast<size_t>(operation)];
}

const char* name_of(Phase phase) {
  static constexpr std::array<const char*, kPhases> kNames{
      "setup",  "data",          "forward",    "backward",   "sums",
      "update", "between steps", "validation", "checkpoint", "end"};
  return kNames[static_cast<size_t>(phase)];
}

int64_t monotonic_nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

std::array<char, 48> short_path(const char* path) {
  std::string_view text(path);
  size_t slash = text.rfind('/');
  if (slash != std::string_view::npos && slash > 0) slash = text.rfind('/', slash - 1);
  if (slash != std::string_view::npos) text.remove_prefix(slash + 1);
  std::array<char, 48> file{};
  if (text.size() >= file.size()) text.remove_prefix(text.size() - file.size() + 1);
  text.copy(file.data(), text.size());
  return file;
}

FlightRecorder::FlightRecorder() : owned_(std::make_unique<FlightMap>()), map_(owned_.get()) {
  FlightState& state = map_->state;
  state.process = getpid();
  state.began = state.phase_began = state.section_began = monotonic_nanoseconds();
}

FlightRecorder::~FlightRecorder() {
  if (!owned_) munmap(map_, sizeof(FlightMap));
}

void FlightRecorder::keep_in(const std::filesystem::path& file) {
  CHECK(owned_ != nullptr, "flight recorder: it is kept in a file already");
  // A new file: an old one may be mapped by somebody who still looks at it.
  unlink(file.c_str());
  const int descriptor = open(file.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  const bool sized = descriptor >= 0 && posix_fallocate(descriptor, 0, sizeof(FlightMap)) == 0;
  FlightMap* map = sized ? map_file(descriptor, true) : nullptr;
  const int trouble = errno;
  if (descriptor >= 0) close(descriptor);
  if (map == nullptr) {
    throw Error(
        ExitCode::kUsage,
        concat("cannot keep the flight recorder in ", file.string(), ": ", std::strerror(trouble),
               "; check that it is writable and has ", sizeof(FlightMap) >> 10, " KiB of space"));
  }
  *map = *owned_;
  map_ = map;
  owned_.reset();
}

void FlightRecorder::set_identity(int rank, int ranks, const std::string& host) {
  FlightState& state = map_->state;
  state.rank = rank;
  state.ranks = ranks;
  state.host = {};
  host.copy(state.host.data(), state.host.size() - 1);
}

void FlightRecorder::set_step(int64_t step) {
  FlightState& state = map_->state;
  const int64_t now = monotonic_nanoseconds();
  publish(state.section_began, now);
  publish(state.step, step);
  waited_before_step_ = state.waited;
  notify(FlightEvent::kStep, now);
}

void FlightRecorder::set_layer(int layer) {
  publish(map_->state.layer, layer);
  if (!observers_.empty()) notify(FlightEvent::kLayer, monotonic_nanoseconds());
}

void FlightRecorder::set_phase(Phase phase) {
  FlightState& state = map_->state;
  const int64_t now = monotonic_nanoseconds();
  if (!in_step(phase)) publish(state.section_began, now);
  publish(state.phase_began, now);
  publish_phase(state.phase, phase);
  notify(FlightEvent::kPhase, now);
}

void FlightRecorder::finish_step() {
  FlightState& state = map_->state;
  const int64_t now = monotonic_nanoseconds();
  const int64_t spent = now - state.section_began;
  publish(state.last_step, spent);
  publish(state.busy, state.busy + spent - (state.waited - waited_before_step_));
  publish(state.steps, state.steps + 1);
  notify(FlightEvent::kStepEnd, now);
  set_phase(Phase::kBetweenSteps);
}

void FlightRecorder::set_end(FlightEnd end) {
  publish(map_->state.end, end);
}

int FlightRecorder::add_group(const std::string& name, int first, int rank, int size) {
  FlightState& state = map_->state;
  if (state.groups == FlightMap::kGroups) return -1;
  FlightGroup& group = map_->groups[static_cast<size_t>(state.groups)];
  group = {};
  name.copy(group.name.data(), group.name.size() - 1);
  group.first = first;
  group.rank = rank;
  group.size = size;
  publish(state.groups, state.groups + 1);
  return state.groups - 1;
}

CollectiveRecord& FlightRecorder::record_at(int64_t index) {
  return map_->ring[static_cast<size_t>(index % FlightMap::kRecords)];
}

int64_t FlightRecorder::start(CollectiveRecord record) {
  FlightState& state = map_->state;
  const int64_t index = state.records;
  CollectiveRecord& place = record_at(index);
  publish(place.index, int64_t{-1});
  record.index = -1;
  record.step = state.step;
  record.layer = state.layer;
  record.phase = state.phase;
  record.started = monotonic_nanoseconds();
  store(place, record);
  publish(place.index, index);
  if (record.group >= 0) {
    publish(map_->groups[static_cast<size_t>(record.group)].started, record.number + 1);
  }
  publish(state.records, index + 1);
  notify(FlightEvent::kStart, record.started, index);
  return index;
}

void FlightRecorder::complete(int64_t index) {
  CollectiveRecord& record = record_at(index);
  if (record.index != index) return;  // overwritten meanwhile
  const int64_t now = monotonic_nanoseconds();
  publish(record.completed, now);
  if (record.group >= 0) {
    publish(map_->groups[static_cast<size_t>(record.group)].completed, record.number);
  }
  notify(FlightEvent::kComplete, now, index);
}

void FlightRecorder::begin_wait(int64_t index) {
  const int64_t now = monotonic_nanoseconds();
  publish(map_->state.wait_began, now);
  publish(map_->state.waits_in, index);
  notify(FlightEvent::kWait, now, index);
}

void FlightRecorder::end_wait() {
  FlightState& state = map_->state;
  const int64_t now = monotonic_nanoseconds();
  const int64_t index = state.waits_in;
  publish(state.waits_in, int64_t{-1});
  publish(state.waited, state.waited + now - state.wait_began);
  notify(FlightEvent::kWaitEnd, now, index);
}

std::optional<CollectiveRecord> read_record(const FlightMap& map, int64_t index) {
  if (index < 0) return std::nullopt;
  const CollectiveRecord& place = map.ring[static_cast<size_t>(index % FlightMap::kRecords)];
  const CollectiveRecord record = load(place);
  if (record.index != index) return std::nullopt;
  const std::atomic_ref<int64_t> mark(const_cast<int64_t&>(place.index));
  if (mark.load(std::memory_order_acquire) != index) return std::nullopt;
  return record;
}

FlightFile::FlightFile(const std::filesystem::path& file, bool writable) {
  const int descriptor = open(file.c_str(), (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
  struct stat about {};
  const bool whole = descriptor >= 0 && fstat(descriptor, &about) == 0 &&
                     about.st_size == static_cast<off_t>(sizeof(FlightMap));
  map_ = whole ? map_file(descriptor, writable) : nullptr;
  if (descriptor >= 0) close(descriptor);
  const bool known = map_ != nullptr && map_->state.layout == FlightState::kLayout;
  if (known && map_->state.groups >= 0 && map_->state.groups <= FlightMap::kGroups) return;
  if (map_ != nullptr) munmap(map_, sizeof(FlightMap));
  throw Error(ExitCode::kBadData, concat(file.string(),
                                         " is no flight record of this version of "
                                         "tessera; use the tessera that wrote it"));
}

FlightFile::~FlightFile() {
  munmap(map_, sizeof(FlightMap));
}

}  // namespace tessera
