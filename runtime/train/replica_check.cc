#include "runtime/train/replica_check.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <vector>

#include "checkpoint/file_hash.h"
#include "checkpoint/file_io.h"
#include "checkpoint/host_pieces.h"
#include "parallel/agreement.h"

namespace tessera {

namespace {

constexpr int64_t kPieceBytes = int64_t{4} << 20;

/// What one rank compares with the other ranks of a group.
struct Copies {
  std::vector<std::string> names;
  std::vector<int64_t> hashes;
};

// Of each tensor: the hash of the hashes of its pieces, which threads share.
std::vector<int64_t> hashes_of(Stream& stream, const std::vector<ConstTensorView>& tensors) {
  std::vector<std::vector<uint64_t>> sums;
  for (const ConstTensorView& tensor : tensors) {
    sums.emplace_back(static_cast<size_t>((tensor.bytes() + kPieceBytes - 1) / kPieceBytes));
  }
  for_each_host_piece(stream, tensors, kPieceBytes, [&](const HostPiece& piece) {
    sums[piece.tensor][static_cast<size_t>(piece.first_byte / kPieceBytes)] = hash64(piece.bytes);
  });
  std::vector<int64_t> hashes;
  for (const auto& pieces : sums) {
    hashes.push_back(static_cast<int64_t>(hash64(std::as_bytes(std::span(pieces)))));
  }
  return hashes;
}

Copies copies_of(Stream& stream, const ParameterStore& store, Placement placement,
                 const std::string& small_state) {
  Copies copies;
  std::vector<ConstTensorView> tensors;
  for (const Parameter& parameter : store.all()) {
    if (parameter.placement != placement) continue;
    copies.names.push_back(parameter.name);
    tensors.push_back(parameter.value);
  }
  copies.hashes = hashes_of(stream, tensors);
  if (placement == Placement::kReplicated) {
    copies.names.emplace_back("the progress of the run");
    copies.hashes.push_back(static_cast<int64_t>(hash64(bytes_of(small_state))));
  }
  return copies;
}

std::string host_name() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

/// Why this rank is the odd one, or one of the odd ones; nothing when it agrees with most.
/// `all` is [ranks of the group, names]: the hashes of each.
std::optional<Failure> contradiction(const Communicator& ranks, const Copies& mine,
                                     std::span<const int64_t> all, int world_rank) {
  const size_t items = mine.names.size();
  for (size_t item = 0; item < items; ++item) {
    std::map<int64_t, int> votes;
    for (size_t r = 0; r < static_cast<size_t>(ranks.size()); ++r) ++votes[all[r * items + item]];
    if (votes.size() == 1) continue;
    const auto most =
        std::max_element(votes.begin(), votes.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    const bool majority = 2 * most->second > ranks.size();
    if (majority && most->first == mine.hashes[item]) continue;
    return Failure{
        .reason = concat("silent corruption: rank ", world_rank, " on ", host_name(),
                         " holds other values of ", mine.names[item], " than ",
                         majority ? "most of" : "others of", " its ", ranks.size() - 1,
                         " replicas; this step is not saved. Take the host out of the job, and "
                         "run again from the newest checkpoint"),
        .code = ExitCode::kTryAgain};
  }
  return std::nullopt;
}

}  // namespace

void check_replicas(Stream& stream, const ProcessMesh& mesh, const ParameterStore& store,
                    const std::string& small_state) {
  std::optional<Failure> failure;
  Stream host(Device{});  // hashes are there
  for (int p = 0; p < kPlacements; ++p) {
    const auto placement = static_cast<Placement>(p);
    Communicator& ranks = group_of(mesh, placement);
    if (ranks.size() == 1) continue;
    const Copies mine = copies_of(stream, store, placement, small_state);
    const auto items = std::ssize(mine.hashes);
    if (items == 0) continue;
    std::vector<int64_t> all(mine.hashes.size() * static_cast<size_t>(ranks.size()));
    ranks.all_gather(host, {mine.hashes.data(), DType::kI64, {1, items}, Device{}},
                     {all.data(), DType::kI64, {ranks.size(), items}, Device{}});
    if (!failure) failure = contradiction(ranks, mine, all, mesh.world().rank());
  }
  if (const std::optional<Failure> first = first_failure(mesh.world(), failure)) {
    throw Error(first->code, first->reason);
  }
}

}  // namespace tessera
