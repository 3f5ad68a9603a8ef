#include "checkpoint/state_digest.h"

#include <numeric>
#include <vector>

#include "checkpoint/digest.h"
#include "checkpoint/file_hash.h"
#include "checkpoint/file_io.h"
#include "checkpoint/host_pieces.h"

namespace tessera {

namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;  // stays in a core's cache

}  // namespace

std::vector<uint64_t> digest_shares(Stream& stream, std::span<const NamedTensor> tensors) {
  std::vector<ConstTensorView> data;
  std::vector<std::vector<uint64_t>> sums;  // of each piece of each tensor
  for (const NamedTensor& tensor : tensors) {
    data.push_back(tensor.data);
    sums.emplace_back(static_cast<size_t>((tensor.data.bytes() + kPieceBytes - 1) / kPieceBytes));
  }
  for_each_host_piece(stream, data, kPieceBytes, [&](const HostPiece& piece) {
    const NamedTensor& tensor = tensors[piece.tensor];
    const DType dtype = tensor.data.dtype();
    sums[piece.tensor][static_cast<size_t>(piece.first_byte / kPieceBytes)] =
        digest(dtype, tensor.whole, tensor.box, piece.first_byte / size_of(dtype), piece.bytes);
  });
  std::vector<uint64_t> shares;
  for (const auto& pieces : sums) {
    shares.push_back(std::accumulate(pieces.begin(), pieces.end(), uint64_t{0}));
  }
  return shares;
}

uint64_t state_digest(Stream& stream, std::span<const NamedTensor> tensors) {
  const std::vector<uint64_t> shares = digest_shares(stream, tensors);
  uint64_t total = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    total += (hash64(bytes_of(tensors[i].name)) | 1) * shares[i];
  }
  return total;
}

DigestParts parts_of(uint64_t digest) {
  DigestParts parts{};
  for (size_t i = 0; i < parts.size(); ++i) {
    parts[i] = static_cast<double>((digest >> (16 * i)) & 0xFFFF);
  }
  return parts;
}

uint64_t digest_of(std::span<const double, 4> sums) {
  uint64_t digest = 0;
  for (size_t i = 0; i < sums.size(); ++i) digest += static_cast<uint64_t>(sums[i]) << (16 * i);
  return digest;
}

void sum_digests(Communicator& ranks, std::span<uint64_t> digests) {
  std::vector<double> parts;
  for (const uint64_t digest : digests) {
    for (const double part : parts_of(digest)) parts.push_back(part);
  }
  ranks.all_reduce_values(parts);
  for (size_t i = 0; i < digests.size(); ++i) {
    digests[i] = digest_of(std::span(parts).subspan(4 * i).first<4>());
  }
}

}  // namespace tessera
