#include "runtime/monitor/color_scale.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tessera {

namespace {

// Linear light to the coding of sRGB (IEC 61966-2-1).
uint8_t coded(double light) {
  const double value = std::clamp(light, 0.0, 1.0);
  const double code = value <= 0.0031308 ? 12.92 * value : 1.055 * std::pow(value, 1 / 2.4) - 0.055;
  return static_cast<uint8_t>(std::lround(255 * code));
}

Color color_at(double t) {
  const double lightness = 0.22 + 0.72 * t;
  const double chroma = 0.10 - 0.08 * t + 0.14 * t * t;
  const double hue = (305 - 200 * t) * std::numbers::pi / 180;
  const double a = chroma * std::cos(hue);
  const double b = chroma * std::sin(hue);
  // To the responses of the cones, and these to linear sRGB.
  const double l = std::pow(lightness + 0.3963377774 * a + 0.2158037573 * b, 3);
  const double m = std::pow(lightness - 0.1055613458 * a - 0.0638541728 * b, 3);
  const double s = std::pow(lightness - 0.0894841775 * a - 1.2914855480 * b, 3);
  return {coded(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
          coded(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
          coded(-0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s)};
}

ColorScale make_scale() {
  ColorScale scale;
  for (size_t i = 0; i < scale.size(); ++i) {
    scale[i] = color_at(static_cast<double>(i) / static_cast<double>(scale.size() - 1));
  }
  return scale;
}

}  // namespace

const ColorScale& color_scale() {
  static const ColorScale kScale = make_scale();
  return kScale;
}

double scale_position(double share) {
  if (!(share > kLowestShare)) return 0;
  return std::min(1.0, 1 - std::log(share) / std::log(kLowestShare));
}

}  // namespace tessera
