#include "runtime/monitor/heat_map.h"

#include <png.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "kernels/core/error.h"
#include "runtime/monitor/color_scale.h"

namespace tessera {

namespace {

constexpr int64_t kMostBins = 1024;

uint8_t shade_of(float share) {
  if (!(share >= 0)) return 0;
  const double last = static_cast<double>(color_scale().size()) - 1;
  return static_cast<uint8_t>(1 + std::lround(last * scale_position(share)));
}

// Colour 0 is for bins that no query sees, the others are the scale.
std::array<uint8_t, 256 * 4> make_palette() {
  std::array<uint8_t, 256 * 4> palette{};
  for (size_t i = 0; i < color_scale().size(); ++i) {
    const Color& color = color_scale()[i];
    palette[4 * i + 4] = color.red;
    palette[4 * i + 5] = color.green;
    palette[4 * i + 6] = color.blue;
    palette[4 * i + 7] = 255;
  }
  return palette;
}

std::vector<uint8_t> pixels_of(const HeatMap& map) {
  std::vector<uint8_t> pixels;
  pixels.reserve(map.shares.size() * kBinPixels * kBinPixels);
  for (int64_t y = 0; y < map.rows * kBinPixels; ++y) {
    for (int64_t x = 0; x < map.columns; ++x) {
      const float share = map.shares[static_cast<size_t>(y / kBinPixels * map.columns + x)];
      pixels.insert(pixels.end(), kBinPixels, shade_of(share));
    }
  }
  return pixels;
}

// The row of the map in one line of CSV; false when a field is no share.
bool append_row(std::string_view line, HeatMap& map) {
  int64_t columns = 0;
  while (true) {
    const std::string_view field = line.substr(0, line.find(','));
    float share = -1;
    if (!field.empty()) {
      const auto [end, trouble] = std::from_chars(field.data(), field.data() + field.size(), share);
      if (trouble != std::errc() || end != field.data() + field.size()) return false;
      if (!(share >= 0 && share <= 1.5f)) return false;
    }
    map.shares.push_back(share);
    ++columns;
    if (columns > kMostBins) return false;
    if (field.size() == line.size()) break;
    line.remove_prefix(field.size() + 1);
  }
  if (map.rows == 0) map.columns = columns;
  ++map.rows;
  return columns == map.columns && map.rows <= kMostBins;
}

}  // namespace

std::string to_png(const HeatMap& map) {
  static const std::array<uint8_t, 256 * 4> kPalette = make_palette();
  const std::vector<uint8_t> pixels = pixels_of(map);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(map.columns * kBinPixels);
  image.height = static_cast<png_uint_32>(map.rows * kBinPixels);
  image.format = PNG_FORMAT_RGBA_COLORMAP;
  image.colormap_entries = 256;
  png_alloc_size_t bytes = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::string file(bytes, '\0');
  const int done =
      png_image_write_to_memory(&image, file.data(), &bytes, 0, pixels.data(), 0, kPalette.data());
  CHECK(done != 0, "a heat map of ", map.rows, " x ", map.columns,
        " bins cannot be made a picture: ", static_cast<const char*>(image.message));
  file.resize(bytes);
  return file;
}

std::string to_csv(const HeatMap& map) {
  std::string csv;
  std::array<char, 32> text{};
  for (size_t i = 0; i < map.shares.size(); ++i) {
    if (map.shares[i] >= 0) {
      csv.append(text.data(),
                 static_cast<size_t>(std::snprintf(text.data(), text.size(), "%.4g",
                                                   static_cast<double>(map.shares[i]))));
    }
    csv += (i + 1) % static_cast<size_t>(map.columns) == 0 ? '\n' : ',';
  }
  return csv;
}

std::optional<HeatMap> heat_map_from_csv(std::string_view text) {
  HeatMap map;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos || !append_row(text.substr(0, end), map)) return std::nullopt;
    text.remove_prefix(end + 1);
  }
  if (map.rows == 0) return std::nullopt;
  return map;
}

}  // namespace tessera
