#pragma once

#include "kernels/attention_plan.h"

namespace tessera::gpu {

/// cuDNN's attention, through its backend API. The graph is written out operation by operation, in
/// the one order that its attention engines recognise up to 9.20; from 9.21 on there are operations
/// for mask and softmax, which are not used. All of it is for causal attention on neighbours in
/// memory, see planned_attention.
///
/// Forward only. cuDNN 9.19 has a deterministic backward just as one that keeps the gradient of
/// all scores in its workspace, heads x tokens^2 x 2 bytes per segment: 512 MiB for 16 heads of
/// 4096 tokens. Its other backward adds up dq in an order that depends on timing.
///
/// Whoever uses a plan has to compare it with a kernel of ours first (checked_attention.h).

/// Whether this build has cuDNN.
bool cudnn_is_built();

/// A plan for the device that is current. nullptr in builds without cuDNN. Throws Error, which
/// names the call, when the library or the device is missing or no engine takes the graph. Engines
/// that call themselves nondeterministic are passed over, and so are plans with more than
/// `most_bytes` of workspace.
std::unique_ptr<AttentionPlan> make_cudnn_attention_plan(const AttentionPlanShape& shape,
                                                         int64_t most_bytes);

/// Describes the graph to cuDNN without a device: it checks every tensor and operation by itself,
/// and how they hang together. Returns how many operations there are; 0 in builds without cuDNN.
int64_t describe_cudnn_attention(const AttentionPlanShape& shape);

}  // namespace tessera::gpu
