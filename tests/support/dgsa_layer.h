#pragma once

#include <cmath>
#include <vector>

#include "kernels/block_selection.h"
#include "kernels/gate_backward.h"
#include "kernels/gate_loss.h"
#include "kernels/gate_pool.h"
#include "kernels/rope.h"
#include "kernels/sparse_attention.h"
#include "tests/support/random_tensor.h"
#include "tests/support/segments.h"
#include "tests/support/selection.h"

namespace tessera::support {

/// One global KV group of a layer, from queries and keys without RoPE to its output and back, made
/// of the kernels and of matrix products written out. For tests of what they are together.
class DgsaLayer {
 public:
  struct Config {
    int64_t tokens = 117;
    int64_t block = 16;
    int64_t heads = 2;
    int64_t d = 8;
    int64_t gate_dim = 6;
    BlockRule rule{.sink_blocks = 1, .window_blocks = 2, .kept = 2};
    float strength = 0.7f;
    bool sink_logits = true;
    int64_t gate_keys = 1;
    float kl = 0.3f;
    float entropy = 0.05f;
    float z = 0.01f;
    bool pool_queries = false;  ///< the wrong way: one gate query per tile
  };
  enum Input { kQ0, kK0, kV, kQueryWeight, kKeyWeight, kPool, kWidth, kSinkLogits, kInputs };

  DgsaLayer(const Config& config, uint64_t seed)
      : c(config), segments({config.tokens}, config.block), selection(1, c.tokens, c.rule.kept) {
    const std::vector<Shape> shapes{{c.tokens, c.heads, c.d},
                                    {c.tokens, 1, c.d},
                                    {c.tokens, 1, c.d},
                                    {c.gate_dim, c.heads * c.d},
                                    {c.gate_dim, c.d},
                                    {1, c.d},
                                    {1},
                                    {c.heads}};
    const std::vector<double> scales{1, 1, 1, 0.3, 0.6, 0.5, 0, 1};
    for (size_t i = 0; i < kInputs; ++i) {
      in.push_back(random_tensor(DType::kF32, shapes[i], seed + 100 * i, scales[i]));
      gradients.emplace_back(DType::kF32, shapes[i]);
    }
    in[kWidth].as<float>()[0] = 2.1f;
    const int64_t capacity = block_list_capacity(c.tokens, c.block, c.rule);
    const SegmentGrid& grid = segments.grid();
    const auto make = [&](DType dtype, int64_t columns) {
      lists_memory.emplace_back(dtype, Shape{1, columns});
      return lists_memory.back().view();
    };
    lists.tile_offsets = make(DType::kI32, grid.max_tiles() + 1);
    lists.tile_blocks = make(DType::kI32, capacity);
    lists.tile_masks = make(DType::kU16, capacity);
    lists.block_offsets = make(DType::kI32, grid.max_blocks() + 1);
    lists.block_tiles = make(DType::kI32, capacity);
    lists.block_masks = make(DType::kU16, capacity);
  }

  float scale() const { return 1 / std::sqrt(static_cast<float>(c.d)); }
  GateRamp ramp() const { return {.strength = c.strength, .widths = in[kWidth].view()}; }
  TensorView sink_logits() const { return c.sink_logits ? in[kSinkLogits].view() : TensorView{}; }

  /// Scores and choices; `forward` calls it.
  void choose(Stream& stream) {
    const Tensor k0 = reshaped(in[kK0], {1, c.tokens, c.d});
    gate_pool_forward(stream, {kbar.view(), alpha.view(), k0.view(), in[kPool].view(),
                               segments.grid(), c.gate_keys});
    multiply(qt, in[kQ0], c.heads * c.d, in[kQueryWeight]);
    multiply(kt, kbar, c.d, in[kKeyWeight]);
    if (c.pool_queries) pool_queries();
    score_select(stream,
                 {selection.view(), qt.view(), kt.view(), segments.grid(), c.rule, c.gate_keys});
  }

  void attend(Stream& stream) {
    build_block_lists(stream, {lists, selection.view(), segments.grid()});
    sparse_attention_forward(stream, {.o = o.view(),
                                      .lse = lse.view(),
                                      .q = q.view(),
                                      .k = k.view(),
                                      .v = in[kV].view(),
                                      .grid = segments.grid(),
                                      .groups = groups,
                                      .rule = c.rule,
                                      .selection = selection.view(),
                                      .lists = lists,
                                      .ramp = ramp(),
                                      .scale = scale(),
                                      .sink_logits = sink_logits(),
                                      .block_lse = block_lse.view()});
  }

  void forward(Stream& stream) {
    q = rotated(stream, in[kQ0], false);
    k = rotated(stream, in[kK0], false);
    choose(stream);
    attend(stream);
  }

  /// Gradient of sum(d_o * o) + the auxiliary losses, in `gradients`; dlog_gate alone is kept too.
  void backward(Stream& stream, const Tensor& d_o) {
    Tensor dq(DType::kF32, q.shape());
    Tensor dk(DType::kF32, k.shape());
    sparse_attention_backward(
        stream, {.dq = dq.view(),
                 .dk = dk.view(),
                 .dv = gradients[kV].view(),
                 .dlog_gate = dlog_gate.view(),
                 .delta = delta.view(),
                 .d_o = d_o.view(),
                 .o = o.view(),
                 .lse = lse.view(),
                 .q = q.view(),
                 .k = k.view(),
                 .v = in[kV].view(),
                 .grid = segments.grid(),
                 .groups = groups,
                 .rule = c.rule,
                 .selection = selection.view(),
                 .lists = lists,
                 .ramp = ramp(),
                 .scale = scale(),
                 .sink_logits = sink_logits(),
                 .dsink_logits = c.sink_logits ? gradients[kSinkLogits].view() : TensorView{}});
    gradients[kQ0] = rotated(stream, dq, true);
    gradients[kK0] = rotated(stream, dk, true);
    const int64_t rows = count_gate_rows(segments.starts().as<int32_t>(), c.block, c.rule);
    const float per_row = 1 / static_cast<float>(std::max<int64_t>(1, rows));
    gate_loss(stream, {losses.view(), dscores.view(), selection.view(), block_lse.view(),
                       c.kl * per_row, c.entropy * per_row, c.z * per_row});
    ramp_backward(stream, {dscores.view(), gradients[kWidth].view(), dlog_gate.view(),
                           selection.view(), ramp()});
    backward_gate(stream);
  }

