#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

namespace tessera::gpu {

/// A part of a list in host memory that travels to a kernel as an argument: no copy to the device,
/// so nothing that the host would have to keep until the kernel has run.
struct GroupList {
  static constexpr int kMost = 64;
  int32_t groups[kMost];
  int count;
  int first;  ///< place of groups[0] in the whole list
};

/// f(part) for all parts of a list, in order.
template <class F>
void for_group_lists(std::span<const int32_t> groups, F&& f) {
  for (size_t first = 0; first < groups.size(); first += GroupList::kMost) {
    const auto part =
        groups.subspan(first, std::min<size_t>(GroupList::kMost, groups.size() - first));
    GroupList list{};
    std::copy(part.begin(), part.end(), list.groups);
    list.count = static_cast<int>(part.size());
    list.first = static_cast<int>(first);
    f(list);
  }
}

}  // namespace tessera::gpu
