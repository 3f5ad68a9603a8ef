#include "checkpoint/host_pieces.h"

#include <gtest/gtest.h>

#include <cstring>
#include <mutex>
#include <vector>

#include "tests/support/compare.h"

namespace tessera {
namespace {

using support::Tensor;

TEST(HostPieces, AreAllBytesOfAllTensorsOnce) {
  for (const int threads : {1, 3}) {
    Stream stream(Device{}, threads);
    const Tensor a = support::random_ints({1000}, 1, 0, 1 << 30);
    const Tensor none(DType::kF32, {0, 3});
    const Tensor b = support::random_ints({77}, 2, 0, 1 << 30);
    const std::vector<ConstTensorView> tensors{a.view(), none.view(), b.view()};
    std::vector<std::vector<std::byte>> found{
        std::vector<std::byte>(4000), {}, std::vector<std::byte>(308)};
    std::mutex mutex;
    int pieces = 0;
    for_each_host_piece(stream, tensors, 256, [&](const HostPiece& piece) {
      const std::lock_guard lock(mutex);
      ++pieces;
      EXPECT_EQ(piece.first_byte % 256, 0);
      std::memcpy(found[piece.tensor].data() + piece.first_byte, piece.bytes.data(),
                  piece.bytes.size());
    });
    EXPECT_EQ(pieces, 16 + 2);
    EXPECT_EQ(std::memcmp(found[0].data(), a.view().data(), 4000), 0);
    EXPECT_EQ(std::memcmp(found[2].data(), b.view().data(), 308), 0);
  }
}

TEST(HostPieces, RefusesPiecesThatAreTooLong) {
  Stream stream(Device{});
  support::expect_error([&] { for_each_host_piece(stream, {}, 0, [](const HostPiece&) {}); },
                        "for_each_host_piece: pieces have 0 bytes, expected 1 to ");
}

}  // namespace
}  // namespace tessera
