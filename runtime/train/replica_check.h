#pragma once

#include <string>

#include "model/parameter.h"
#include "parallel/process_mesh.h"

namespace tessera {

/// Compares what several ranks hold copies of: parameters and buffers over the ranks that have the
/// same shard, and `small_state`, which is the same on every rank of the world. Values of other
/// ranks must have arrived (BucketExchange::finish_gathers). One pass over the values in memory,
/// and 8 bytes a parameter to each replica. Collective.
///
/// A difference is silent corruption, of memory or by a processor, or a fault of this program.
/// Then every rank throws kTryAgain, which names the rank that the majority of the replicas
/// contradicts, its host and the first of its tensors that differs.
void check_replicas(Stream& stream, const ProcessMesh& mesh, const ParameterStore& store,
                    const std::string& small_state);

}  // namespace tessera
