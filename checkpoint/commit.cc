#include "checkpoint/commit.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>
#include <vector>

#include "checkpoint/file_hash.h"
#include "checkpoint/layout.h"
#include "checkpoint/manifest.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/marker.h"
#include "checkpoint/wire_types.h"
#include "kernels/core/log.h"

namespace tessera {

namespace {

wire::Manifest manifest_of(const CommitRequest& request, const CheckpointContents& contents) {
  wire::Manifest manifest;
  manifest.set_format_major(kFormatMajor);
  manifest.set_format_minor(kFormatMinor);
  manifest.set_writer_version(concat("tessera ", TESSERA_VERSION));
  manifest.set_git_hash(request.git_hash);
  manifest.set_run_uuid(request.fence.run_uuid);
  manifest.set_epoch(request.fence.epoch);
  manifest.mutable_parent()->set_epoch(request.parent.epoch);
  manifest.mutable_parent()->set_step(request.parent.step);
  manifest.set_step(contents.step);
  manifest.set_consumed_tokens(contents.consumed_tokens);
  manifest.set_consumed_samples(contents.consumed_samples);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  manifest.set_wall_time_unix_ns(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
  for (const MeshAxis& axis : contents.mesh) {
    wire::MeshAxis& entry = *manifest.add_mesh();
    entry.set_name(axis.name);
    entry.set_size(axis.size);
  }
  for (const std::string& flag : contents.determinism_flags) manifest.add_determinism_flags(flag);
  manifest.set_config_hash(hash128(bytes_of(contents.resolved_config)));
  if (contents.next_step_digest) manifest.set_next_step_digest(*contents.next_step_digest);
  return manifest;
}

std::vector<wire::Part> read_parts(const Directory& checkpoint, const CommitRequest& request,
                                   int64_t step) {
  std::vector<wire::Part> parts;
  for (int writer = 0; writer < request.writers; ++writer) {
    const std::string name = concat(kPartsName, "/", part_name(request.fence.epoch, writer));
    wire::Part part = parse_part(checkpoint.read(name, kMaxManifestBytes), name);
    if (part.run_uuid() != request.fence.run_uuid || part.epoch() != request.fence.epoch ||
        part.step() != step || part.writer() != writer) {
      throw Error(ExitCode::kBadData,
                  concat(name, " is of epoch ", part.epoch(), " step ", part.step(), " writer ",
                         part.writer(), ", expected epoch ", request.fence.epoch, " step ", step,
                         " writer ", writer));
    }
    parts.push_back(std::move(part));
  }
  return parts;
}

void check_sizes(const Directory& checkpoint, const wire::Manifest& manifest) {
  for (const wire::File& file : manifest.files()) {
    const int64_t size = checkpoint.open(file.path()).size();
    if (size != file.size()) {
      throw Error(ExitCode::kBadData,
                  concat(file.path(), " has ", size, " bytes, expected ", file.size()));
    }
  }
}

// By (kind, name) or by name, as the manifest must be.
template <class Message, class Key>
void sort_by(google::protobuf::RepeatedPtrField<Message>& messages, Key key) {
  std::sort(messages.pointer_begin(), messages.pointer_end(),
            [key](const Message* a, const Message* b) { return key(*a) < key(*b); });
}

}  // namespace

void merge_parts(const std::vector<wire::Part>& parts, wire::Manifest& manifest) {
  std::map<std::pair<int, std::string>, wire::Tensor*> merged;
  for (const wire::Part& part : parts) {
    const int first_file = manifest.files_size();
    manifest.mutable_files()->MergeFrom(part.files());
    if (part.non_finite()) manifest.set_non_finite(true);
    for (const wire::Tensor& tensor : part.tensors()) {
      wire::Tensor*& entry = merged[{tensor.kind(), tensor.name()}];
      if (entry == nullptr) {
        entry = manifest.add_tensors();
        entry->set_name(tensor.name());
        entry->set_kind(tensor.kind());
        entry->set_dtype(tensor.dtype());
        *entry->mutable_global_shape() = tensor.global_shape();
      }
      if (tensor.dtype() != entry->dtype() ||
          !std::equal(tensor.global_shape().begin(), tensor.global_shape().end(),
                      entry->global_shape().begin(), entry->global_shape().end())) {
        throw Error(ExitCode::kBadData, concat("writer ", part.writer(), " has ", tensor.name(),
                                               " with another shape or dtype than writers below"));
      }
      entry->set_logical_digest(entry->logical_digest() + tensor.logical_digest());
      for (const wire::Slice& slice : tensor.slices()) {
        wire::Slice& copy = *entry->add_slices();
        copy = slice;
        copy.set_file(first_file + slice.file());
      }
    }
    for (const wire::Blob& blob : part.blobs()) {
      wire::Blob& copy = *manifest.add_blobs();
      copy = blob;
      copy.set_file(first_file + blob.file());
    }
  }
  sort_by(*manifest.mutable_tensors(), [](const wire::Tensor& tensor) {
    return std::pair<int, const std::string&>(tensor.kind(), tensor.name());
  });
  sort_by(*manifest.mutable_blobs(),
          [](const wire::Blob& blob) -> const std::string& { return blob.name(); });
}

CommitFacts commit(const Directory& checkpoints, const Directory& checkpoint,
                   const CommitRequest& request, const CheckpointContents& contents,
                   const StageObserver& on_stage) {
  wire::Manifest manifest = manifest_of(request, contents);
  const std::vector<wire::Part> parts = read_parts(checkpoint, request, contents.step);
  merge_parts(parts, manifest);
  const std::string bytes = manifest.SerializeAsString();
  // By the reader's own rules: what is committed can be read.
  check_sizes(checkpoint, parse_manifest(bytes, kManifestName));
  on_stage("parts merged");

  checkpoint.replace(kManifestName, bytes);
  on_stage("manifest renamed");
  checkpoint.remove(kPartsName);
  checkpoint.sync();
  on_stage("parts removed");

  check_fence(checkpoints, request.fence);
  on_stage("fence checked");
  checkpoint.replace(kMarkerName, encode_marker({.format_major = kFormatMajor,
                                                 .step = contents.step,
                                                 .epoch = request.fence.epoch,
                                                 .manifest_bytes = std::ssize(bytes),
                                                 .manifest_hash = hash128(bytes_of(bytes))}));
  on_stage("marker renamed");
  checkpoints.sync();
  check_fence(checkpoints, request.fence);
  on_stage("committed");
  try {
    checkpoints.replace(kLatestName, encode_latest(request.name));
  } catch (const Error& error) {
    // Only a hint: the checkpoint is there.
    log_line(concat("warning: ", kLatestName, " does not name ", request.name, ": ", error.what()));
  }
  on_stage("latest renamed");
  CommitFacts facts;
  for (const wire::Part& part : parts) {
    facts.write_seconds = std::max(facts.write_seconds, part.write_seconds());
  }
  return facts;
}

}  // namespace tessera
