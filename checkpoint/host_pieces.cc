#include "checkpoint/host_pieces.h"

#include <algorithm>
#include <vector>

#include "kernels/core/copy.h"

namespace tessera {

namespace {

constexpr int64_t kCopiedBytes = int64_t{64} << 20;

class HostPieces {
 public:
  HostPieces(Stream& stream, const std::function<void(const HostPiece&)>& work)
      : stream_(stream), work_(work) {}

  void add(size_t tensor, int64_t first_byte, ConstTensorView bytes) {
    if (bytes.device().kind != DeviceKind::kCpu) bytes = copied(bytes);
    pieces_.push_back({.tensor = tensor,
                       .first_byte = first_byte,
                       .bytes = {static_cast<const std::byte*>(bytes.data()),
                                 static_cast<size_t>(bytes.bytes())}});
  }

  void work_on_all() {
    stream_.synchronize();
    stream_.threads().for_each(std::ssize(pieces_),
                               [&](int64_t i) { work_(pieces_[static_cast<size_t>(i)]); });
    pieces_.clear();
    used_ = 0;
  }

 private:
  ConstTensorView copied(const ConstTensorView& bytes) {
    if (memory_.bytes() == 0) memory_ = Buffer::pinned(stream_.device(), kCopiedBytes);
    if (used_ + bytes.bytes() > kCopiedBytes) work_on_all();
    const TensorView to = memory_.view(DType::kU8, bytes.shape(), used_);
    copy(stream_, bytes, to);
    used_ += bytes.bytes();
    return to;
  }

  Stream& stream_;
  const std::function<void(const HostPiece&)>& work_;
  std::vector<HostPiece> pieces_;
  Buffer memory_;
  int64_t used_ = 0;
};

}  // namespace

void for_each_host_piece(Stream& stream, std::span<const ConstTensorView> tensors,
                         int64_t piece_bytes, const std::function<void(const HostPiece&)>& work) {
  CHECK(piece_bytes > 0 && piece_bytes <= kCopiedBytes, "for_each_host_piece: pieces have ",
        piece_bytes, " bytes, expected 1 to ", kCopiedBytes);
  HostPieces pieces(stream, work);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ConstTensorView& tensor = tensors[i];
    const ConstTensorView bytes(tensor.data(), DType::kU8, {tensor.bytes()}, tensor.device());
    for (int64_t at = 0; at < tensor.bytes(); at += piece_bytes) {
      pieces.add(i, at, bytes.rows(at, std::min(piece_bytes, tensor.bytes() - at)));
    }
  }
  pieces.work_on_all();
}

}  // namespace tessera
