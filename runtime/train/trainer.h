#pragma once

#include <optional>

#include "parallel/bucket_exchange.h"
#include "runtime/data/data_mixture.h"
#include "runtime/trace/run_trace.h"
#include "runtime/train/global_batch.h"
#include "runtime/train/run_saver.h"
#include "runtime/train/stop_signal.h"
#include "runtime/train/train_state.h"

namespace tessera {

/// All that the loop works with. Nothing here is owned.
struct Training {
  const TrainConfig& config;
  const ProcessMesh& mesh;
  Stream& stream;
  const Transformer& model;
  GlobalBatch& batch;
  TrainState& state;
  BucketExchange& exchange;
  const DataMixture& data;
  const DataLoader* validation;  ///< nullptr: no validation
  RunSaver& saver;
  RunTrace& trace;
  const StopSignal& stop;
};

/// How a run ended.
enum class TrainingEnd : uint8_t {
  kFinished,  ///< all steps are done
  kStopped,   ///< asked to stop: state saved, to be run again
};

/// Numbers of the loop's own that ride along in the totals of a step.
inline constexpr size_t kStepRiders = 1 + std::tuple_size_v<SaveVotes>;

/// Runs steps until config.steps are done or a stop is asked for, and saves at the end of both.
TrainingEnd train(Training& t);

}  // namespace tessera
