#include "parallel/subgroup.h"

#include "kernels/core/error.h"

namespace tessera {

Subgroup::Subgroup(std::span<const int> colors, int own) {
  const int ranks = static_cast<int>(colors.size());
  CHECK(own >= 0 && own < ranks, "subgroup: rank is ", own, ", expected 0 to ", ranks - 1);
  for (int r = 0; r < ranks; ++r) {
    if (colors[static_cast<size_t>(r)] != colors[static_cast<size_t>(own)]) continue;
    if (r == own) rank = static_cast<int>(members.size());
    members.push_back(r);
  }
}

}  // namespace tessera
