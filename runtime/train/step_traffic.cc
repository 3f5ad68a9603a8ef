#include "runtime/train/step_traffic.h"

#include <algorithm>
#include <array>
#include <iomanip>
#include <sstream>

namespace tessera {

namespace {

constexpr std::array<AxisSet, 9> kSets{AxisSet{Axis::kTensor}, AxisSet{Axis::kSequence}, kContext,
                                       AxisSet{Axis::kExpert}, AxisSet{Axis::kData},     kBatch,
                                       kExpertReplicas,        kTensorReplicas,          kAllAxes};

/// The product of the extents from the outermost axis of the set that has several ranks inwards.
int block_of(const ProcessMesh& mesh, AxisSet axes) {
  bool within = false;
  int block = 1;
  for (int i = 0; i < kAxes; ++i) {
    const auto axis = static_cast<Axis>(i);
    within = within || (axes.contains(axis) && mesh.size(axis) > 1);
    if (within) block *= mesh.size(axis);
  }
  return block;
}

double mebibytes(int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

}  // namespace

int64_t StepTraffic::sent() const {
  int64_t sum = 0;
  for (const GroupTraffic& group : groups) sum += group.traffic.sent;
  return sum;
}

int64_t StepTraffic::received() const {
  int64_t sum = 0;
  for (const GroupTraffic& group : groups) sum += group.traffic.received;
  return sum;
}

std::vector<GroupTraffic> traffic_of(const ProcessMesh& mesh) {
  const CollectiveLog& log = mesh.world().log();
  std::vector<GroupTraffic> groups;
  for (const AxisSet axes : kSets) {
    const Communicator& ranks = mesh.group(axes);
    const auto same = [&](const GroupTraffic& other) { return other.group == ranks.name(); };
    if (ranks.size() == 1 || std::any_of(groups.begin(), groups.end(), same)) continue;
    groups.push_back({.group = ranks.name(),
                      .ranks = ranks.size(),
                      .block = block_of(mesh, axes),
                      .traffic = log.traffic(ranks.name())});
  }
  return groups;
}

std::string to_text(const std::vector<StepTraffic>& steps) {
  if (steps.empty() || steps.front().groups.empty()) return "";
  std::ostringstream out;
  out << "it sends (and receives) per step, MiB:\n" << std::fixed << std::setprecision(2);
  out << "  " << std::left << std::setw(22) << "group" << std::right << std::setw(6) << "ranks";
  for (const StepTraffic& step : steps) out << std::setw(28) << name_of(step.stage);
  out << "\n";
  const auto cell = [&](int64_t sent, int64_t received) {
    std::ostringstream text;
    text << std::fixed << std::setprecision(2) << mebibytes(sent) << " (" << mebibytes(received)
         << ")";
    out << std::setw(28) << text.str();
  };
  for (size_t i = 0; i < steps.front().groups.size(); ++i) {
    const GroupTraffic& group = steps.front().groups[i];
    out << "  " << std::left << std::setw(22) << group.group << std::right << std::setw(6)
        << group.ranks;
    for (const StepTraffic& step : steps) {
      cell(step.groups[i].traffic.sent, step.groups[i].traffic.received);
    }
    out << "\n";
  }
  out << "  " << std::left << std::setw(28) << "all" << std::right;
  for (const StepTraffic& step : steps) cell(step.sent(), step.received());
  out << "\n";
  return out.str();
}

}  // namespace tessera
