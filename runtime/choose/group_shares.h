#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace tessera {

/// alpha of each KV group of each layer: what full attention has of the group's output.
using GroupShares = std::vector<std::vector<double>>;

/// alpha_c = clip(x_c - tau, 0, 1) with the tau for which they add to `total`, from 0 to their
/// number: the point of that plane in the cube that is nearest to x. tau is the price of the total,
/// exactly.
std::vector<double> with_total(std::vector<double> x, double total);

/// What the alphas of a layer add to after step `step` of `steps`, counted from 1: falls
/// geometrically from all groups to those that are chosen within three quarters of the steps.
double total_of_step(int64_t step, int64_t steps, int64_t groups, int64_t chosen);

/// The alphas of one layer while they are learned. All begin as 1.
class LayerShares {
 public:
  explicit LayerShares(int64_t groups);

  const std::vector<double>& values() const { return values_; }
  /// One step against the slopes g of the loss. With h_c = g_c - mean g, their running mean m
  /// (0.9) and the running mean v (0.99) of mean h^2, both corrected for their start:
  ///   alpha = with_total(alpha - rate m / sqrt(v), total).
  /// The scale of the loss drops out, and so does what all groups have in common.
  void follow(std::span<const double> slopes, double total, double rate);

 private:
  std::vector<double> values_;
  std::vector<double> means_;
  double square_ = 0;
  int64_t steps_ = 0;
};

}  // namespace tessera
