#pragma once

#include <array>
#include <cstdint>

namespace tessera {

struct Color {
  uint8_t red = 0;
  uint8_t green = 0;
  uint8_t blue = 0;
};

/// The colours of heat maps, from the darkest for the lowest value to the lightest. In OKLab
/// (Ottosson 2020), where equal distances look equal, for t from 0 to 1:
///   lightness 0.22 + 0.72 t, chroma 0.10 - 0.08 t + 0.14 t^2, hue 305 - 200 t degrees,
/// from violet through blue and green to yellow. Lightness alone orders them, so they can be told
/// apart without seeing colours, and in print.
using ColorScale = std::array<Color, 255>;
const ColorScale& color_scale();

/// Where a share lies on the logarithmic scale that all heat maps have, 0 to 1: at kLowestShare and
/// below 0, at 1 and above 1. A fixed scale, so that one picture can be held against another.
inline constexpr double kLowestShare = 1e-4;
double scale_position(double share);

}  // namespace tessera
