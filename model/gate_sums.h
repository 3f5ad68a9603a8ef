#pragma once

#include "model/transformer.h"

namespace tessera {

/// Owns what the layers of a model add to in a step that measures its gates (GateSums).
class GateSumsBuffer {
 public:
  GateSumsBuffer(Device device, const Transformer& model);

  /// The sums; with or without the maps.
  GateSums views(bool maps) const;
  void clear(Stream& stream, bool maps);
  /// Starts a copy of the sums to host memory: when the stream is past it, they are in what this
  /// returns, until the next call.
  GateSums start_read(Stream& stream, bool maps);

 private:
  Buffer buffer_;
  Buffer host_;
  GateSums views_;
  GateSums host_views_;
};

}  // namespace tessera
