#include "kernels/attention_tile.h"

#include <gtest/gtest.h>

#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"
#include "tests/support/tolerance.h"

namespace tessera::cpu {
namespace {

using support::Tensor;

template <class T>
std::vector<const T*> rows_of(const Tensor& x) {
  std::vector<const T*> rows;
  for (int64_t i = 0; i < x.shape()[0]; ++i) {
    rows.push_back(x.as<T>().data() + i * x.shape()[1]);
  }
  return rows;
}

double value(const std::vector<double>& x, int64_t columns, int64_t row, int64_t column) {
  return x[static_cast<size_t>(row * columns + column)];
}

/// C = keep C + A B with B packed by `pack` from the transposed or the plain matrix.
template <class T>
void expect_product(int64_t rows, int64_t inner, int64_t columns, bool transposed, bool keep) {
  const DType dtype = kDTypeOf<T>;
  const int64_t padded = transposed ? kPanel : (columns + 15) / 16 * 16;
  const Tensor a = support::random_tensor(dtype, {rows, inner}, 1);
  const Tensor b = transposed ? support::random_tensor(dtype, {columns, inner}, 2)
                              : support::random_tensor(dtype, {inner, columns}, 2);
  Tensor c = support::random_tensor(DType::kF32, {rows, padded}, 3);
  const Tensor factors = support::random_tensor(DType::kF32, {rows}, 4);

  const auto of_a = support::to_doubles(a);
  const auto of_b = support::to_doubles(b);
  std::vector<double> expected = support::to_doubles(c);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < padded; ++n) {
      double& x = expected[static_cast<size_t>(r * padded + n)];
      x *= keep ? static_cast<double>(factors.as<float>()[static_cast<size_t>(r)]) : 0;
      for (int64_t k = 0; k < inner && n < columns; ++k) {
        x += value(of_a, inner, r, k) *
             (transposed ? value(of_b, inner, n, k) : value(of_b, columns, k, n));
      }
    }
  }

  std::vector<Factor<T>> panel(static_cast<size_t>((inner + 1) / kPerFactor<T> * padded));
  if (transposed) {
    pack_columns<T>(panel.data(), rows_of<T>(b).data(), columns, inner);
  } else {
    pack_rows<T>(panel.data(), rows_of<T>(b).data(), inner, columns);
  }
  std::vector<const Factor<T>*> a_rows;
  std::vector<float*> c_rows;
  for (int64_t r = 0; r < rows; ++r) {
    a_rows.push_back(reinterpret_cast<const Factor<T>*>(rows_of<T>(a)[static_cast<size_t>(r)]));
    c_rows.push_back(c.as<float>().data() + r * padded);
  }
  multiply<Factor<T>>({c_rows.data(), keep ? factors.as<float>().data() : nullptr, a_rows.data(), 1,
                       panel.data(), padded, rows, inner / kPerFactor<T>, padded});
  support::expect_close(c, expected, 1e-12,
                        concat(name_of(dtype), " ", rows, " x ", inner, " x ", columns));
}

template <class T>
void expect_products() {
  for (const int64_t rows : {1, 2, 3, 4, 7, 16}) {
    for (const bool keep : {false, true}) {
      expect_product<T>(rows, 8, 64, true, keep);
      expect_product<T>(rows, 40, 17, true, keep);
      expect_product<T>(rows, 72, 1, true, keep);
      expect_product<T>(rows, 64, 64, false, keep);
      expect_product<T>(rows, 16, 8, false, keep);
      expect_product<T>(rows, 48, 136, false, keep);
      expect_product<T>(rows, 32, 40, false, keep);
    }
  }
}

TEST(AttentionTile, MultipliesPackedPanels) {
  expect_products<float>();
  expect_products<BF16>();
}

TEST(AttentionTile, AnOddRowIsPairedWithZeros) {
  const Tensor x = support::random_tensor(DType::kBF16, {3, 40}, 1);
  std::vector<BF16x2> panel(2 * 48, BF16x2{0xDEADBEEF});
  pack_rows<BF16>(panel.data(), rows_of<BF16>(x).data(), 3, 40);
  for (size_t n = 0; n < 48; ++n) {
    const auto bits = [&](size_t row) -> uint32_t { return x.as<BF16>()[row * 40 + n].bits; };
    EXPECT_EQ(panel[n].bits, n < 40 ? bits(0) | bits(1) << 16 : 0);
    EXPECT_EQ(panel[48 + n].bits, n < 40 ? bits(2) : 0);
  }
}

template <class T>
void expect_factors() {
  const Tensor x = support::random_tensor(DType::kF32, {2, 32}, 7);
  const auto row = [&](size_t r) { return x.as<float>().data() + 32 * r; };
  std::vector<Factor<T>> one(32);
  to_factors<T>(one.data(), row(0), 2);
  std::vector<Factor<T>> two(2 * kPanel);
  to_factors_of_two_rows<T>(two.data(), row(0), row(1), 2);
  for (size_t n = 0; n < 32; ++n) {
    const T first = from_float<T>(row(0)[n]);
    const T second = from_float<T>(row(1)[n]);
    EXPECT_EQ(to_float(reinterpret_cast<const T*>(one.data())[n]), to_float(first));
    const auto* pair = reinterpret_cast<const T*>(&two[n]);
    EXPECT_EQ(to_float(pair[0]), to_float(first));
    const auto* other =
        kPerFactor<T> == 2 ? pair + 1 : reinterpret_cast<const T*>(&two[n + kPanel]);
    EXPECT_EQ(to_float(*other), to_float(second));
  }
}

TEST(AttentionTile, RoundsToFactors) {
  expect_factors<float>();
  expect_factors<BF16>();
}

}  // namespace
}  // namespace tessera::cpu
