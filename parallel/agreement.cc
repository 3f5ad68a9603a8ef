#include "parallel/agreement.h"

#include <algorithm>
#include <array>
#include <vector>

namespace tessera {

// A byte a value: sums with zeros are exact, and values travel whatever device the ranks use.
std::string broadcast_text(Communicator& ranks, const std::string& text, int root) {
  const bool mine = ranks.rank() == root;
  std::array<double, 1> size{mine ? static_cast<double>(text.size()) : 0};
  ranks.all_reduce_values(size);
  std::vector<double> bytes(static_cast<size_t>(size[0]));
  if (mine) {
    std::transform(text.begin(), text.end(), bytes.begin(),
                   [](char byte) { return static_cast<double>(static_cast<unsigned char>(byte)); });
  }
  if (!bytes.empty()) ranks.all_reduce_values(bytes);
  std::string all(bytes.size(), '\0');
  std::transform(bytes.begin(), bytes.end(), all.begin(),
                 [](double byte) { return static_cast<char>(static_cast<unsigned char>(byte)); });
  return all;
}

std::string without_rank(const std::string& message) {
  const std::string prefix = rank_prefix();
  return message.starts_with(prefix) ? message.substr(prefix.size()) : message;
}

std::optional<Failure> failure_of(const std::function<void()>& work) {
  try {
    work();
    return std::nullopt;
  } catch (const Error& error) {
    if (error.code() == ExitCode::kError) throw;
    return Failure{.reason = without_rank(error.what()), .code = error.code()};
  }
}

std::optional<Failure> first_failure(Communicator& ranks, const std::optional<Failure>& failure) {
  std::array<double, 1> failures{failure ? 1.0 : 0.0};
  ranks.all_reduce_values(failures);
  if (failures[0] == 0) return std::nullopt;
  std::vector<double> codes(static_cast<size_t>(ranks.size()));
  if (failure) codes[static_cast<size_t>(ranks.rank())] = static_cast<double>(failure->code);
  ranks.all_reduce_values(codes);
  const auto lowest = std::find_if(codes.begin(), codes.end(), [](double c) { return c > 0; });
  CHECK(lowest != codes.end(), "first_failure: a failure has exit code 0, expected another one");
  const int rank = static_cast<int>(lowest - codes.begin());
  return Failure{.reason = broadcast_text(ranks, failure ? failure->reason : "", rank),
                 .code = static_cast<ExitCode>(static_cast<int>(*lowest)),
                 .rank = rank};
}

std::string to_text(const Failure& failure, const Communicator& ranks) {
  return ranks.size() == 1 ? failure.reason : concat("rank ", failure.rank, ": ", failure.reason);
}

}  // namespace tessera
