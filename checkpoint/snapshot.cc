#include "checkpoint/snapshot.h"

#include <algorithm>
#include <cstring>

#include "kernels/core/copy.h"

namespace tessera {

namespace {

// What a thread copies at a time: long enough to run at the speed of memory, and short enough that
// all threads end together.
constexpr int64_t kPieceBytes = int64_t{4} << 20;

struct Piece {
  std::byte* to;
  const std::byte* from;
  int64_t bytes;
};

}  // namespace

int64_t Snapshot::bytes_for(const std::vector<TensorGroup>& groups) {
  int64_t bytes = 0;
  for (const TensorGroup& group : groups) {
    for (const NamedTensor& tensor : group.tensors) bytes += aligned(tensor.data.bytes());
  }
  return bytes;
}

CheckpointContents Snapshot::take(Stream& stream, const CheckpointContents& contents) {
  copy_all(stream, contents.groups);
  CheckpointContents own = contents;
  for (size_t i = 0; i < tensors_.size(); ++i) own.groups[i].tensors = tensors_[i];
  return own;
}

void Snapshot::copy_all(Stream& stream, const std::vector<TensorGroup>& groups) {
  const int64_t needed = bytes_for(groups);
  if (memory_.bytes() < needed) {
    memory_ = Buffer();  // before the larger one: not both at a time
    memory_ = Buffer::pinned(stream.device(), needed);
  }
  std::vector<Piece> pieces;
  tensors_.assign(groups.size(), {});
  int64_t offset = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    tensors_[i].reserve(groups[i].tensors.size());
    for (const NamedTensor& tensor : groups[i].tensors) {
      const TensorView own = memory_.view(tensor.data.dtype(), tensor.data.shape(), offset);
      tensors_[i].emplace_back(tensor.name, tensor.whole, tensor.box, own);
      offset += aligned(own.bytes());
      if (tensor.data.device().kind != DeviceKind::kCpu) {
        copy(stream, tensor.data, own);
        continue;
      }
      for (int64_t at = 0; at < own.bytes(); at += kPieceBytes) {
        pieces.push_back({static_cast<std::byte*>(own.data()) + at,
                          static_cast<const std::byte*>(tensor.data.data()) + at,
                          std::min(kPieceBytes, own.bytes() - at)});
      }
    }
  }
  stream.threads().for_each(std::ssize(pieces), [&](int64_t i) {
    const Piece& piece = pieces[static_cast<size_t>(i)];
    std::memcpy(piece.to, piece.from, static_cast<size_t>(piece.bytes));
  });
  stream.synchronize();
}

}  // namespace tessera
