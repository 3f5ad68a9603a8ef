#include "runtime/choose/group_order.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <numeric>
#include <string_view>

namespace tessera {

namespace {

constexpr std::string_view kLayers = "layers.";
constexpr std::string_view kAttention = ".attention.";

bool is_one_of(std::string_view name, std::span<const std::string_view> names) {
  return std::ranges::find(names, name) != names.end();
}

}  // namespace

GroupOrder order_by_share(std::span<const double> alpha, int64_t chosen) {
  GroupOrder order(alpha.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::ranges::greater{},
                           [&](int32_t group) { return alpha[static_cast<size_t>(group)]; });
  std::sort(order.begin(), order.begin() + chosen);
  std::sort(order.begin() + chosen, order.end());
  return order;
}

std::vector<int32_t> places_of(const GroupOrder& order) {
  std::vector<int32_t> places(order.size());
  for (size_t place = 0; place < order.size(); ++place) {
    places[static_cast<size_t>(order[place])] = static_cast<int32_t>(place);
  }
  return places;
}

std::optional<GroupAxis> group_axis(const std::string& parameter) {
  static constexpr std::array<std::string_view, 5> kRows{
      "query.weight", "key.weight", "value.weight", "output_gate.weight", "sink_logit"};
  static constexpr std::array<std::string_view, 2> kShared{"query_norm.weight", "key_norm.weight"};
  const std::string_view name = parameter;
  const size_t at = name.find(kAttention);
  if (!name.starts_with(kLayers) || at == std::string_view::npos) return std::nullopt;
  const std::string_view part = name.substr(at + kAttention.size());
  if (part.starts_with("gate.") || is_one_of(part, kShared)) return std::nullopt;
  int64_t layer = -1;
  std::from_chars(name.data() + kLayers.size(), name.data() + at, layer);
  if (is_one_of(part, kRows)) return GroupAxis{.layer = layer, .axis = 0};
  CHECK(part == "out.weight", "group order: what part of ", parameter,
        " belongs to which KV group is not known");
  return GroupAxis{.layer = layer, .axis = 1};
}

void reorder_groups(ConstTensorView from, int axis, const GroupOrder& order, TensorView to) {
  const Shape& shape = from.shape();
  const auto groups = static_cast<int64_t>(order.size());
  CHECK(to.shape() == shape && to.dtype() == from.dtype() && axis < shape.rank() &&
            shape[axis] % groups == 0,
        "group order: ", from.shape(), " to ", to.shape(), " in ", groups, " parts of axis ", axis);
  int64_t outer = 1;
  for (int i = 0; i < axis; ++i) outer *= shape[i];
  const int64_t row = from.bytes() / outer;  // of all groups
  const auto part = static_cast<size_t>(row / groups);
  const auto* const source = static_cast<const std::byte*>(from.data());
  auto* const target = static_cast<std::byte*>(to.data());
  for (int64_t i = 0; i < outer; ++i) {
    for (size_t place = 0; place < order.size(); ++place) {
      std::memcpy(target + i * row + place * part,
                  source + i * row + static_cast<size_t>(order[place]) * part, part);
    }
  }
}

}  // namespace tessera
