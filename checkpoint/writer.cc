#include "checkpoint/writer.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <string>

#include "checkpoint/crc32c.h"
#include "checkpoint/digest.h"
#include "checkpoint/layout.h"
#include "checkpoint/manifest.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/wire_types.h"
#include "kernels/reduce.h"

namespace tessera {

namespace {

// What this writer adds besides tensors: the blobs are the same on all ranks.
std::map<std::string, std::string> blobs_of(const CheckpointContents& contents, int writer) {
  if (writer != 0) return {};
  std::map<std::string, std::string> blobs = contents.blobs;
  CHECK(!blobs.contains(kConfigBlob), "checkpoint: blob ", kConfigBlob,
        " is kept for the resolved configuration");
  blobs[kConfigBlob] = contents.resolved_config;
  return blobs;
}

void check_tensor(const NamedTensor& tensor) {
  CHECK(!tensor.name.empty() && tensor.name.size() <= kMaxNameBytes,
        "checkpoint: a tensor's name has ", tensor.name.size(), " bytes, expected 1 to ",
        kMaxNameBytes);
  CHECK(tensor.data.shape() == tensor.box.extents, "checkpoint: ", tensor.name, " is ",
        tensor.data.shape(), ", expected the box's ", tensor.box.extents);
}

// The entry of a tensor: the last one, when that is of another box of the same tensor.
wire::Tensor& entry_of(TensorKind kind, const NamedTensor& tensor, wire::Part& part) {
  if (part.tensors_size() > 0) {
    wire::Tensor& last = *part.mutable_tensors(part.tensors_size() - 1);
    if (kind_of(last) == kind && last.name() == tensor.name) return last;
  }
  wire::Tensor& entry = *part.add_tensors();
  entry.set_name(tensor.name);
  set_type(kind, tensor.data.dtype(), tensor.whole, entry);
  return entry;
}

// Whether the values of a model, as opposed to other state, are numbers.
bool must_be_finite(TensorKind kind, DType dtype) {
  const bool weights = kind == TensorKind::kParameter || kind == TensorKind::kMaster;
  return weights && (dtype == DType::kF32 || dtype == DType::kBF16);
}

// Returns whether an element is inf or NaN, when `finite` asks for it.
bool write_tensor(const NamedTensor& tensor, bool finite, BlockWriter& file, wire::Tensor& entry) {
  CHECK(tensor.data.device().kind == DeviceKind::kCpu, "checkpoint: ", tensor.name,
        " is not in host memory");
  const DType dtype = tensor.data.dtype();
  wire::Slice& slice = *entry.add_slices();
  set_box(tensor.box, slice);
  slice.set_byte_offset(file.position());
  slice.set_byte_length(tensor.data.bytes());
  std::span<const std::byte> left{static_cast<const std::byte*>(tensor.data.data()),
                                  static_cast<size_t>(tensor.data.bytes())};
  ThreadPool own_thread(1);
  uint64_t sum = 0;
  int64_t non_finite = 0;
  for (int64_t first = 0; !left.empty();) {
    // A piece stays in the cache for all that is done with it.
    const auto piece = left.first(static_cast<size_t>(std::min(std::ssize(left), kBlockBytes)));
    sum += digest(dtype, tensor.whole, tensor.box, first, piece);
    file.append(piece);
    const int64_t elements = std::ssize(piece) / size_of(dtype);
    if (finite) {
      non_finite += cpu::count_non_finite(own_thread, {piece.data(), dtype, {elements}, Device{}});
    }
    first += elements;
    left = left.subspan(piece.size());
  }
  entry.set_logical_digest(entry.logical_digest() + sum);
  file.pad();
  return non_finite > 0;
}

void write_blob(const std::string& name, const std::string& content, BlockWriter& file,
                wire::Blob& entry) {
  entry.set_name(name);
  entry.set_byte_offset(file.position());
  entry.set_byte_length(std::ssize(content));
  entry.set_crc32c(crc32c(bytes_of(content)));
  file.append(bytes_of(content));
  file.pad();
}

}  // namespace

int64_t part_bytes(const CheckpointContents& contents, int writer) {
  int64_t bytes = kHeaderBytes;
  for (const TensorGroup& group : contents.groups) {
    for (const NamedTensor& tensor : group.tensors) {
      check_tensor(tensor);
      bytes += aligned_segment(tensor.data.bytes());
    }
  }
  for (const auto& [name, content] : blobs_of(contents, writer)) {
    bytes += aligned_segment(std::ssize(content));
  }
  return bytes;
}

void write_part(const Directory& checkpoint, const FileIdentity& identity,
                const CheckpointContents& contents, const StageObserver& on_stage) {
  const auto begin = std::chrono::steady_clock::now();
  const int64_t bytes = part_bytes(contents, identity.writer);
  const Directory data = checkpoint.subdirectory(kDataName);
  const std::string name = shard_name(identity.epoch, identity.writer, identity.index);
  BlockWriter file(data, name, identity, bytes - kHeaderBytes);
  on_stage("shard header written");

  wire::Part part;
  part.set_run_uuid(identity.run_uuid);
  part.set_epoch(identity.epoch);
  part.set_step(identity.step);
  part.set_writer(identity.writer);
  for (const TensorGroup& group : contents.groups) {
    for (const NamedTensor& tensor : group.tensors) {
      if (tensor.data.elements() == 0) continue;  // a rank without rows of a small tensor
      const bool finite = must_be_finite(group.kind, tensor.data.dtype());
      if (write_tensor(tensor, finite, file, entry_of(group.kind, tensor, part))) {
        part.set_non_finite(true);
      }
      on_stage("tensor written");
    }
  }
  for (const auto& [blob, content] : blobs_of(contents, identity.writer)) {
    write_blob(blob, content, file, *part.add_blobs());
  }
  on_stage("shard written");
  wire::File& entry = *part.add_files();
  set_summary(file.finish(), entry);
  entry.set_path(concat(kDataName, "/", name));
  entry.set_writer(identity.writer);
  entry.set_index(identity.index);
  on_stage("shard synced");
  part.set_write_seconds(
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());

  const Directory parts = checkpoint.subdirectory(kPartsName);
  parts.write_new(part_name(identity.epoch, identity.writer), encode_part(part));
  on_stage("part written");
  data.sync();
  parts.sync();
  on_stage("part synced");
}

}  // namespace tessera
