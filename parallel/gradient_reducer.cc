#include "parallel/gradient_reducer.h"

#include <cmath>
#include <utility>

#include "kernels/reduce.h"

namespace tessera {

GradientReducer::GradientReducer(Communicator& ranks, std::vector<TensorView> gradients)
    : ranks_(ranks), gradients_(std::move(gradients)) {
  for (const TensorView& gradient : gradients_) {
    CHECK(gradient.dtype() == DType::kF32, "gradient_reducer: a gradient ", gradient.shape(),
          " is ", name_of(gradient.dtype()), ", expected f32");
  }
}

void GradientReducer::reduce(Stream& stream) {
  for (const TensorView& gradient : gradients_) {
    ranks_.all_reduce(stream, gradient, Reduction::kSum);
  }
}

GradientNorm gradient_norm(Stream& stream, std::span<const TensorView> gradients) {
  double squares = 0;
  for (const TensorView& gradient : gradients) squares += sum_of_squares(stream, gradient);
  // The square of a float cannot overflow a double, so only an element that is not finite can make
  // the sum so.
  return {std::sqrt(squares), std::isfinite(squares)};
}

}  // namespace tessera
