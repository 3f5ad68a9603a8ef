#include "runtime/report/map_files.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "runtime/monitor/color_scale.h"
#include "runtime/monitor/heat_map.h"
#include "runtime/report/line_file.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostBins = 64;

int64_t shades_of(int64_t bins) {
  return bins * (bins + 1) / 2;
}

/// The file names by step: layer and group of each.
std::map<int64_t, std::vector<PageMap>> names_in(const fs::path& directory) {
  std::map<int64_t, std::vector<PageMap>> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(directory, none)) {
    const std::string name = entry.path().filename();
    long step = 0;
    long layer = 0;
    long group = 0;
    int end = 0;
    const int read = std::sscanf(name.c_str(), "step-%ld-layer-%ld-group-%ld.csv%n", &step, &layer,
                                 &group, &end);
    if (read != 3 || end != static_cast<int>(name.size()) || step < 1) continue;
    found[step].push_back({.step = step, .layer = layer, .group = group});
  }
  return found;
}

// At most `count` of `steps`, evenly, with the first, the last and those of `wanted` that fit.
std::set<int64_t> choose(const std::vector<int64_t>& steps, const std::vector<int64_t>& wanted,
                         size_t count) {
  if (steps.size() <= count) return {steps.begin(), steps.end()};
  std::set<int64_t> chosen{steps.front(), steps.back()};
  for (const int64_t step : wanted) {
    // Half of the places at most: the run as a whole is to be seen, too.
    if (chosen.size() >= std::max<size_t>(2, count / 2)) break;
    if (std::binary_search(steps.begin(), steps.end(), step)) chosen.insert(step);
  }
  for (size_t places = count - std::min(count, chosen.size()); places > 1; --places) {
    std::set<int64_t> more = chosen;
    for (size_t i = 0; i < places; ++i) more.insert(steps[i * (steps.size() - 1) / (places - 1)]);
    if (more.size() <= count) return more;
  }
  return chosen;
}

HeatMap halved(const HeatMap& map) {
  HeatMap half{.rows = map.rows / 2, .columns = map.columns / 2, .shares = {}};
  for (int64_t row = 0; row < half.rows; ++row) {
    for (int64_t column = 0; column < half.columns; ++column) {
      float sum = 0;
      int rows_seen = 0;
      for (const int64_t y : {2 * row, 2 * row + 1}) {
        const float* two = &map.shares[static_cast<size_t>(y * map.columns + 2 * column)];
        rows_seen += two[0] >= 0 ? 1 : 0;
        sum += std::max(0.0f, two[0]) + std::max(0.0f, two[1]);
      }
      half.shares.push_back(rows_seen == 0 ? -1.0f : sum / static_cast<float>(rows_seen));
    }
  }
  return half;
}

std::optional<HeatMap> read_map(const fs::path& path) {
  std::optional<HeatMap> map = heat_map_from_csv(read_text(path, 1 << 20));
  if (!map || map->rows != map->columns || map->rows > kMostBins) return std::nullopt;
  return map;
}

std::string shades(const HeatMap& map) {
  std::string bytes;
  for (int64_t row = 0; row < map.rows; ++row) {
    for (int64_t column = 0; column <= row; ++column) {
      const float share = map.shares[static_cast<size_t>(row * map.columns + column)];
      bytes += static_cast<char>(share < 0 ? 0 : 1 + std::lround(254 * scale_position(share)));
    }
  }
  return bytes;
}

std::string csv_name(const PageMap& map) {
  std::array<char, 96> name{};
  std::snprintf(name.data(), name.size(), "step-%08ld-layer-%02ld-group-%02ld.csv",
                static_cast<long>(map.step), static_cast<long>(map.layer),
                static_cast<long>(map.group));
  return name.data();
}

}  // namespace

PageMaps read_maps(const fs::path& directory, int64_t bytes, const std::vector<int64_t>& wanted) {
  PageMaps result;
  std::vector<int64_t> steps;
  size_t most = 1;
  const std::map<int64_t, std::vector<PageMap>> names = names_in(directory);
  for (const auto& [step, maps] : names) {
    steps.push_back(step);
    most = std::max(most, maps.size());
    result.there += std::ssize(maps);
  }
  const auto places = [&](int64_t bins) {
    return static_cast<size_t>(
        std::max<int64_t>(1, bytes / shades_of(bins) / static_cast<int64_t>(most)));
  };
  const bool coarse = steps.size() > 8 && places(kMostBins) < 8;
  const std::set<int64_t> chosen =
      choose(steps, wanted, places(coarse ? kMostBins / 2 : kMostBins));
  for (const int64_t step : chosen) {
    for (PageMap map : names.at(step)) {
      std::optional<HeatMap> read = read_map(directory / csv_name(map));
      if (!read) {
        ++result.damaged;
        continue;
      }
      if (coarse) read = halved(*read);
      map.bins = read->rows;
      map.shades = shades(*read);
      result.maps.push_back(std::move(map));
    }
  }
  std::sort(result.maps.begin(), result.maps.end(), [](const PageMap& a, const PageMap& b) {
    return std::tie(a.step, a.layer, a.group) < std::tie(b.step, b.layer, b.group);
  });
  return result;
}

}  // namespace tessera
