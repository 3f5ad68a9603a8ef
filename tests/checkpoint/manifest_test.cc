#include "checkpoint/manifest.h"

#include <gtest/gtest.h>

#include <functional>

#include "checkpoint/block_file.h"
#include "checkpoint/manifest.pb.h"
#include "kernels/core/error.h"

namespace tessera {
namespace {

constexpr int64_t kLarge = int64_t{1} << 62;

void add_slice(wire::Tensor& tensor, std::vector<int64_t> offset, std::vector<int64_t> extent,
               int file, int64_t at, int64_t bytes) {
  wire::Slice& slice = *tensor.add_slices();
  slice.mutable_offset()->Add(offset.begin(), offset.end());
  slice.mutable_extent()->Add(extent.begin(), extent.end());
  slice.set_file(file);
  slice.set_byte_offset(at);
  slice.set_byte_length(bytes);
}

void add_file(wire::Manifest& manifest, int writer, int64_t segments) {
  wire::File& file = *manifest.add_files();
  file.set_path("d/e000001-r0000" + std::to_string(writer) + "-0.shard");
  file.set_size(kHeaderBytes + segments * kSegmentAlignment);
  file.set_xxh3_128("99aa06d3014798d86001c324468d497f");
  file.set_block_size(kBlockBytes);
  file.add_block_crc32c(1);
  file.set_writer(writer);
}

// Two writers share a tensor of f32 [4, 6]; the first also has a bf16 [3] and a blob.
wire::Manifest sample() {
  wire::Manifest manifest;
  manifest.set_format_major(kFormatMajor);
  manifest.set_writer_version("tessera 0.1.0");
  manifest.set_run_uuid("0123456789abcdef0123456789abcdef");
  manifest.set_epoch(1);
  manifest.set_step(10);
  wire::MeshAxis& axis = *manifest.add_mesh();
  axis.set_name("tensor");
  axis.set_size(2);
  add_file(manifest, 0, 3);
  add_file(manifest, 1, 1);
  wire::Tensor& matrix = *manifest.add_tensors();
  matrix.set_name("matrix");
  matrix.set_kind(wire::PARAMETER);
  matrix.set_dtype(wire::F32);
  matrix.add_global_shape(4);
  matrix.add_global_shape(6);
  add_slice(matrix, {0, 0}, {4, 2}, 0, 4096, 32);
  add_slice(matrix, {0, 2}, {4, 4}, 1, 4096, 64);
  wire::Tensor& vector = *manifest.add_tensors();
  vector.set_name("vector");
  vector.set_kind(wire::PARAMETER);
  vector.set_dtype(wire::BF16);
  vector.add_global_shape(3);
  add_slice(vector, {0}, {3}, 0, 8192, 6);
  wire::Blob& blob = *manifest.add_blobs();
  blob.set_name("cursor");
  blob.set_file(0);
  blob.set_byte_offset(12288);
  blob.set_byte_length(4096);
  return manifest;
}

std::string refusal(const wire::Manifest& manifest) {
  try {
    (void)parse_manifest(manifest.SerializeAsString(), "MANIFEST.pb");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadData) << error.what();
    return error.what();
  }
  return "";
}

TEST(Manifest, ComesBack) {
  const wire::Manifest manifest = parse_manifest(sample().SerializeAsString(), "MANIFEST.pb");
  EXPECT_EQ(manifest.SerializeAsString(), sample().SerializeAsString());
}

// A lie that a manifest can tell, and what is said about it.
struct Change {
  const char* name;
  std::function<void(wire::Manifest&)> apply;
  const char* complaint;
};

void expect_refused(const std::vector<Change>& changes) {
  for (const Change& change : changes) {
    wire::Manifest manifest = sample();
    change.apply(manifest);
    EXPECT_NE(refusal(manifest).find(change.complaint), std::string::npos)
        << change.name << ": \"" << refusal(manifest) << "\"";
  }
}

TEST(Manifest, RefusesLiesAboutItself) {
  using M = wire::Manifest;
  expect_refused({
      {"future format", [](M& m) { m.set_format_major(9); },
       "in format 9.0, this program reads 1.x"},
      {"feature", [](M& m) { m.add_required_features("zstd"); }, "needs feature \"zstd\""},
      {"epoch", [](M& m) { m.set_epoch(0); }, "an epoch from 1"},
      {"step", [](M& m) { m.set_step(-1); }, "expected none below 0"},
      {"uuid", [](M& m) { m.set_run_uuid("xyz"); }, "run_uuid is not 32"},
      {"mesh", [](M& m) { m.mutable_mesh(0)->set_size(0); }, "mesh axis tensor has size 0"},
  });
}

TEST(Manifest, RefusesFilesThatCannotBe) {
  using M = wire::Manifest;
  expect_refused({
      {"path up", [](M& m) { m.mutable_files(0)->set_path("d/.."); }, "expected d/<name>"},
      {"path away", [](M& m) { m.mutable_files(0)->set_path("/etc/passwd"); }, "expected d/<name>"},
      {"path deep", [](M& m) { m.mutable_files(0)->set_path("d/a/../b"); }, "expected d/<name>"},
      {"path twice", [](M& m) { m.mutable_files(1)->set_path(m.files(0).path()); }, "listed twice"},
      {"file size", [](M& m) { m.mutable_files(0)->set_size(kLarge + 1); }, "expected a multiple"},
      {"file blocks", [](M& m) { m.mutable_files(0)->add_block_crc32c(1); }, "has 2 blocks"},
      {"block size", [](M& m) { m.mutable_files(0)->set_block_size(0); }, "blocks of 0 bytes"},
      {"file hash", [](M& m) { m.mutable_files(0)->set_xxh3_128("x"); }, "has no hash"},
  });
}

TEST(Manifest, RefusesTensorsThatCannotBe) {
  using M = wire::Manifest;
  expect_refused({
      {"no name", [](M& m) { m.mutable_tensors(0)->clear_name(); }, "name has 0 bytes"},
      {"long name", [](M& m) { m.mutable_tensors(0)->set_name(std::string(5000, 'x')); }, "5000"},
      {"dtype", [](M& m) { m.mutable_tensors(0)->clear_dtype(); }, "dtype 0"},
      {"kind", [](M& m) { m.mutable_tensors(0)->clear_kind(); }, "kind 0"},
      {"order", [](M& m) { m.mutable_tensors(0)->set_name("z"); }, "out of order"},
      {"tensor twice", [](M& m) { m.mutable_tensors(1)->set_name("matrix"); }, "listed twice"},
      {"no axes", [](M& m) { m.mutable_tensors(0)->clear_global_shape(); }, "0 axes"},
      {"axes",
       [](M& m) {
         for (int i = 0; i < 3; ++i) m.mutable_tensors(0)->add_global_shape(1);
       },
       "5 axes"},
      {"extent 0", [](M& m) { m.mutable_tensors(0)->set_global_shape(0, 0); }, "an extent of 0"},
      {"extent below", [](M& m) { m.mutable_tensors(0)->set_global_shape(0, -4); }, "of -4"},
      {"overflow", [](M& m) { m.mutable_tensors(0)->set_global_shape(0, kLarge); }, "too many"},
      {"overflow of two",
       [](M& m) {
         m.mutable_tensors(0)->set_global_shape(0, int64_t{1} << 40);
         m.mutable_tensors(0)->set_global_shape(1, int64_t{1} << 40);
       },
       "too many"},
  });
}

TEST(Manifest, RefusesSlicesAndBlobsThatCannotBe) {
  using M = wire::Manifest;
  expect_refused({
      {"no slices", [](M& m) { m.mutable_tensors(0)->clear_slices(); }, "has 0 slices"},
      {"slice axes", [](M& m) { m.mutable_tensors(0)->mutable_slices(0)->add_offset(0); }, "axes"},
      {"slice outside", [](M& m) { m.mutable_tensors(0)->mutable_slices(1)->set_offset(1, 3); },
       "within 6"},
      {"slice overflow",
       [](M& m) { m.mutable_tensors(0)->mutable_slices(1)->set_extent(1, INT64_MAX); }, "within 6"},
      {"slice before", [](M& m) { m.mutable_tensors(0)->mutable_slices(1)->set_offset(1, -1); },
       "within 6"},
      {"overlap", [](M& m) { m.mutable_tensors(0)->mutable_slices(1)->set_offset(1, 1); },
       "in no slice or in several"},
      {"length", [](M& m) { m.mutable_tensors(0)->mutable_slices(0)->set_byte_length(33); },
       "a slice of 33 bytes, expected 32"},
      {"no file", [](M& m) { m.mutable_tensors(0)->mutable_slices(0)->set_file(2); },
       "file 2 of 2"},
      {"file below", [](M& m) { m.mutable_tensors(0)->mutable_slices(0)->set_file(-1); },
       "file -1"},
      {"in header", [](M& m) { m.mutable_tensors(0)->mutable_slices(0)->set_byte_offset(0); },
       "lies at byte 0"},
      {"unaligned", [](M& m) { m.mutable_tensors(0)->mutable_slices(0)->set_byte_offset(4097); },
       "lies at byte 4097"},
      {"beyond", [](M& m) { m.mutable_tensors(0)->mutable_slices(0)->set_byte_offset(kLarge); },
       "which is not in"},
      {"same place", [](M& m) { m.mutable_tensors(1)->mutable_slices(0)->set_byte_offset(4096); },
       "has a segment at 4096"},
      {"blob length", [](M& m) { m.mutable_blobs(0)->set_byte_length(-1); }, "-1 bytes"},
      {"blob beyond", [](M& m) { m.mutable_blobs(0)->set_byte_length(5000); }, "5000 bytes"},
      {"hole", [](M& m) { m.clear_blobs(); }, "end at 12288, expected 16384"},
      {"blob twice", [](M& m) { *m.add_blobs() = m.blobs(0); }, "listed twice"},
  });
}

TEST(Manifest, AcceptsAnyMinorVersionAndUnknownFields) {
  wire::Manifest manifest = sample();
  manifest.set_format_minor(99);
  EXPECT_EQ(refusal(manifest), "");
  manifest.GetReflection()->MutableUnknownFields(&manifest)->AddVarint(1000, 1);
  EXPECT_EQ(refusal(manifest), "");
}

TEST(Manifest, RefusesAMessageThatWouldFillTheMemory) {
  std::string bytes;
  for (int i = 0; i < 4'000'000; ++i) bytes += std::string("\x8A\x01\0", 3);
  try {
    (void)parse_manifest(bytes, "MANIFEST.pb");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("bytes of memory"), std::string::npos);
  }
}

TEST(Manifest, RefusesGarbage) {
  EXPECT_THROW((void)parse_manifest("\xFF\xFF\xFF", "x"), Error);
  EXPECT_THROW((void)parse_manifest("", "x"), Error);
  std::string text = sample().SerializeAsString();
  EXPECT_THROW((void)parse_manifest(text.substr(0, text.size() - 1), "x"), Error);
}

TEST(Part, ComesBackAndRefusesEveryByteChanged) {
  wire::Part part;
  part.set_run_uuid("0123456789abcdef0123456789abcdef");
  part.set_writer(3);
  const std::string bytes = encode_part(part);
  EXPECT_EQ(parse_part(bytes, "x").writer(), 3);
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string changed = bytes;
    changed[i] = static_cast<char>(changed[i] ^ 0x10);
    EXPECT_THROW((void)parse_part(changed, "x"), Error) << i;
    EXPECT_THROW((void)parse_part(bytes.substr(0, i), "x"), Error) << i;
  }
}

}  // namespace
}  // namespace tessera
