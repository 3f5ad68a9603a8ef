#include "checkpoint/segments.h"

#include <gtest/gtest.h>

#include "checkpoint/manifest.pb.h"
#include "checkpoint/reader.h"
#include "tests/checkpoint/saved_checkpoint.h"

namespace tessera {
namespace {

using support::save_with;
using support::TemporaryDirectory;

TEST(Segments, AreEverythingInAFileInItsOrder) {
  const TemporaryDirectory place;
  const CheckpointReader reader(save_with(3, 10, place.path()));
  const wire::Manifest& manifest = reader.manifest();
  int64_t slices = 0;
  int64_t blobs = 0;
  for (int file = 0; file < manifest.files_size(); ++file) {
    int64_t end = 4096;
    for (const Segment& segment : segments_of(manifest, file)) {
      EXPECT_GE(segment.begin, end);
      EXPECT_LT(segment.begin, end + 4096);
      end = segment.end;
      ++(segment.tensor >= 0 ? slices : blobs);
      EXPECT_NE(segment.tensor >= 0, segment.blob >= 0);
      EXPECT_EQ(segment.slice != nullptr, segment.tensor >= 0);
    }
    EXPECT_LE(end, manifest.files(file).size());
  }
  int64_t all = 0;
  for (const wire::Tensor& tensor : manifest.tensors()) all += tensor.slices_size();
  EXPECT_EQ(slices, all);
  EXPECT_EQ(blobs, manifest.blobs_size());
}

TEST(Segments, ThoseOfAStretchAreNamed) {
  const TemporaryDirectory place;
  const CheckpointReader reader(save_with(1, 10, place.path()));
  const std::vector<Segment> segments = segments_of(reader.manifest(), 0);
  ASSERT_GE(segments.size(), 3u);
  const Segment& first = segments.front();
  EXPECT_EQ(within(segments, first.begin, first.end).size(), 1u);
  EXPECT_EQ(within(segments, first.end - 1, segments[1].begin + 1).size(), 2u);
  EXPECT_TRUE(within(segments, first.end, segments[1].begin).empty());
  const auto& manifest = reader.manifest();
  EXPECT_EQ(describe(manifest, within(segments, first.begin, first.end)), "parameter embedding");
  EXPECT_EQ(describe(manifest, within(segments, 0, int64_t{1} << 40)),
            "parameter embedding to blob empty");
  EXPECT_EQ(describe(manifest, {}), "padding");
}

}  // namespace
}  // namespace tessera
