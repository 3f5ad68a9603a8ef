#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tessera {

enum class Verdict : uint8_t { kOk, kWarn, kFail };

/// "ok", "warn", "fail".
const char* name_of(Verdict verdict);

/// One thing that was looked at: one line of the doctor.
struct Finding {
  Verdict verdict = Verdict::kOk;
  std::string subject;      ///< what was looked at, one word: "mpi", "limits"
  std::string found;        ///< a clause, without a full stop
  std::string advice = {};  ///< what to do, a clause; empty when all is well
  std::string hosts = {};   ///< where, in a report of several hosts

  friend bool operator==(const Finding&, const Finding&) = default;
};

using Findings = std::vector<Finding>;

/// Adds `more` at the end of `all`.
void append(Findings& all, Findings more);

Verdict worst_of(const Findings& findings);

/// A line per finding, its columns under each other: verdict, subject, hosts in brackets, what was
/// found, and behind an arrow what to do; then one line that counts them.
std::string lines_of(const Findings& findings);

}  // namespace tessera
