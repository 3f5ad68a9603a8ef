#include "checkpoint/box.h"

#include <algorithm>
#include <vector>

namespace tessera {

namespace {

// The number of element `index` of the whole tensor within `box`.
int64_t number_in(const Box& box, const BoxIndex& index) {
  int64_t number = 0;
  for (int axis = 0; axis < box.extents.rank(); ++axis) {
    const auto a = static_cast<size_t>(axis);
    number = number * box.extents[axis] + index[a] - box.begin[a];
  }
  return number;
}

struct Corner {
  int64_t at = 0;  // the point, numbered on the grid of `whole` with one more point per axis
  int64_t weight = 0;
};

void add_corners(const Box& box, const Box& whole, int64_t weight, std::vector<Corner>& corners) {
  const int rank = whole.extents.rank();
  for (unsigned choice = 0; choice < 1U << rank; ++choice) {
    Corner corner{0, weight};
    for (int axis = 0; axis < rank; ++axis) {
      const auto a = static_cast<size_t>(axis);
      const bool upper = ((choice >> axis) & 1) != 0;
      const int64_t point = box.begin[a] - whole.begin[a] + (upper ? box.extents[axis] : 0);
      corner.at = corner.at * (whole.extents[axis] + 1) + point;
      if (upper) corner.weight = -corner.weight;
    }
    corners.push_back(corner);
  }
}

}  // namespace

std::string to_string(const Box& box) {
  std::string text = "[";
  for (int axis = 0; axis < box.extents.rank(); ++axis) {
    const int64_t begin = box.begin[static_cast<size_t>(axis)];
    text += concat(axis == 0 ? "" : ", ", begin, ":", begin + box.extents[axis]);
  }
  return text + "]";
}

std::optional<Box> intersect(const Box& first, const Box& second) {
  CHECK(first.extents.rank() == second.extents.rank(), "intersect: the boxes have ",
        first.extents.rank(), " and ", second.extents.rank(), " axes");
  Box both{.begin = {}, .extents = first.extents};
  for (int axis = 0; axis < first.extents.rank(); ++axis) {
    const auto a = static_cast<size_t>(axis);
    const int64_t end =
        std::min(first.begin[a] + first.extents[axis], second.begin[a] + second.extents[axis]);
    both.begin[a] = std::max(first.begin[a], second.begin[a]);
    if (end <= both.begin[a]) return std::nullopt;
    both.extents = both.extents.with(axis, end - both.begin[a]);
  }
  return both;
}

void for_each_stretch(const Box& overlap, const Box& first, const Box& second,
                      const std::function<void(const Stretch&)>& visit) {
  // Inner axes that the overlap fills in both boxes make one stretch with the axis before them.
  int split = overlap.extents.rank() - 1;
  int64_t length = overlap.extents[split];
  while (split > 0 && overlap.extents[split] == first.extents[split] &&
         overlap.extents[split] == second.extents[split]) {
    --split;
    length *= overlap.extents[split];
  }
  BoxIndex index = overlap.begin;
  while (true) {
    visit({number_in(first, index), number_in(second, index), length});
    int axis = split - 1;
    for (; axis >= 0; --axis) {
      const auto a = static_cast<size_t>(axis);
      if (++index[a] < overlap.begin[a] + overlap.extents[axis]) break;
      index[a] = overlap.begin[a];
    }
    if (axis < 0) return;
  }
}

bool covers_exactly(std::span<const Box> parts, const Box& whole) {
  std::vector<Corner> corners;
  corners.reserve((parts.size() + 1) << whole.extents.rank());
  add_corners(whole, whole, -1, corners);
  for (const Box& part : parts) add_corners(part, whole, 1, corners);
  std::sort(corners.begin(), corners.end(),
            [](const Corner& x, const Corner& y) { return x.at < y.at; });
  for (size_t i = 0; i < corners.size();) {
    int64_t weight = 0;
    const int64_t at = corners[i].at;
    for (; i < corners.size() && corners[i].at == at; ++i) weight += corners[i].weight;
    if (weight != 0) return false;
  }
  return true;
}

}  // namespace tessera
