#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/stubs/logging.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/block_file.h"
#include "checkpoint/manifest.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/wire_size.h"
#include "checkpoint/wire_types.h"

// Feeds manifests to parser and validator. An odd first byte: any bytes. An even one: a good
// manifest, in which the input changes fields one after the other. They must accept or throw
// Error(kBadData). What they accept is checked by counting: every element of every small tensor is
// in exactly one slice, and no byte of a file belongs to two things. No message may take more
// memory than parsed_size_bound has said.

namespace tessera {
namespace {

namespace pb = google::protobuf;

void add_slice(wire::Tensor& tensor, const Box& box, int file, int64_t at) {
  wire::Slice& slice = *tensor.add_slices();
  set_box(box, slice);
  slice.set_file(file);
  slice.set_byte_offset(at);
  slice.set_byte_length(box.extents.elements() * 4);
}

wire::Manifest good_manifest() {
  wire::Manifest manifest;
  manifest.set_format_major(kFormatMajor);
  manifest.set_run_uuid("0123456789abcdef0123456789abcdef");
  manifest.set_epoch(1);
  for (int writer = 0; writer < 2; ++writer) {
    wire::File& file = *manifest.add_files();
    file.set_path("d/" + std::to_string(writer));
    file.set_size(3 * kSegmentAlignment);
    file.set_xxh3_128(manifest.run_uuid());
    file.set_block_size(kBlockBytes);
    file.add_block_crc32c(1);
    file.set_writer(writer);
  }
  for (const char* name : {"a", "b"}) {
    wire::Tensor& tensor = *manifest.add_tensors();
    tensor.set_name(name);
    set_type(TensorKind::kParameter, DType::kF32, {4, 6}, tensor);
    const int64_t at = kHeaderBytes + (name[0] - 'a') * kSegmentAlignment;
    add_slice(tensor, {{0, 0}, {4, 2}}, 0, at);
    add_slice(tensor, {{0, 2}, {4, 4}}, 1, at);
  }
  return manifest;
}

// The bytes of an input, taken one by one; zeros after the end.
struct Choices {
  const uint8_t* data;
  size_t size;

