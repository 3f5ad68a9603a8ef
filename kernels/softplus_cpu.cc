#include <algorithm>
#include <cmath>

#include "kernels/softplus.h"

namespace tessera::cpu {

void softplus_forward(ThreadPool&, const SoftplusForward& a) {
  const auto x = a.x.as<float>();
  const auto y = a.y.as<float>();
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = std::max(x[i], 0.0f) + std::log1p(std::exp(-std::abs(x[i])));
  }
}

void softplus_backward(ThreadPool&, const SoftplusBackward& a) {
  const auto x = a.x.as<float>();
  const auto dx = a.dx.as<float>();
  const auto dy = a.dy.as<float>();
  for (size_t i = 0; i < x.size(); ++i) dx[i] += dy[i] / (1 + std::exp(-x[i]));
}

}  // namespace tessera::cpu
