#include "checkpoint/wire_types.h"

#include <array>

#include "checkpoint/manifest.pb.h"

namespace tessera {

namespace {

// In the order of the enumerations in manifest.proto, which begin with an unknown value.
constexpr std::array<TensorKind, 5> kKinds{TensorKind::kParameter, TensorKind::kMaster,
                                           TensorKind::kExpAvg, TensorKind::kExpAvgSq,
                                           TensorKind::kBuffer};
constexpr std::array<DType, 6> kDTypes{DType::kF32, DType::kBF16, DType::kI32,
                                       DType::kI64, DType::kU16,  DType::kU8};

template <class List, class T>
int place_of(const List& list, T value) {
  size_t place = 0;
  while (place < list.size() && list[place] != value) ++place;
  CHECK(place < list.size(), "checkpoint: there is no number for a value of an enumeration");
  return static_cast<int>(place) + 1;
}

template <class Extents>
Shape shape_from(const Extents& extents) {
  static constexpr std::array<Shape, Shape::kMaxRank + 1> kOfRank{
      Shape{}, Shape{1}, Shape{1, 1}, Shape{1, 1, 1}, Shape{1, 1, 1, 1}};
  Shape shape = kOfRank[static_cast<size_t>(extents.size())];
  for (int axis = 0; axis < shape.rank(); ++axis) shape = shape.with(axis, extents.Get(axis));
  return shape;
}

}  // namespace

bool has_known_type(const wire::Tensor& tensor) {
  return tensor.kind() >= 1 && tensor.kind() <= std::ssize(kKinds) && tensor.dtype() >= 1 &&
         tensor.dtype() <= std::ssize(kDTypes);
}

DType dtype_of(const wire::Tensor& tensor) {
  return kDTypes[static_cast<size_t>(tensor.dtype() - 1)];
}

TensorKind kind_of(const wire::Tensor& tensor) {
  return kKinds[static_cast<size_t>(tensor.kind() - 1)];
}

Shape shape_of(const wire::Tensor& tensor) {
  return shape_from(tensor.global_shape());
}

Box box_of(const wire::Slice& slice) {
  Box box{.begin = {}, .extents = shape_from(slice.extent())};
  for (int axis = 0; axis < slice.offset_size(); ++axis) {
    box.begin[static_cast<size_t>(axis)] = slice.offset(axis);
  }
  return box;
}

FileIdentity identity_of(const wire::Manifest& manifest, const wire::File& file) {
  return {.run_uuid = manifest.run_uuid(),
          .epoch = manifest.epoch(),
          .step = manifest.step(),
          .writer = file.writer(),
          .index = file.index()};
}

FileSummary summary_of(const wire::File& file) {
  return {.size = file.size(),
          .header_crc = file.header_crc32c(),
          .hash = file.xxh3_128(),
          .block_bytes = file.block_size(),
          .block_crcs = {file.block_crc32c().begin(), file.block_crc32c().end()}};
}

CheckpointFacts facts_of(const wire::Manifest& manifest) {
  CheckpointFacts facts;
  facts.id = {manifest.epoch(), manifest.step()};
  facts.parent = {manifest.parent().epoch(), manifest.parent().step()};
  facts.consumed_tokens = manifest.consumed_tokens();
  facts.consumed_samples = manifest.consumed_samples();
  facts.wall_time_unix_ns = manifest.wall_time_unix_ns();
  facts.run_uuid = manifest.run_uuid();
  facts.writer_version = manifest.writer_version();
  facts.git_hash = manifest.git_hash();
  facts.config_hash = manifest.config_hash();
  for (const wire::MeshAxis& axis : manifest.mesh()) {
    facts.mesh.push_back({axis.name(), axis.size()});
  }
  facts.determinism_flags = {manifest.determinism_flags().begin(),
                             manifest.determinism_flags().end()};
  if (manifest.has_next_step_digest()) facts.next_step_digest = manifest.next_step_digest();
  facts.finite = !manifest.non_finite();
  return facts;
}

std::string title_of(const wire::Tensor& tensor) {
  return concat(name_of(kind_of(tensor)), " ", tensor.name());
}

void set_type(TensorKind kind, DType dtype, const Shape& shape, wire::Tensor& tensor) {
  tensor.set_kind(static_cast<wire::Kind>(place_of(kKinds, kind)));
  tensor.set_dtype(static_cast<wire::DataType>(place_of(kDTypes, dtype)));
  for (int axis = 0; axis < shape.rank(); ++axis) tensor.add_global_shape(shape[axis]);
}

void set_box(const Box& box, wire::Slice& slice) {
  for (int axis = 0; axis < box.extents.rank(); ++axis) {
    slice.add_offset(box.begin[static_cast<size_t>(axis)]);
    slice.add_extent(box.extents[axis]);
  }
}

void set_summary(const FileSummary& summary, wire::File& file) {
  file.set_size(summary.size);
  file.set_header_crc32c(summary.header_crc);
  file.set_xxh3_128(summary.hash);
  file.set_block_size(summary.block_bytes);
  file.mutable_block_crc32c()->Add(summary.block_crcs.begin(), summary.block_crcs.end());
}

}  // namespace tessera
