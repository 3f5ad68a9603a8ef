#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/tensor_view.h"

namespace tessera {

/// Shares of attention over (query, key) bins, rows from the first query to the last. Negative: a
/// bin that no query sees, for instance of the future.
struct HeatMap {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<float> shares;  ///< [rows, columns]
};

/// A PNG file: each bin a square of kBinPixels, coloured by color_scale() at scale_position() of
/// its share; bins that no query sees are transparent.
inline constexpr int64_t kBinPixels = 4;
std::string to_png(const HeatMap& map);

/// One line for each row, shares with 4 significant digits and commas between; nothing where no
/// query sees the bin.
std::string to_csv(const HeatMap& map);
/// Reads it back. Nothing when the text is no such map of at most 1024 x 1024 bins.
std::optional<HeatMap> heat_map_from_csv(std::string_view text);

}  // namespace tessera
