#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Which group comes to each place: group order[p] to place p. The first places are global.
using GroupOrder = std::vector<int32_t>;

/// The `chosen` groups with the largest alpha, then the others; both as they were. Of equal ones
/// the first.
GroupOrder order_by_share(std::span<const double> alpha, int64_t chosen);
/// The place of each group: the inverse.
std::vector<int32_t> places_of(const GroupOrder& order);

/// Where a parameter has a part for each KV group: equal parts of `axis`, one after the other.
struct GroupAxis {
  int64_t layer;
  int axis;
};
/// Nothing when the parameter has no such parts: those outside of attention, norms of heads, which
/// all share, and gates, which belong to the first places and not to who is there. Throws for a
/// parameter of an attention layer that it does not know.
std::optional<GroupAxis> group_axis(const std::string& parameter);

/// Part p of `to` along `axis` = part order[p] of `from`. Both in host memory, of one dtype and
/// shape, whose extent there is a multiple of the number of groups.
void reorder_groups(ConstTensorView from, int axis, const GroupOrder& order, TensorView to);

}  // namespace tessera
