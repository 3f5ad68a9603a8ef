#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/block_file.h"
#include "checkpoint/box.h"
#include "checkpoint/crc32c.h"
#include "checkpoint/digest.h"
#include "checkpoint/layout.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/marker.h"
#include "checkpoint/reader.h"
#include "checkpoint/wire_types.h"
#include "tests/checkpoint/sample_run.h"
#include "tests/fuzz/input.h"

// Cuts a tensor into slices, and reads boxes of it back. The oracle gathers element by element, by
// asking every slice whether it holds it. Every input goes through the planner in memory; one in
// 32, which the fuzzer cannot aim at, through real files and CheckpointReader too.

namespace tessera {
namespace {

constexpr int kMostSlices = 12;
constexpr int kFiles = 3;

Shape random_shape(Input& input) {
  const int64_t rank = 1 + input.below(Shape::kMaxRank);
  const int64_t a = 1 + input.below(9);
  const int64_t b = 1 + input.below(7);
  const int64_t c = 1 + input.below(5);
  const int64_t d = 1 + input.below(5);
  if (rank == 1) return {a * b};
  if (rank == 2) return {a, b};
  if (rank == 3) return {a, b, c};
  return {a, b, c, d};
}

size_t axis_of(int64_t number) {
  return static_cast<size_t>(number);
}

/// Cuts one of the boxes in two, over and over.
std::vector<Box> random_slices(const Shape& shape, Input& input) {
  std::vector<Box> slices{whole_box(shape)};
  for (int64_t cuts = input.below(kMostSlices); cuts > 0; --cuts) {
    Box& box = slices[axis_of(input.below(std::ssize(slices)))];
    const auto axis = static_cast<int>(input.below(shape.rank()));
    const int64_t extent = box.extents[axis];
    if (extent == 1) continue;
    const int64_t at = 1 + input.below(extent - 1);
    Box upper = box;
    upper.begin[axis_of(axis)] += at;
    upper.extents = box.extents.with(axis, extent - at);
    box.extents = box.extents.with(axis, at);
    slices.push_back(upper);
  }
  return slices;
}

Box random_box(const Shape& shape, Input& input) {
  Box box = whole_box(shape);
  for (int axis = 0; axis < shape.rank(); ++axis) {
    box.begin[axis_of(axis)] = input.below(shape[axis]);
    box.extents = box.extents.with(axis, 1 + input.below(shape[axis] - box.begin[axis_of(axis)]));
  }
  return box;
}

bool contains(const Box& box, const BoxIndex& index) {
  for (int axis = 0; axis < box.extents.rank(); ++axis) {
    const int64_t at = index[axis_of(axis)] - box.begin[axis_of(axis)];
    if (at < 0 || at >= box.extents[axis]) return false;
  }
  return true;
}

int64_t number_in(const Box& box, const BoxIndex& index) {
  int64_t number = 0;
  for (int axis = 0; axis < box.extents.rank(); ++axis) {
    number = number * box.extents[axis] + index[axis_of(axis)] - box.begin[axis_of(axis)];
  }
  return number;
}

/// The index of element `number` of `box` in the whole tensor.
BoxIndex index_of(const Box& box, int64_t number) {
  BoxIndex index{};
  for (int axis = box.extents.rank() - 1; axis >= 0; --axis) {
    index[axis_of(axis)] = box.begin[axis_of(axis)] + number % box.extents[axis];
    number /= box.extents[axis];
  }
  return index;
}

/// The elements of `box`, each the number that it has in the whole tensor.
std::vector<int64_t> gather(const Box& box, const Shape& shape) {
  std::vector<int64_t> elements;
  for (int64_t i = 0; i < box.extents.elements(); ++i) {
    elements.push_back(number_in(whole_box(shape), index_of(box, i)));
  }
  return elements;
}

void check_plan(const std::vector<Box>& slices, const Box& target, const Shape& shape) {
  std::vector<int64_t> read(static_cast<size_t>(target.extents.elements()), -1);
  for (const Box& slice : slices) {
    const std::vector<int64_t> held = gather(slice, shape);
    const std::optional<Box> both = intersect(slice, target);
    if (!both) continue;
    for_each_stretch(*both, slice, target, [&](const Stretch& stretch) {
      for (int64_t i = 0; i < stretch.length; ++i) {
        int64_t& element = read.at(static_cast<size_t>(stretch.in_second + i));
        if (element != -1) __builtin_trap();  // two slices hold it
        element = held.at(static_cast<size_t>(stretch.in_first + i));
      }
    });
  }
  if (read != gather(target, shape)) __builtin_trap();
}

void check_cover(std::vector<Box> parts, const Shape& shape, Input& input) {
  const Box whole = whole_box(shape);
  if (!covers_exactly(parts, whole)) __builtin_trap();
  parts[axis_of(input.below(std::ssize(parts)))] = random_box(shape, input);
  bool exact = true;
  for (int64_t i = 0; i < shape.elements(); ++i) {
    int holders = 0;
    for (const Box& part : parts) holders += contains(part, index_of(whole, i)) ? 1 : 0;
    exact = exact && holders == 1;
  }
  if (covers_exactly(parts, whole) != exact) __builtin_trap();
}

std::vector<std::byte> bytes_of_box(const Box& box, const Shape& shape, DType dtype) {
  const int64_t size = size_of(dtype);
  std::vector<std::byte> bytes;
  for (const int64_t element : gather(box, shape)) {
    const uint64_t bits = static_cast<uint64_t>(element + 1) * 0x9E3779B97F4A7C15;
    for (int64_t i = 0; i < size; ++i) bytes.push_back(static_cast<std::byte>(bits >> (8 * i)));
  }
  return bytes;
}

wire::Manifest written(const Directory& directory, const std::vector<Box>& slices,
                       const Shape& shape, DType dtype, Input& input) {
  wire::Manifest manifest;
  manifest.set_format_major(kFormatMajor);
  manifest.set_run_uuid("0123456789abcdef0123456789abcdef");
  manifest.set_epoch(1);
  manifest.set_step(5);
  wire::Tensor& tensor = *manifest.add_tensors();
  tensor.set_name("x");
  set_type(TensorKind::kParameter, dtype, shape, tensor);
  std::vector<std::vector<Box>> by_file(kFiles);
  for (const Box& slice : slices) by_file[axis_of(input.below(kFiles))].push_back(slice);
  uint64_t sum = 0;
  directory.make_directory(kDataName);
  const Directory data = directory.subdirectory(kDataName);
  for (const std::vector<Box>& held : by_file) {
    if (held.empty()) continue;
    const int number = manifest.files_size();
    int64_t bytes = 0;
    for (const Box& box : held) bytes += aligned_segment(box.extents.elements() * size_of(dtype));
    const FileIdentity identity{
        .run_uuid = manifest.run_uuid(), .epoch = 1, .step = 5, .writer = number};
    const std::string name = shard_name(1, number, 0);
    BlockWriter file(data, name, identity, bytes);
    for (const Box& box : held) {
      const std::vector<std::byte> content = bytes_of_box(box, shape, dtype);
      wire::Slice& slice = *tensor.add_slices();
      set_box(box, slice);
      slice.set_file(number);
      slice.set_byte_offset(file.position());
      slice.set_byte_length(std::ssize(content));
      sum += digest(dtype, shape, box, 0, content);
      file.append(content);
      file.pad();
    }
    wire::File& entry = *manifest.add_files();
    set_summary(file.finish(), entry);
    entry.set_path(concat(kDataName, "/", name));
    entry.set_writer(number);
  }
  tensor.set_logical_digest(sum);
  return manifest;
}

void check_files(const std::vector<Box>& slices, const std::vector<Box>& targets,
                 const Shape& shape, Input& input) {
  const DType dtype =
      std::vector{DType::kF32, DType::kBF16, DType::kU8, DType::kI64}[axis_of(input.below(4))];
  const support::TemporaryDirectory place;
  const Directory directory(place.path());
  const std::string manifest = written(directory, slices, shape, dtype, input).SerializeAsString();
  directory.write_new(kManifestName, manifest);
  directory.write_new(kMarkerName, encode_marker({.format_major = kFormatMajor,
                                                  .step = 5,
                                                  .epoch = 1,
                                                  .manifest_bytes = std::ssize(manifest),
                                                  .manifest_hash = hash128(bytes_of(manifest))}));
  const CheckpointReader reader(place.path());
  std::vector<support::Tensor> tensors;
  for (const Box& target : targets) tensors.emplace_back(dtype, target.extents);
  std::vector<NamedTensor> named;
  for (size_t i = 0; i < targets.size(); ++i) {
    named.emplace_back("x", shape, targets[i], tensors[i].view());
  }
  reader.read(TensorKind::kParameter, named);
  for (size_t i = 0; i < targets.size(); ++i) {
    const std::vector<std::byte> expected = bytes_of_box(targets[i], shape, dtype);
    if (std::memcmp(tensors[i].view().data(), expected.data(), expected.size()) != 0) {
      __builtin_trap();
    }
  }
}

}  // namespace
}  // namespace tessera

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tessera::Input input{data, size};
  const bool through_files = tessera::crc32c(std::as_bytes(std::span(data, size))) % 32 == 0;
  const tessera::Shape shape = tessera::random_shape(input);
  const std::vector<tessera::Box> slices = tessera::random_slices(shape, input);
  std::vector<tessera::Box> targets{tessera::whole_box(shape)};
  for (int64_t i = input.below(4); i > 0; --i) {
    targets.push_back(tessera::random_box(shape, input));
  }
  for (const tessera::Box& target : targets) tessera::check_plan(slices, target, shape);
  tessera::check_cover(slices, shape, input);
  if (through_files) tessera::check_files(slices, targets, shape, input);
  return 0;
}
