#include "checkpoint/snapshot.h"

#include <gtest/gtest.h>

#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

using support::SampleState;

void expect_copy_of(const SampleState& state, const CheckpointContents& copy) {
  const std::vector<TensorGroup> groups = state.groups();
  ASSERT_EQ(copy.groups.size(), groups.size());
  for (size_t i = 0; i < groups.size(); ++i) {
    EXPECT_EQ(copy.groups[i].kind, groups[i].kind);
    ASSERT_EQ(copy.groups[i].tensors.size(), groups[i].tensors.size());
    for (size_t j = 0; j < groups[i].tensors.size(); ++j) {
      const NamedTensor& from = groups[i].tensors[j];
      const NamedTensor& to = copy.groups[i].tensors[j];
      EXPECT_EQ(to.name, from.name);
      EXPECT_EQ(to.whole, from.whole);
      EXPECT_EQ(to.box.begin, from.box.begin);
      ASSERT_EQ(to.data.bytes(), from.data.bytes());
      if (from.data.bytes() == 0) continue;
      EXPECT_NE(to.data.data(), from.data.data());
      EXPECT_EQ(std::memcmp(to.data.data(), from.data.data(), static_cast<size_t>(to.data.bytes())),
                0)
          << from.name;
    }
  }
}

TEST(Snapshot, KeepsWhatTheStateWas) {
  for (const int threads : {1, 3}) {
    Stream stream(Device{}, threads);
    Snapshot snapshot;
    // Longer than a piece of a thread, then shorter, in the same memory.
    for (const int64_t rows : {50'000, 37}) {
      SampleState state(5, 1, 2, rows);
      const CheckpointContents copy = snapshot.take(stream, state.contents());
      expect_copy_of(state, copy);
      EXPECT_EQ(copy.blobs.at("cursor"), "position 5");
      EXPECT_EQ(copy.step, 5);
      state.fill(0x11);
      expect_copy_of(SampleState(5, 1, 2, rows), copy);
    }
  }
}

TEST(Snapshot, SaysHowMuchMemoryItNeeds) {
  const SampleState state(1);
  int64_t bytes = 0;
  int64_t tensors = 0;
  for (const TensorGroup& group : state.groups()) {
    for (const NamedTensor& tensor : group.tensors) {
      bytes += tensor.data.bytes();
      ++tensors;
    }
  }
  EXPECT_GE(Snapshot::bytes_for(state.groups()), bytes);
  EXPECT_LT(Snapshot::bytes_for(state.groups()), bytes + tensors * Buffer::kAlignment);
}

}  // namespace
}  // namespace tessera
