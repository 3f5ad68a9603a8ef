#pragma once

#include "model/transformer.h"

namespace tessera {

/// Owns what the layers of a model add to (StepSums).
class StepSumsBuffer {
 public:
  /// Zeros. A model without MoE layers gets one unused row of counts.
  StepSumsBuffer(Device device, const Transformer& model);

  StepSums& views() { return views_; }
  const StepSums& views() const { return views_; }
  void clear(Stream& stream);
  /// A copy of all sums in host memory, valid until the next call. Waits for the stream.
  const StepSums& read(Stream& stream);

 private:
  Buffer buffer_;
  Buffer host_;
  StepSums views_;
  StepSums host_views_;
};

}  // namespace tessera
