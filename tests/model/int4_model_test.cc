// A model with weights in 4 bits is the model of the numbers that they stand for.

#include <gtest/gtest.h>

#include "kernels/core/copy.h"
#include "tests/kernels/int4_values.h"
#include "tests/model/tiny_model.h"
#include "tests/support/compare.h"

namespace tessera {
namespace {

using support::tiny_config;
using support::TinyBatch;
using support::TinyModel;

/// Rows are runs of 64 wherever 4 bits may be; every expert is chosen, because two roundings of one
/// sum may send a token to another one.
TrainConfig config() {
  return tiny_config({"runtime.precision=BF16", "model.hidden=64", "model.head_dim=16",
                      "model.intermediate=128", "model.moe.intermediate=64",
                      "model.moe.experts_per_token=4", "batch.sequences=1"});
}

/// Puts `plain` into 4 bits, and the numbers of these back into `plain`. Returns how many.
int64_t quantize(Parameter& parameter, Parameter& plain, Stream& stream) {
  const Shape& codes = parameter.codes.shape();
  const Shape matrices{codes[0], codes[1], 2 * codes[2]};
  const support::Tensor values = support::copy_of(plain.value.reshape(matrices));
  const support::Int4 int4(values.view());
  copy(stream, int4.view().codes, parameter.codes);
  copy(stream, int4.view().scales, parameter.scales);
  const auto numbers = support::int4_values(int4.view());
  copy(stream, support::from_doubles(DType::kBF16, matrices, numbers).view(),
       plain.value.reshape(matrices));
  stream.synchronize();
  return matrices.elements();
}

TEST(Int4Model, IsTheModelOfItsNumbers) {
  const TrainConfig config = tessera::config();
  TinyModel plain(config);
  ParameterStore store;
  const Transformer model(config.model(), DType::kBF16, Recompute::kNothing, store);
  store.allocate_int4(support::bare_device());
  int64_t in_4_bits = 0;
  int64_t all = 0;
  // In order: global and local groups have parts of one name.
  for (size_t i = 0; i < store.all().size(); ++i) {
    Parameter& parameter = store.all()[i];
    Parameter& other = plain.store.all()[i];
    all += parameter.shard.local().elements();
    if (parameter.int4().empty()) {
      copy(plain.stream, other.value, parameter.value);
    } else {
      in_4_bits += quantize(parameter, other, plain.stream);
    }
  }
  // Projections, both feed-forward layers and all experts: the rest is embedding, head and gates.
  EXPECT_GT(in_4_bits, 3 * all / 4);
  const TinyBatch batch(config, 5);
  const Shape logits{std::ssize(batch.tokens), config.model().vocabulary()};
  const Buffer memory(support::bare_device(), 2 * logits.elements() * 4);
  const TensorView expected = memory.view(DType::kF32, logits);
  const TensorView found = memory.view(DType::kF32, logits, logits.elements() * 4);
  Transformer::Run run = plain.run(support::tiny_plan());
  plain.model.logits(run, batch.view(), expected);
  model.logits(run, batch.view(), found);
  support::expect_close(found, support::to_doubles(expected), 1e-4, "logits");
}

}  // namespace
}  // namespace tessera
