#include "runtime/import/state_in_pieces.h"

#include "checkpoint/writer.h"
#include "parallel/agreement.h"
#include "runtime/config/train.pb.h"

namespace tessera {

SaveReport save_in_pieces(CheckpointStore& store, StateInPieces& state) {
  int64_t bytes = 0;
  for (int piece = 0; piece < state.pieces(); ++piece) {
    bytes += part_bytes(state.contents(piece), piece);
  }
  const std::optional<SaveTicket> ticket = store.begin(state.contents(0).step, bytes);
  std::optional<Failure> failure;
  if (ticket) {
    failure = failure_of([&] {
      for (int piece = 0; piece < state.pieces(); ++piece) {
        state.fill(piece);
        FileIdentity identity = ticket->identity;
        identity.writer = piece;
        write_part(open_checkpoint(*ticket), identity, state.contents(piece), [](const char*) {});
      }
    });
  }
  SaveReport report = store.finish(state.contents(0), state.pieces(), failure);
  if (!report.committed) {
    throw Error(failure ? failure->code : ExitCode::kTryAgain, report.failure);
  }
  return report;
}

SaveReport save_in_pieces(const TrainConfig& config, StateInPieces& state) {
  CheckpointStore store(config.run_dir(),
                        {.retention = {.keep_last = config.checkpoint().keep_last(),
                                       .keep_every = config.checkpoint().keep_every()},
                         .git_hash = {},
                         .note = {},
                         .on_stage = {}});
  return save_in_pieces(store, state);
}

}  // namespace tessera
