#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace tessera {

class TrainConfig;

/// Parses, overrides (`a.b.c=value`, in order), resolves and validates: all that can be checked
/// before the number of ranks is known. `name` is what messages call the text. Throws
/// Error(kUsage) with one line per problem:
///   run.textproto:12:5: model.kv_heads is 3, ...      written in the file
///   --set model.kv_heads=3: model.kv_heads is 3, ...  given on the command line
///   run.textproto: steps is missing or 0, ...         written nowhere
/// Texts are at most 1 MiB.
TrainConfig parse_train_config(std::string_view text, const std::string& name,
                               std::span<const std::string> overrides = {});

/// parse_train_config of a file. Throws Error(kUsage) when it cannot be read.
TrainConfig load_train_config(const std::filesystem::path& file,
                              std::span<const std::string> overrides = {});

/// The ranks of the mesh that a configuration describes, an axis that is not set counting as 1; at
/// most 2^30.
int described_ranks(const TrainConfig& config);

/// Completes a configuration for a job of `world` ranks: mesh.data and batch.micro_sequences, which
/// may be 0 before, are set. Throws Error(kUsage), one line per problem, when the mesh does not
/// multiply to `world` or does not divide what it cuts.
void resolve_mesh(TrainConfig& config, int world);

}  // namespace tessera
