#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "runtime/config/problems.h"

namespace tessera {

class JobConfig;

/// Reads a JobConfig (launcher/job.proto), fills in the defaults that do not depend on the run, and
/// checks each field and what fields say together. Throws Error(kUsage) with one line per problem:
///   job.textproto:3:1: nodes is 0, expected 1 to 65536
/// Texts are at most 1 MiB.
JobConfig parse_job_config(std::string_view text, const std::string& name);

/// parse_job_config of a file. Throws Error(kUsage) when it cannot be read.
JobConfig load_job_config(const std::filesystem::path& file);

/// Everything that is wrong with a job whose defaults are filled in. Empty: nothing.
std::vector<FieldProblem> validate(const JobConfig& job);

/// Seconds of "HH:MM:SS" or "D-HH:MM:SS"; 0 when `time` is neither.
int64_t seconds_of(std::string_view time);

}  // namespace tessera