  uint8_t byte() { return size == 0 ? 0 : (--size, *data++); }
  // Small numbers, neighbours of powers of two, and now and then any number.
  int64_t number() {
    const uint8_t form = byte();
    const uint8_t value = byte();
    if (form < 96) return value;
    if (form < 160) return value * int64_t{4096};
    if (form < 224) {
      return static_cast<int64_t>((uint64_t{1} << (value % 64)) + (form % 3) - 1);
    }
    uint64_t any = 0;
    for (int i = 0; i < 8; ++i) any = any << 8 | byte();
    return static_cast<int64_t>(any);
  }
};

void change_field(pb::Message& message, Choices& choices);

void change_number(pb::Message& message, const pb::FieldDescriptor& field, Choices& choices) {
  const pb::Reflection& reflection = *message.GetReflection();
  const int64_t value = choices.number();
  const int count = field.is_repeated() ? reflection.FieldSize(message, &field) : 0;
  const bool add = field.is_repeated() && (count == 0 || choices.byte() % 4 == 0);
  const int at = count == 0 ? 0 : choices.byte() % count;
  switch (field.cpp_type()) {
    case pb::FieldDescriptor::CPPTYPE_INT64:
      if (add) return reflection.AddInt64(&message, &field, value);
      if (count > 0) return reflection.SetRepeatedInt64(&message, &field, at, value);
      return reflection.SetInt64(&message, &field, value);
    case pb::FieldDescriptor::CPPTYPE_UINT64:
      return reflection.SetUInt64(&message, &field, static_cast<uint64_t>(value));
    case pb::FieldDescriptor::CPPTYPE_INT32:
      return reflection.SetInt32(&message, &field, static_cast<int32_t>(value));
    case pb::FieldDescriptor::CPPTYPE_UINT32:
      if (field.is_repeated()) {
        return reflection.AddUInt32(&message, &field, static_cast<uint32_t>(value));
      }
      return reflection.SetUInt32(&message, &field, static_cast<uint32_t>(value));
    case pb::FieldDescriptor::CPPTYPE_ENUM:
      return reflection.SetEnumValue(&message, &field, static_cast<int>(value));
    default:
      return;
  }
}

void change_text(pb::Message& message, const pb::FieldDescriptor& field, Choices& choices) {
  std::string text;
  for (uint8_t left = choices.byte() % 40; left > 0; --left)
    text += static_cast<char>(choices.byte());
  const pb::Reflection& reflection = *message.GetReflection();
  if (field.is_repeated()) {
    reflection.AddString(&message, &field, text);
  } else {
    reflection.SetString(&message, &field, text);
  }
}

void change_messages(pb::Message& message, const pb::FieldDescriptor& field, Choices& choices) {
  const pb::Reflection& reflection = *message.GetReflection();
  if (!field.is_repeated()) {
    return change_field(*reflection.MutableMessage(&message, &field), choices);
  }
  const int count = reflection.FieldSize(message, &field);
  const uint8_t action = choices.byte();
  if (count == 0 || action < 32) {
    pb::Message& added = *reflection.AddMessage(&message, &field);
    if (count > 0) added.CopyFrom(reflection.GetRepeatedMessage(message, &field, action % count));
    return;
  }
  if (action < 48) return reflection.RemoveLast(&message, &field);
  change_field(*reflection.MutableRepeatedMessage(&message, &field, action % count), choices);
}

void change_field(pb::Message& message, Choices& choices) {
  const pb::Descriptor& type = *message.GetDescriptor();
  const pb::FieldDescriptor& field = *type.field(choices.byte() % type.field_count());
  if (field.cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE) {
    change_messages(message, field, choices);
  } else if (field.cpp_type() == pb::FieldDescriptor::CPPTYPE_STRING) {
    change_text(message, field, choices);
  } else {
    change_number(message, field, choices);
  }
}

void count_elements(const wire::Tensor& tensor) {
  const Shape shape = shape_of(tensor);
  if (shape.elements() > 4096) return;
  std::vector<int> counts(static_cast<size_t>(shape.elements()));
  for (const wire::Slice& slice : tensor.slices()) {
    const Box box = box_of(slice);
    for_each_stretch(box, box, whole_box(shape), [&](const Stretch& stretch) {
      for (int64_t i = 0; i < stretch.length; ++i) {
        ++counts.at(static_cast<size_t>(stretch.in_second + i));
      }
    });
  }
  for (const int count : counts) {
    if (count != 1) __builtin_trap();
  }
}

void count_pages(const wire::Manifest& manifest) {
  std::vector<std::vector<int>> users;
  for (const wire::File& file : manifest.files()) {
    if (file.size() > int64_t{64} << 20) return;
    users.emplace_back(static_cast<size_t>(file.size() / kSegmentAlignment));
  }
  const auto use = [&](int file, int64_t begin, int64_t length) {
    for (int64_t at = begin; at < begin + length; at += kSegmentAlignment) {
      if (users.at(static_cast<size_t>(file)).at(static_cast<size_t>(at / kSegmentAlignment))++ >
          0) {
        __builtin_trap();
      }
    }
  };
  for (const wire::Tensor& tensor : manifest.tensors()) {
    for (const wire::Slice& slice : tensor.slices()) {
      use(slice.file(), slice.byte_offset(), slice.byte_length());
    }
  }
  for (const wire::Blob& blob : manifest.blobs()) {
    use(blob.file(), blob.byte_offset(), blob.byte_length());
  }
}

void check_bound(const std::string& bytes) {
  wire::Manifest manifest;
  if (!manifest.ParseFromString(bytes)) return;
  const int64_t bound = parsed_size_bound(bytes, *wire::Manifest::descriptor());
  const auto taken = static_cast<int64_t>(manifest.SpaceUsedLong() - sizeof(manifest));
  // Well-formed for us as for Protobuf, but for groups, which only unknown fields can be.
  if (bound >= 0 && bound < taken) __builtin_trap();
}

void check(const std::string& bytes) {
  check_bound(bytes);
  try {
    const wire::Manifest manifest = parse_manifest(bytes, "fuzz");
    for (const wire::Tensor& tensor : manifest.tensors()) count_elements(tensor);
    count_pages(manifest);
    (void)facts_of(manifest);
    for (const wire::File& file : manifest.files()) (void)summary_of(file);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadData) throw;
  }
  try {
    (void)parse_part(bytes, "fuzz");
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadData) throw;
  }
}

}  // namespace
}  // namespace tessera

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const google::protobuf::LogSilencer quiet;  // texts that are no UTF-8
  if ((data[0] & 1) != 0) {
    tessera::check(std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
    return 0;
  }
  tessera::wire::Manifest manifest = tessera::good_manifest();
  tessera::Choices choices{data + 1, size - 1};
  while (choices.size > 0) tessera::change_field(manifest, choices);
  tessera::check(manifest.SerializeAsString());
  return 0;
}
