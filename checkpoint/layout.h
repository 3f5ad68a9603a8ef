#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace tessera {

/// Names within RUN/checkpoints, and their meaning: docs/checkpoint_format.md.
constexpr const char* kCheckpointsName = "checkpoints";
constexpr const char* kFenceName = "fence";
constexpr const char* kTrashName = ".trash";
constexpr const char* kBadName = ".bad";
constexpr const char* kLatestName = "latest";
/// Names within one checkpoint.
constexpr const char* kDataName = "d";
constexpr const char* kPartsName = "p";
constexpr const char* kManifestName = "MANIFEST.pb";
constexpr const char* kMarkerName = "COMMITTED";

/// "step-00001000".
std::string checkpoint_name(int64_t step);
/// "step-00001000.e000007": used when another incarnation has taken the plain name.
std::string checkpoint_name(int64_t step, int64_t epoch);
/// The step of a directory with one of these names; empty for any other name.
std::optional<int64_t> step_of_name(const std::string& name);

/// ".new-e000007": the directory of a save of this incarnation until it has its name.
std::string new_name(int64_t epoch);
std::optional<int64_t> epoch_of_new_name(const std::string& name);

/// "e000007".
std::string epoch_name(int64_t epoch);
std::optional<int64_t> epoch_of_name(const std::string& name);

/// "e000007-r00000-0.shard", unique in the run: no file of one incarnation is ever taken for, or
/// written over by, one of another.
std::string shard_name(int64_t epoch, int writer, int index);
/// "e000007-r00000.pb".
std::string part_name(int64_t epoch, int writer);

}  // namespace tessera
