#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tessera {

/// A heat map for the page: for each row, of the keys up to the query's own bin, one byte: 0: no
/// query of the bin was sampled; else 1 + 254 times its position on the scale of colours.
struct PageMap {
  int64_t step = 0;
  int64_t layer = 0;
  int64_t group = 0;
  int64_t bins = 0;         ///< of a side
  std::string shades = {};  ///< bins (bins + 1) / 2 bytes
};

struct PageMaps {
  std::vector<PageMap> maps;  ///< by step, layer and group
  int64_t there = 0;          ///< maps of the run
  int64_t damaged = 0;        ///< of those that were to be shown, not readable as maps
};

/// Reads the maps of RUN/heatmaps, at most so many as have `bytes` together. When there are more,
/// steps are left out evenly, the same for every layer, but not the first, the last and `wanted`
/// ones; and when that is not enough, four bins become one.
PageMaps read_maps(const std::filesystem::path& directory, int64_t bytes,
                   const std::vector<int64_t>& wanted = {});

}  // namespace tessera
