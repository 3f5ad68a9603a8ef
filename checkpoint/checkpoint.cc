#include "checkpoint/checkpoint.h"

namespace tessera {

const char* name_of(TensorKind kind) {
  switch (kind) {
    case TensorKind::kParameter:
      return "parameter";
    case TensorKind::kMaster:
      return "master";
    case TensorKind::kExpAvg:
      return "exp_avg";
    case TensorKind::kExpAvgSq:
      return "exp_avg_sq";
    case TensorKind::kBuffer:
      return "buffer";
  }
  return "?";
}

}  // namespace tessera
