#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kernels/core/device.h"
#include "tests/support/random_tensor.h"

namespace tessera::support {

/// 1 - 2 <a, b> / (<a, a> + <b, b>), which is |a - b|^2 / (|a|^2 + |b|^2): 0 when equal, 1 when
/// orthogonal, 2 when opposite; free of scale. Not finite when an element is not.
inline double error(std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double difference = 0;
  double squares = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    squares += a[i] * a[i] + b[i] * b[i];
  }
  return squares == 0 ? 0 : difference / squares;
}

/// Fails, with the worst element, unless error(actual, expected) <= tolerance.
inline void expect_close(std::span<const double> actual, std::span<const double> expected,
                         double tolerance, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  const double found = error(actual, expected);
  size_t worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double here = std::abs(actual[i] - expected[i]);
    if (!(here <= std::abs(actual[worst] - expected[worst]))) worst = i;
  }
  // Written so that a NaN fails.
  EXPECT_TRUE(found <= tolerance) << what << ": error is " << found << ", tolerance " << tolerance
                                  << "; worst at " << worst << " of " << actual.size() << ": "
                                  << (actual.empty() ? 0 : actual[worst]) << ", expected "
                                  << (actual.empty() ? 0 : expected[worst]);
}

inline void expect_close(const ConstTensorView& actual, std::span<const double> expected,
                         double tolerance, const std::string& what) {
  expect_close(to_doubles(actual), expected, tolerance, what);
}

inline void expect_same_bits(const ConstTensorView& a, const ConstTensorView& b,
                             const std::string& what) {
  ASSERT_EQ(a.shape(), b.shape()) << what;
  ASSERT_EQ(a.dtype(), b.dtype()) << what;
  std::vector<unsigned char> left(static_cast<size_t>(a.bytes()));
  std::vector<unsigned char> right(left.size());
  copy_bytes(left.data(), a.data(), a.bytes());
  copy_bytes(right.data(), b.data(), b.bytes());
  for (int64_t i = 0; i < a.bytes(); ++i) {
    const auto at = static_cast<size_t>(i);
    ASSERT_EQ(left[at], right[at]) << what << ": element " << i / size_of(a.dtype());
  }
}

/// Fails unless `f()` throws an Error whose text contains `sentence`.
template <class F>
void expect_error(F&& f, const std::string& sentence) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(sentence), std::string::npos)
        << "expected: " << sentence << "\n  thrown: " << e.what();
    return;
  }
  ADD_FAILURE() << "nothing was thrown, expected: " << sentence;
}

/// The same for what only a kernel can find, as it reads the numbers: on the CPU it throws
/// `sentence`, on a GPU it stops with `on_gpu`.
template <class F>
void expect_kernel_error(F&& f, const std::string& sentence, const std::string& on_gpu) {
  if (!kernels_can_throw()) return;
  expect_error(f, device().kind == DeviceKind::kGpu ? on_gpu : sentence);
}

/// Sizes of thread pools whose results must agree.
inline std::vector<int> thread_counts() {
  return {1, 2, 3};
}

/// `run(stream)` returns a std::vector<Tensor>: the same bits for every number of threads.
template <class Run>
void expect_same_on_any_threads(Run&& run) {
  Stream alone{device(), 1};
  const std::vector<Tensor> expected = run(alone);
  for (const int threads : thread_counts()) {
    Stream stream{device(), threads};
    const std::vector<Tensor> found = run(stream);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      expect_same_bits(found[i], expected[i], concat("output ", i, " with ", threads, " threads"));
    }
  }
}

/// Several Tensors as a vector (they only move, so an initializer list cannot hold them).
template <class... Tensors>
std::vector<Tensor> tensors(Tensors&&... parts) {
  std::vector<Tensor> all;
  (all.push_back(std::forward<Tensors>(parts)), ...);
  return all;
}

}  // namespace tessera::support