  Config c;
  Segments segments;
  std::vector<Tensor> in;         ///< by Input
  std::vector<Tensor> gradients;  ///< by Input
  Selection selection;
  BlockLists lists;
  Tensor q{DType::kF32, {c.tokens, c.heads, c.d}};
  Tensor k{DType::kF32, {c.tokens, 1, c.d}};
  Tensor o{DType::kF32, {c.tokens, c.heads, c.d}};
  Tensor lse{DType::kF32, {c.heads, c.tokens}};
  Tensor block_lse{DType::kF32, {1, c.tokens, c.heads, c.rule.kept}};
  Tensor dlog_gate{DType::kF32, {1, c.tokens, c.rule.kept}};
  Tensor qt{DType::kF32, {1, c.tokens, c.gate_dim}};
  Tensor kt{DType::kF32, {1, segments.grid().max_blocks() * c.gate_keys, c.gate_dim}};
  Tensor losses{DType::kF32, {3}};

 private:
  static Tensor reshaped(const Tensor& x, const Shape& shape) {
    return copy_of(x.view().reshape(shape));
  }

  Tensor rotated(Stream& stream, const Tensor& x, bool inverse) const {
    Tensor y = copy_of(x.view());
    rope(
        stream,
        {.x = y.view(), .positions = segments.grid().positions, .base = 10000, .inverse = inverse});
    return y;
  }

  /// c [m, n] (+)= a [m, k] b [n, k]^T.
  static void multiply(Tensor& c_out, const Tensor& a, int64_t k_dim, const Tensor& b) {
    const int64_t n = b.view().elements() / k_dim;
    for (int64_t i = 0; i < a.view().elements() / k_dim; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        float sum = 0;
        for (int64_t e = 0; e < k_dim; ++e) sum += at(a, i * k_dim + e) * at(b, j * k_dim + e);
        at(c_out, i * n + j) = sum;
      }
    }
  }
  static float& at(const Tensor& x, int64_t i) { return x.as<float>()[static_cast<size_t>(i)]; }

  static Tensor transposed(const Tensor& x, int64_t columns) {
    const int64_t rows = x.view().elements() / columns;
    Tensor y(DType::kF32, {columns, rows});
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) at(y, j * rows + i) = at(x, i * columns + j);
    }
    return y;
  }

  /// Every token's gate query becomes the mean over its tile.
  void pool_queries() {
    for (int64_t first = 0; first < c.tokens; first += c.block) {
      const int64_t end = std::min(c.tokens, first + c.block);
      for (int64_t e = 0; e < c.gate_dim; ++e) {
        float sum = 0;
        for (int64_t i = first; i < end; ++i) sum += at(qt, i * c.gate_dim + e);
        for (int64_t i = first; i < end; ++i) {
          at(qt, i * c.gate_dim + e) = sum / static_cast<float>(end - first);
        }
      }
    }
  }

  void backward_gate(Stream& stream) {
    const SegmentGrid& grid = segments.grid();
    Tensor dqt(DType::kF32, qt.shape());
    Tensor dkt(DType::kF32, kt.shape());
    score_backward(stream, {dqt.view(), dkt.view(), dscores.view(), selection.view(), qt.view(),
                            kt.view(), grid, c.gate_keys});
    Tensor dkbar(DType::kF32, kbar.shape());
    multiply(dkbar, dkt, c.gate_dim, transposed(in[kKeyWeight], c.d));
    multiply(gradients[kKeyWeight], transposed(dkt, c.gate_dim), kt.shape()[1],
             transposed(kbar, c.d));
    multiply(gradients[kQueryWeight], transposed(dqt, c.gate_dim), c.tokens,
             transposed(in[kQ0], c.heads * c.d));
    Tensor dq0(DType::kF32, q.shape());
    multiply(dq0, dqt, c.gate_dim, transposed(in[kQueryWeight], c.heads * c.d));
    add(gradients[kQ0], dq0);
    const Tensor k0 = reshaped(in[kK0], {1, c.tokens, c.d});
    Tensor dk0(DType::kF32, k0.shape());
    gate_pool_backward(stream, {dk0.view(), gradients[kPool].view(), dkbar.view(), kbar.view(),
                                alpha.view(), k0.view(), in[kPool].view(), grid, c.gate_keys});
    add(gradients[kK0], dk0);
  }
  static void add(Tensor& y, const Tensor& x) {
    for (int64_t i = 0; i < y.view().elements(); ++i) at(y, i) += at(x, i);
  }

  const std::vector<int32_t> groups{0};
  std::vector<Tensor> lists_memory;
  Tensor kbar{DType::kF32, {1, segments.grid().max_blocks() * c.gate_keys, c.d}};
  Tensor alpha{DType::kF32, {1, c.tokens}};
  Tensor delta{DType::kF32, {c.heads, c.tokens}};
  Tensor dscores{DType::kF32, {1, c.tokens, c.rule.kept + 1}};
};

}  // namespace tessera::support
