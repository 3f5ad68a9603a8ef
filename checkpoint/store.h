#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/block_file.h"
#include "checkpoint/candidates.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/fence.h"
#include "checkpoint/reader.h"
#include "checkpoint/retention.h"
#include "parallel/agreement.h"

namespace tessera {

struct StoreOptions {
  RetentionPolicy retention;
  /// A save is not started unless 1.1 times its size and this much are free.
  int64_t reserve_bytes = int64_t{64} << 20;
  std::string git_hash;
  /// Who holds the run directory now: host, job id. For people.
  std::string note;
  /// Called at each stage of a save with its name, as "manifest renamed": for fault injection.
  std::function<void(const char* stage)> on_stage;
};

/// How a save went. Trouble of the storage is no reason to stop training: older checkpoints are
/// intact, and the caller goes on and tries again at the next save.
struct [[nodiscard]] SaveReport {
  bool committed = false;
  std::string failure;  ///< one sentence, when not committed
  std::filesystem::path path;
  int64_t bytes = 0;
  double write_seconds = 0;   ///< data file of the slowest rank, until it is durable
  double commit_seconds = 0;  ///< manifest, marker, directories
  double stall_seconds = 0;   ///< that training has waited for it
  double seconds = 0;         ///< from its begin to its end
  int64_t skipped = 0;        ///< saves of this run that were due while another was under way
};

/// What a rank needs to write its part of a save that has begun.
struct SaveTicket {
  std::filesystem::path directory;  ///< the new checkpoint's
  FileIdentity identity;            ///< of writer 0's file; others put their rank in
};

/// The directory of a save, for another writer than that of rank 0. Throws kTryAgain when the
/// name is a newer incarnation's meanwhile.
Directory open_checkpoint(const SaveTicket& ticket);

/// The checkpoints of a run, held by its rank 0 for writing. Making one starts a new incarnation
/// of the run: it raises the fence, which stops an older incarnation that still runs from
/// committing, and clears away what interrupted saves have left.
class CheckpointStore {
 public:
  explicit CheckpointStore(const std::filesystem::path& run_directory, StoreOptions options = {});

  const std::filesystem::path& directory() const { return directory_; }
  int64_t epoch() const { return fence_.epoch; }
  std::vector<Candidate> list() const { return list_checkpoints(directory_); }

  /// Calls `load` with the newest checkpoint that is valid. When `load` throws and the checkpoint
  /// turns out to be damaged, or one was damaged from the start, it is moved to .bad, the log says
  /// why in one line, and the next older one is tried. Errors that are not damage (another model,
  /// a newer format, storage that does not answer) are thrown and move nothing: it never goes back
  /// past a checkpoint that it cannot prove to be damaged.
  /// Empty when the run has never committed a checkpoint; throws kNoCheckpoint when there were
  /// some and none is valid, rather than start from scratch.
  std::optional<CheckpointId> restore(const std::function<void(const CheckpointReader&)>& load);
  /// The same for one checkpoint that the user named; throws when it cannot be loaded.
  CheckpointId restore_from(const std::filesystem::path& checkpoint,
                            const std::function<void(const CheckpointReader&)>& load);

  /// Saves and commits, then deletes what the retention policy lets go. Durable when it returns.
  /// A step that this incarnation has already saved is not saved again.
  /// Throws kTryAgain when a newer incarnation has taken over: the caller must stop.
  SaveReport save(const CheckpointContents& contents);

  /// save() in steps, for CheckpointSaver: a save whose parts come from many writers.
  /// Makes the directory, when there is room for `bytes`. No ticket when the save has failed
  /// already or is not needed: then nobody writes, and finish() says why.
  std::optional<SaveTicket> begin(int64_t step, int64_t bytes);
  /// The part of writer 0, after begin() has given a ticket. Returns why it failed, if it did.
  std::optional<Failure> write(const CheckpointContents& contents);
  /// After all writers have written: commits, or, when there is a `failure` of one of them, gives
  /// the space back. `contents` are writer 0's.
  SaveReport finish(const CheckpointContents& contents, int writers,
                    const std::optional<Failure>& failure);

 private:
  /// A save between begin() and finish().
  struct OpenSave {
    SaveReport report;
    Directory checkpoints;
    std::string name;
    Directory directory;  ///< the checkpoint, `name` in `checkpoints`
    bool begun = false;   ///< it is there
  };

  void stage(const char* name) const;
  std::optional<CheckpointId> restore_newest(
      const std::function<void(const CheckpointReader&)>& load);
  void quarantine(const Candidate& candidate);
  void open_directory(int64_t step);
  void commit_parts(OpenSave& save, const CheckpointContents& contents, int writers) const;
  bool is_replaced() const;
  void retire();

  std::filesystem::path directory_;
  StoreOptions options_;
  Fence fence_;
  CheckpointId parent_;
  std::optional<SaveReport> last_;
  OpenSave open_;
};

}  // namespace tessera
