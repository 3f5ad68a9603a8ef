#include "runtime/monitor/color_scale.h"

#include <gtest/gtest.h>

#include <cmath>

namespace tessera {
namespace {

double light(uint8_t code) {
  const double value = code / 255.0;
  return value <= 0.04045 ? value / 12.92 : std::pow((value + 0.055) / 1.055, 2.4);
}

/// Lightness of CIELAB (1976), which the scale was not made with.
double lightness(const Color& color) {
  const double y =
      0.2126 * light(color.red) + 0.7152 * light(color.green) + 0.0722 * light(color.blue);
  return 116 * std::cbrt(y) - 16;
}

TEST(ColorScale, GetsLighterInEvenSteps) {
  const ColorScale& scale = color_scale();
  EXPECT_LT(lightness(scale.front()), 15);
  EXPECT_GT(lightness(scale.back()), 88);
  const double mean = (lightness(scale.back()) - lightness(scale.front())) / 15;
  for (size_t i = 17; i < scale.size(); i += 17) {
    const double step = lightness(scale[i]) - lightness(scale[i - 17]);
    EXPECT_NEAR(step, mean, 0.35 * mean) << i;
  }
}

TEST(ColorScale, GoesFromVioletThroughGreenToYellow) {
  const Color low = color_scale().front();
  EXPECT_GT(low.blue, low.red);
  EXPECT_GT(low.red, low.green);
  const Color middle = color_scale()[150];
  EXPECT_GT(middle.green, middle.red);
  EXPECT_GT(middle.green, middle.blue);
  const Color high = color_scale().back();
  EXPECT_GT(high.red, 220);
  EXPECT_GT(high.green, 220);
  EXPECT_LT(high.blue, 170);
}

TEST(ScalePosition, IsLogarithmicAndFixed) {
  EXPECT_DOUBLE_EQ(scale_position(1), 1);
  EXPECT_DOUBLE_EQ(scale_position(2), 1);
  EXPECT_NEAR(scale_position(1e-2), 0.5, 1e-12);
  EXPECT_NEAR(scale_position(1e-3), 0.25, 1e-12);
  for (const double none : {1e-4, 1e-9, 0.0, -1.0, std::nan("")}) {
    EXPECT_EQ(scale_position(none), 0) << none;
  }
}

}  // namespace
}  // namespace tessera
