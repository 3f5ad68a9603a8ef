#include "kernels/attention_cudnn.h"

namespace tessera::gpu {

// cuDNN was not found when the build was configured, or the build has no CUDA backend.
bool cudnn_is_built() {
  return false;
}
std::unique_ptr<AttentionPlan> make_cudnn_attention_plan(const AttentionPlanShape&, int64_t) {
  return nullptr;
}
int64_t describe_cudnn_attention(const AttentionPlanShape&) {
  return 0;
}

}  // namespace tessera::gpu
