#include "tests/watch/imagined_job.h"

#include <cstring>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kNow = 1000 * kSecond;

template <size_t N>
void write(std::array<char, N>& place, const std::string& text) {
  text.copy(place.data(), N - 1);
}

}  // namespace

ImaginedJob::ImaginedJob() {
  for (int r = 0; r < 4; ++r) {
    RankReport report{.rank = r, .silence = 0.2, .now = kNow};
    FlightState& state = report.state;
    state.rank = r;
    state.ranks = 4;
    write(state.host, concat("n", 1 + r / 2));
    state.step = 7;
    state.phase = Phase::kForward;
    state.layer = 1;
    state.section_began = kNow - 60 * kSecond;
    state.phase_began = kNow - 59 * kSecond;
    state.process_state = 'S';
    state.groups = 2;
    FlightGroup world{.first = 0, .rank = r, .size = 4};
    write(world.name, "world");
    FlightGroup tensor{.first = r / 2 * 2, .rank = r % 2, .size = 2};
    write(tensor.name, "tensor");
    report.groups = {world, tensor};
    ranks_.push_back(report);
  }
}

CollectiveRecord& ImaginedJob::start(int r, int group, const Call& call) {
  RankReport& report = rank(r);
  CollectiveRecord record;
  record.index = report.state.records++;
  record.number = report.groups[static_cast<size_t>(group)].started++;
  record.elements = call.elements;
  record.step = call.step;
  record.started = kNow - 59 * kSecond;
  record.layer = 1;
  record.group = group;
  record.operation = call.operation;
  record.dtype = DType::kF32;
  record.phase = Phase::kForward;
  record.line = call.line;
  write(record.file, "model/moe.cc");
  report.records.push_back(record);
  return report.records.back();
}

CollectiveRecord& ImaginedJob::exchange(int r, int group, const Call& call) {
  CollectiveRecord& record = start(r, group, call);
  record.completed = kNow - 58 * kSecond;
  rank(r).groups[static_cast<size_t>(group)].completed = record.number;
  return record;
}

void ImaginedJob::block(int r, int group, const Call& call) {
  rank(r).state.waits_in = start(r, group, call).index;
}

}  // namespace tessera
