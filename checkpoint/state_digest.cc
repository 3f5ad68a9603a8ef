#include "checkpoint/state_digest.h"

#include <algorithm>
#include <vector>

#include "checkpoint/digest.h"
#include "checkpoint/file_hash.h"
#include "checkpoint/file_io.h"

namespace tessera {

namespace {

constexpr int64_t kPieceBytes = int64_t{1} << 20;  // stays in a core's cache

struct Piece {
  size_t tensor;
  int64_t first_byte;
  uint64_t sum;
};

}  // namespace

std::vector<uint64_t> digest_shares(ThreadPool& threads, std::span<const NamedTensor> tensors) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (int64_t at = 0; at < tensors[i].data.bytes(); at += kPieceBytes) {
      pieces.push_back({i, at, 0});
    }
  }
  threads.for_each(std::ssize(pieces), [&](int64_t i) {
    Piece& piece = pieces[static_cast<size_t>(i)];
    const NamedTensor& tensor = tensors[piece.tensor];
    const DType dtype = tensor.data.dtype();
    const std::span<const std::byte> bytes{
        static_cast<const std::byte*>(tensor.data.data()) + piece.first_byte,
        static_cast<size_t>(std::min(kPieceBytes, tensor.data.bytes() - piece.first_byte))};
    piece.sum = digest(dtype, tensor.whole, tensor.box, piece.first_byte / size_of(dtype), bytes);
  });
  std::vector<uint64_t> shares(tensors.size());
  for (const Piece& piece : pieces) shares[piece.tensor] += piece.sum;
  return shares;
}

uint64_t state_digest(ThreadPool& threads, std::span<const NamedTensor> tensors) {
  const std::vector<uint64_t> shares = digest_shares(threads, tensors);
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
