#include "parallel/message_sizes.h"

#include <gtest/gtest.h>

namespace tessera {
namespace {

TEST(MessageSizes, ShortSumsGoToAll) {
  EXPECT_EQ(all_reduce_bytes(1000, 4, 2, 5), 4 * 4000);
  EXPECT_EQ(all_reduce_bytes(4096, 4, 0, 4), 3 * 16384);
  EXPECT_EQ(all_reduce_bytes(0, 4, 0, 4), 0);
  EXPECT_EQ(all_reduce_bytes(100000000, 4, 0, 1), 0);
}

TEST(MessageSizes, LongSumsMoveWhatARingMoves) {
  for (const int ranks : {2, 3, 7}) {
    for (const int64_t elements : {int64_t{16385}, int64_t{4300001}, int64_t{20000003}}) {
      int64_t all = 0;
      for (int rank = 0; rank < ranks; ++rank) all += all_reduce_bytes(elements, 4, rank, ranks);
      EXPECT_EQ(all, 2 * (ranks - 1) * elements * 4) << ranks << " " << elements;
    }
  }
}

TEST(MessageSizes, ScratchHoldsTheSliceOfEveryRank) {
  EXPECT_EQ(all_reduce_scratch(1000, 4, 2, 5), 5 * 4000);     // short: everything
  EXPECT_EQ(all_reduce_scratch(1 << 20, 4, 0, 2), 4 << 20);   // one chunk
  EXPECT_EQ(all_reduce_scratch(1 << 24, 4, 1, 2), 16 << 20);  // chunks of 16 MiB
  EXPECT_EQ(all_reduce_scratch(65539, 2, 3, 4), 16385 * 2 * 4);
  EXPECT_EQ(all_reduce_scratch(65539, 2, 0, 4), 16384 * 2 * 4);
  EXPECT_EQ(reduce_scatter_scratch(100, 4, 8), 3200);
  EXPECT_EQ(reduce_scatter_scratch(1 << 24, 4, 8), 16 << 20);
}

TEST(MessageSizes, SlicesCoverAll) {
  EXPECT_EQ(slice_begin(11, 0, 4), 0);
  EXPECT_EQ(slice_begin(11, 2, 4), 5);
  EXPECT_EQ(slice_begin(11, 4, 4), 11);
  EXPECT_EQ(chunk_bytes(2), 16 << 20);
  EXPECT_EQ(chunk_bytes(1000), 1000 * (64 << 10));
}

}  // namespace
}  // namespace tessera
