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

std::optional<std::string> failure_of(const std::function<void()>& work) {
  try {
    work();
    return std::nullopt;
  } catch (const Error& error) {
    if (error.code() == ExitCode::kError) throw;
    return without_rank(error.what());
  }
}

std::optional<RankFailure> first_failure(Communicator& ranks,
                                         const std::optional<std::string>& failure) {
  std::array<double, 1> failures{failure ? 1.0 : 0.0};
  ranks.all_reduce_values(failures);
  if (failures[0] == 0) return std::nullopt;
  std::vector<double> failed(static_cast<size_t>(ranks.size()));
  failed[static_cast<size_t>(ranks.rank())] = failure ? 1 : 0;
  ranks.all_reduce_values(failed);
  const auto lowest = std::find(failed.begin(), failed.end(), 1.0);
  RankFailure first{.rank = static_cast<int>(lowest - failed.begin()), .reason = {}};
  first.reason = broadcast_text(ranks, failure.value_or(""), first.rank);
  return first;
}

}  // namespace tessera
