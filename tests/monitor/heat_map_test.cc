#include "runtime/monitor/heat_map.h"

#include <gtest/gtest.h>
#include <png.h>

#include <cmath>

#include "runtime/monitor/color_scale.h"

namespace tessera {
namespace {

HeatMap sample() {
  return {.rows = 2, .columns = 3, .shares = {1.0f, -1.0f, -1.0f, 1e-3f, 0.012345f, 0.0f}};
}

std::vector<uint8_t> decoded(const std::string& png, int64_t height, int64_t width) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  EXPECT_NE(png_image_begin_read_from_memory(&image, png.data(), png.size()), 0) << image.message;
  EXPECT_EQ(image.height, height);
  EXPECT_EQ(image.width, width);
  image.format = PNG_FORMAT_RGBA;
  std::vector<uint8_t> pixels(PNG_IMAGE_SIZE(image));
  EXPECT_NE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr), 0);
  return pixels;
}

TEST(HeatMap, PixelsHaveTheColoursOfTheScale) {
  const std::vector<uint8_t> pixels = decoded(to_png(sample()), 2 * kBinPixels, 3 * kBinPixels);
  const auto color_of_bin = [&](int64_t row, int64_t column) {
    const int64_t y = row * kBinPixels + kBinPixels - 1;
    return &pixels[static_cast<size_t>(4 * (y * 3 * kBinPixels + column * kBinPixels + 1))];
  };
  const ColorScale& scale = color_scale();
  const auto expect = [&](const uint8_t* found, size_t shade) {
    EXPECT_EQ(found[0], scale[shade].red);
    EXPECT_EQ(found[1], scale[shade].green);
    EXPECT_EQ(found[2], scale[shade].blue);
    EXPECT_EQ(found[3], 255);
  };
  expect(color_of_bin(0, 0), 254);
  expect(color_of_bin(1, 0), static_cast<size_t>(std::lround(254 * 0.25)));
  expect(color_of_bin(1, 2), 0);
  EXPECT_EQ(color_of_bin(0, 1)[3], 0) << "nobody sees this bin";
}

TEST(HeatMap, CsvComesBack) {
  const std::string csv = to_csv(sample());
  EXPECT_EQ(csv, "1,,\n0.001,0.01235,0\n");
  const std::optional<HeatMap> read = heat_map_from_csv(csv);
  ASSERT_TRUE(read.has_value());
  EXPECT_EQ(read->rows, 2);
  EXPECT_EQ(read->columns, 3);
  EXPECT_EQ(to_csv(*read), csv);
}

TEST(HeatMap, DamagedCsvIsNoMap) {
  for (const char* text : {"", "1,2", "1,0\n0\n", "a,b\n", "0.5;1\n", "-1,1\n", "7,0\n", "nan\n",
                           "0.1,0.2\n0.3,0.", "\0\n"}) {
    EXPECT_FALSE(heat_map_from_csv(text).has_value()) << text;
  }
  std::string wide(2000, ',');
  EXPECT_FALSE(heat_map_from_csv(wide + "\n").has_value());
}

}  // namespace
}  // namespace tessera
