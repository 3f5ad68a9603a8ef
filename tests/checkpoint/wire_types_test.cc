#include "checkpoint/wire_types.h"

#include <gtest/gtest.h>

#include "checkpoint/manifest.pb.h"

namespace tessera {
namespace {

TEST(WireTypes, TypesComeBack) {
  for (const TensorKind kind : {TensorKind::kParameter, TensorKind::kMaster, TensorKind::kExpAvg,
                                TensorKind::kExpAvgSq, TensorKind::kBuffer}) {
    for (const DType dtype :
         {DType::kF32, DType::kBF16, DType::kI32, DType::kI64, DType::kU16, DType::kU8}) {
      wire::Tensor tensor;
      tensor.set_name("x");
      set_type(kind, dtype, {2, 3, 4}, tensor);
      EXPECT_TRUE(has_known_type(tensor));
      EXPECT_EQ(kind_of(tensor), kind);
      EXPECT_EQ(dtype_of(tensor), dtype);
      EXPECT_EQ(shape_of(tensor), (Shape{2, 3, 4}));
      EXPECT_EQ(title_of(tensor), std::string(name_of(kind)) + " x");
    }
  }
}

// The numbers in files, whatever this program calls them.
TEST(WireTypes, NumbersAreThoseOfTheFormat) {
  wire::Tensor tensor;
  set_type(TensorKind::kExpAvgSq, DType::kBF16, {1}, tensor);
  EXPECT_EQ(static_cast<int>(tensor.kind()), 4);
  EXPECT_EQ(static_cast<int>(tensor.dtype()), 2);
  tensor.set_kind(static_cast<wire::Kind>(6));
  EXPECT_FALSE(has_known_type(tensor));
}

TEST(WireTypes, BoxesComeBack) {
  wire::Slice slice;
  set_box({{3, 0, 5}, {2, 7, 1}}, slice);
  EXPECT_EQ(to_string(box_of(slice)), "[3:5, 0:7, 5:6]");
}

TEST(WireTypes, SummariesComeBack) {
  FileSummary summary;
  summary.size = 4096 + 100;
  summary.header_crc = 0x89ABCDEF;
  summary.hash = "99aa06d3014798d86001c324468d497f";
  summary.block_crcs = {1, 0xFFFFFFFF, 3};
  wire::File file;
  set_summary(summary, file);
  const FileSummary back = summary_of(file);
  EXPECT_EQ(back.size, summary.size);
  EXPECT_EQ(back.header_crc, summary.header_crc);
  EXPECT_EQ(back.hash, summary.hash);
  EXPECT_EQ(back.block_bytes, kBlockBytes);
  EXPECT_EQ(back.block_crcs, summary.block_crcs);
}

}  // namespace
}  // namespace tessera
