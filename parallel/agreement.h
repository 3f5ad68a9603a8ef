#pragma once

#include <functional>
#include <optional>
#include <string>

#include "parallel/communicator.h"

namespace tessera {

/// Short texts that all ranks must know. Collective, host to host; use them outside plans.

/// `text` of rank `root`, on every rank.
std::string broadcast_text(Communicator& ranks, const std::string& text, int root);

/// The sentence of an Error without the rank that Error puts in front.
std::string without_rank(const std::string& message);

/// Why a piece of work failed.
struct Failure {
  std::string reason;  ///< one sentence
  ExitCode code = ExitCode::kError;
  int rank = 0;  ///< whose it is, after first_failure()
};

/// Does `work`. Returns why it failed, without this rank's prefix, or nothing. A broken contract
/// (ExitCode::kError) is thrown on: nobody can go on from it.
std::optional<Failure> failure_of(const std::function<void()>& work);

/// How a piece of work went on all ranks: the failure of the lowest rank that had one, on every
/// rank, or nothing. `failure` is this rank's. One short exchange when nobody failed.
std::optional<Failure> first_failure(Communicator& ranks, const std::optional<Failure>& failure);

/// The reason, with the rank in front when there are several.
std::string to_text(const Failure& failure, const Communicator& ranks);

}  // namespace tessera
