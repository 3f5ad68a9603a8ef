#include "checkpoint/verify.h"

#include <algorithm>
#include <vector>

#include "checkpoint/box.h"
#include "checkpoint/crc32c.h"
#include "checkpoint/digest.h"
#include "checkpoint/file_hash.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/segments.h"
#include "checkpoint/wire_types.h"

namespace tessera {

namespace {

// Sums that grow while files are read, in any order.
struct Sums {
  std::vector<uint64_t> digests;    // by tensor
  std::vector<uint32_t> blob_crcs;  // by blob
};

void add(const wire::Manifest& manifest, const Segment& segment, int64_t block_begin,
         std::span<const std::byte> block, Sums& sums) {
  const int64_t begin = std::max(segment.begin, block_begin);
  const int64_t end = std::min(segment.end, block_begin + std::ssize(block));
  const auto data =
      block.subspan(static_cast<size_t>(begin - block_begin), static_cast<size_t>(end - begin));
  if (segment.blob >= 0) {
    uint32_t& crc = sums.blob_crcs[static_cast<size_t>(segment.blob)];
    crc = crc32c(data, crc);
    return;
  }
  const wire::Tensor& tensor = manifest.tensors(segment.tensor);
  const DType dtype = dtype_of(tensor);
  sums.digests[static_cast<size_t>(segment.tensor)] +=
      digest(dtype, shape_of(tensor), box_of(*segment.slice),
             (begin - segment.begin) / size_of(dtype), data);
}

void check_sums(const CheckpointReader& reader, const Sums& sums) {
  const wire::Manifest& manifest = reader.manifest();
  for (int i = 0; i < manifest.tensors_size(); ++i) {
    const uint64_t found = sums.digests[static_cast<size_t>(i)];
    if (found != manifest.tensors(i).logical_digest()) {
      throw Error(ExitCode::kBadData, concat(reader.directory().string(), ": the digest of ",
                                             title_of(manifest.tensors(i)), " is ", found,
                                             ", expected ", manifest.tensors(i).logical_digest()));
    }
  }
  for (int i = 0; i < manifest.blobs_size(); ++i) {
    if (sums.blob_crcs[static_cast<size_t>(i)] != manifest.blobs(i).crc32c()) {
      throw Error(ExitCode::kBadData, concat(reader.directory().string(), ": the CRC32C of blob ",
                                             manifest.blobs(i).name(), " is wrong"));
    }
  }
}

}  // namespace

void verify_checkpoint(const CheckpointReader& reader,
                       const std::function<void(const VerifyProgress&)>& progress) {
  const wire::Manifest& manifest = reader.manifest();
  Sums sums{.digests = std::vector<uint64_t>(static_cast<size_t>(manifest.tensors_size())),
            .blob_crcs = std::vector<uint32_t>(static_cast<size_t>(manifest.blobs_size()))};
  VerifyProgress done;
  for (const wire::File& file : manifest.files()) done.bytes_total += file.size();
  for (int i = 0; i < manifest.files_size(); ++i) {
    const std::vector<Segment> segments = segments_of(manifest, i);
    BlockReader file = reader.open_file(i);
    Hash128 hash;
    hash.update(bytes_of(file.header_bytes()));
    done.bytes_done += kHeaderBytes;
    for (int64_t number = 0; number < file.blocks(); ++number) {
      const int64_t begin = file.block_offset(number);
      const auto touched = within(segments, begin, std::min(begin + kBlockBytes, file.size()));
      const std::span<const std::byte> block = file.block(number, describe(manifest, touched));
      hash.update(block);
      for (const Segment& segment : touched) add(manifest, segment, begin, block, sums);
      done.bytes_done += std::ssize(block);
      if (progress) progress(done);
    }
    file.check_hash(hash.hex());
  }
  check_sums(reader, sums);
}

}  // namespace tessera
