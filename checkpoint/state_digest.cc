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
  const NamedTensor* tensor;
  int64_t first_byte;
  uint64_t sum;
};

}  // namespace

uint64_t state_digest(ThreadPool& threads, std::span<const NamedTensor> tensors) {
  std::vector<Piece> pieces;
  for (const NamedTensor& tensor : tensors) {
    for (int64_t at = 0; at < tensor.data.bytes(); at += kPieceBytes) {
      pieces.push_back({&tensor, at, 0});
    }
  }
  threads.for_each(std::ssize(pieces), [&](int64_t i) {
    Piece& piece = pieces[static_cast<size_t>(i)];
    const NamedTensor& tensor = *piece.tensor;
    const DType dtype = tensor.data.dtype();
    const std::span<const std::byte> bytes{
        static_cast<const std::byte*>(tensor.data.data()) + piece.first_byte,
        static_cast<size_t>(std::min(kPieceBytes, tensor.data.bytes() - piece.first_byte))};
    piece.sum = digest(dtype, tensor.whole, tensor.box, piece.first_byte / size_of(dtype), bytes);
  });
  uint64_t total = 0;
  const NamedTensor* weighed = nullptr;
  uint64_t weight = 0;
  for (const Piece& piece : pieces) {
    if (piece.tensor != weighed) {
      weighed = piece.tensor;
      weight = hash64(bytes_of(weighed->name)) | 1;
    }
    total += weight * piece.sum;
  }
  return total;
}

}  // namespace tessera
