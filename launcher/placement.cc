#include "launcher/placement.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace tessera {

namespace {

int most_slots(const std::vector<HostSlots>& hosts) {
  int most = 1;
  for (const HostSlots& host : hosts) most = std::max(most, host.slots);
  return most;
}

// The first one that begins within a group, as a way to name the place.
std::string first_cut(const std::vector<HostSlots>& filled, int block) {
  int rank = 0;
  for (size_t i = 0; i + 1 < filled.size(); ++i) {
    rank += filled[i].slots;
    if (rank % block != 0) {
      return concat("ranks ", rank / block * block, " to ", rank / block * block + block - 1,
                    " lie on ", filled[i].name, " and ", filled[i + 1].name);
    }
  }
  return "";
}

}  // namespace

int slots_of(const std::vector<HostSlots>& hosts) {
  int slots = 0;
  for (const HostSlots& host : hosts) slots += host.slots;
  return slots;
}

std::vector<HostSlots> filled_hosts(const std::vector<HostSlots>& hosts, int ranks) {
  CHECK(ranks >= 1 && ranks <= slots_of(hosts), ranks, " ranks on ", slots_of(hosts), " slots");
  std::vector<HostSlots> filled;
  for (const HostSlots& host : hosts) {
    if (ranks == 0) break;
    filled.push_back({host.name, std::min(host.slots, ranks)});
    ranks -= filled.back().slots;
  }
  return filled;
}

int scattered_groups(const std::vector<HostSlots>& filled, int block) {
  const int largest = most_slots(filled);
  const int fewest = (block + largest - 1) / largest;
  std::vector<int> host_of_rank;
  for (size_t i = 0; i < filled.size(); ++i) {
    host_of_rank.insert(host_of_rank.end(), static_cast<size_t>(filled[i].slots),
                        static_cast<int>(i));
  }
  int scattered = 0;
  const int ranks = static_cast<int>(host_of_rank.size());
  for (int first = 0; first + block <= ranks; first += block) {
    const int hosts = host_of_rank[static_cast<size_t>(first + block - 1)] -
                      host_of_rank[static_cast<size_t>(first)] + 1;
    if (hosts > fewest) ++scattered;
  }
  return scattered;
}

std::vector<std::string> placement_warnings(const std::vector<HostSlots>& filled,
                                            const MeshShape& shape) {
  std::vector<std::string> warnings;
  const int ranks = shape.ranks();
  const int largest = most_slots(filled);
  const int tensor = shape.tensor;
  if (tensor > largest) {
    warnings.push_back(concat("mesh.tensor is ", tensor, ", but no host takes more than ", largest,
                              " ranks: every tensor group crosses hosts, which is slow; take a "
                              "mesh.tensor of at most ",
                              largest));
  } else if (const int scattered = scattered_groups(filled, tensor); scattered > 0) {
    warnings.push_back(
        concat(scattered, " of ", ranks / tensor,
               " tensor groups cross hosts, which is slow: ", first_cut(filled, tensor),
               "; give each host a multiple of mesh.tensor = ", tensor, " slots"));
  }
  const int block = shape.expert * shape.sequence * tensor;
  if (const int scattered = scattered_groups(filled, block); shape.expert > 1 && scattered > 0) {
    const std::string sizes = concat("mesh.expert x mesh.sequence x mesh.tensor = ", block);
    const std::string found =
        concat(scattered, " of ", ranks / block, " expert groups are on more hosts than they need");
    warnings.push_back(
        block <= largest
            ? concat(found, ": ", first_cut(filled, block), "; give each host a multiple of ",
                     sizes, " slots")
            : concat(found, "; give all hosts the same number of slots, which divides ", sizes));
  }
  return warnings;
}

}  // namespace tessera
