#include "kernels/swiglu.h"

#include <gtest/gtest.h>

#include "tests/reference/activation.h"
#include "tests/reference/complex_step.h"
#include "tests/support/compare.h"
#include "tests/support/tolerance.h"

namespace tessera {
namespace {

using reference::Complex;
using support::copy_of;
using support::plan_view;
using support::random_tensor;
using support::Tensor;
using support::to_doubles;

TEST(Swiglu, ForwardMatchesTheReference) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    for (const int64_t dim : {1, 16, 53}) {
      SCOPED_TRACE(concat(name_of(dtype), " dim ", dim));
      const Tensor gate_up = random_tensor(dtype, {7, 2 * dim}, 1, 4);
      const Tensor weight = random_tensor(DType::kF32, {7}, 2);
      const Tensor y(dtype, {7, dim});
      swiglu_forward(stream, {.y = y, .gate_up = gate_up, .row_weight = weight});
      support::expect_close(y, reference::swiglu(to_doubles(gate_up), to_doubles(weight)),
                            support::tolerance(dtype), "weighted y");
      swiglu_forward(stream, {.y = y, .gate_up = gate_up});
      support::expect_close(y, reference::swiglu(to_doubles(gate_up), std::vector<double>(7, 1.0)),
                            support::tolerance(dtype), "y");
    }
  }
}

TEST(Swiglu, LargeGatesNeitherOverflowNorGiveNan) {
  Stream stream{support::device()};
  const std::vector<double> gate_up{-1e30, -100, 100, 1e30, 1, 1, 1, 1};
  const Tensor y(DType::kF32, {1, 4});
  swiglu_forward(stream, {.y = y, .gate_up = support::from_doubles(DType::kF32, {1, 8}, gate_up)});
  EXPECT_EQ(to_doubles(y), (std::vector<double>{0, 0, 100, static_cast<double>(1e30f)}));
}

TEST(Swiglu, BackwardIsTheGradientOfForward) {
  Stream stream{support::device(), 2};
  for (const DType dtype : support::dtypes()) {
    SCOPED_TRACE(name_of(dtype));
    const Tensor gate_up = random_tensor(dtype, {3, 38}, 3, 2);
    const Tensor weight = random_tensor(DType::kF32, {3}, 4);
    const Tensor dy = random_tensor(dtype, {3, 19}, 5);
    const Tensor dgate_up(dtype, {3, 38});
    const Tensor dweight = support::filled(DType::kF32, {3}, 9);  // overwritten
    swiglu_backward(stream, {.dgate_up = dgate_up,
                             .dy = dy,
                             .gate_up = gate_up,
                             .row_weight = weight,
                             .drow_weight = dweight});
    // The loss sum(dy a w) has the gradient dy w in a, which is what dy means here.
    const auto loss = [&](const std::vector<Complex>& at, const std::vector<Complex>& at_weight) {
      return reference::weighted_sum(to_doubles(dy), reference::swiglu(at, at_weight));
    };
    const auto constant_weight = reference::as<Complex>(to_doubles(weight));
    const auto constant_gate_up = reference::as<Complex>(to_doubles(gate_up));
    support::expect_close(
        dgate_up,
        reference::complex_step_gradient(to_doubles(gate_up),
                                         [&](const auto& at) { return loss(at, constant_weight); }),
        support::tolerance(dtype), "dgate_up");
    support::expect_close(
        dweight,
        reference::complex_step_gradient(
            to_doubles(weight), [&](const auto& at) { return loss(constant_gate_up, at); }),
        support::tolerance(DType::kF32), "drow_weight");
  }
}

TEST(Swiglu, BackwardMayOverwriteItsInputsAndGivesYAgain) {
  Stream stream{support::device()};
  const Tensor gate_up = random_tensor(DType::kBF16, {5, 60}, 6);
  const Tensor dy = random_tensor(DType::kBF16, {5, 30}, 7);
  const Tensor weight = random_tensor(DType::kF32, {5}, 8);
  const Tensor y(DType::kBF16, {5, 30});
  swiglu_forward(stream, {.y = y, .gate_up = gate_up, .row_weight = weight});
  const Tensor apart(DType::kBF16, {5, 60});
  const Tensor dweight(DType::kF32, {5});
  swiglu_backward(stream, {.dgate_up = apart,
                           .dy = dy,
                           .gate_up = gate_up,
                           .row_weight = weight,
                           .drow_weight = dweight});
  swiglu_backward(stream, {.dgate_up = gate_up,
                           .dy = dy,
                           .gate_up = gate_up,
                           .row_weight = weight,
                           .drow_weight = dweight,
                           .y = dy});
  support::expect_same_bits(gate_up, apart, "dgate_up over gate_up");
  support::expect_same_bits(dy, y, "y over dy");
}

TEST(Swiglu, GivesTheSameBitsOnAnyNumberOfThreads) {
  const Tensor gate_up = random_tensor(DType::kBF16, {90, 1536}, 9);
  const Tensor dy = random_tensor(DType::kBF16, {90, 768}, 10);
  const Tensor weight = random_tensor(DType::kF32, {90}, 11);
  support::expect_same_on_any_threads([&](Stream& stream) {
    Tensor y(DType::kBF16, {90, 768});
    Tensor dgate_up(DType::kBF16, {90, 1536});
    Tensor dweight(DType::kF32, {90});
    swiglu_forward(stream, {.y = y, .gate_up = gate_up});
    swiglu_backward(stream, {.dgate_up = dgate_up,
                             .dy = dy,
                             .gate_up = gate_up,
                             .row_weight = weight,
                             .drow_weight = dweight});
    return support::tensors(std::move(y), std::move(dgate_up), std::move(dweight));
  });
}

TEST(Swiglu, SaysWhatIsWrong) {
  Stream stream(Device{DeviceKind::kPlan});
  const TensorView gate_up = plan_view(DType::kF32, {4, 16});
  support::expect_error(
      [&] {
        swiglu_forward(stream, {.y = plan_view(DType::kF32, {4, 16}), .gate_up = gate_up});
      },
      "swiglu_forward: y is f32 [4, 16], expected f32 [rows, dim] = [4, 8]");
  support::expect_error(
      [&] {
        swiglu_backward(stream, {.dgate_up = gate_up,
                                 .dy = plan_view(DType::kF32, {4, 8}),
                                 .gate_up = gate_up,
                                 .row_weight = plan_view(DType::kF32, {4})});
      },
      "swiglu_backward: row_weight is given, but drow_weight is missing");
}

}  // namespace
}  // namespace tessera
