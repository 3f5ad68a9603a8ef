#include "checkpoint/wire_size.h"

#include <google/protobuf/descriptor.h>

#include <limits>
#include <optional>

namespace tessera {

namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

// Lists grow by doubling: what is in them may take twice its size.
constexpr int64_t kNumberBytes = 16;  // a number in a list
constexpr int64_t kUnknownFieldBytes = 64;
constexpr int64_t kStringBytes = 64;    // a string object, or the first allocation of a list
constexpr int64_t kMessageBytes = 128;  // the largest message, and its place in a list

struct Cursor {
  std::string_view rest;

  std::optional<uint64_t> varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 70 && !rest.empty(); shift += 7) {
      const auto byte = static_cast<uint8_t>(rest.front());
      rest.remove_prefix(1);
      if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    return std::nullopt;
  }

  std::optional<std::string_view> take(uint64_t count) {
    if (count > rest.size()) return std::nullopt;
    const std::string_view taken = rest.substr(0, count);
    rest.remove_prefix(count);
    return taken;
  }
};

// What a length-delimited field takes, or -1.
int64_t bound_of(std::string_view body, const FieldDescriptor* field, int64_t enough) {
  const auto length = static_cast<int64_t>(body.size());
  const int64_t text = kUnknownFieldBytes + kStringBytes + length;
  if (field == nullptr) return text;
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) return text;
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    const int64_t inner = parsed_size_bound(body, *field->message_type(), enough);
    return inner < 0 ? -1 : kMessageBytes + inner;
  }
  const bool fixed = field->type() == FieldDescriptor::TYPE_FIXED32;
  return fixed ? text : text + kNumberBytes * length;
}

}  // namespace

int64_t parsed_size_bound(std::string_view bytes, const Descriptor& type, int64_t enough) {
  int64_t total = 0;
  Cursor cursor{bytes};
  while (!cursor.rest.empty() && total <= enough) {
    const std::optional<uint64_t> tag = cursor.varint();
    if (!tag || *tag >> 3 == 0 || *tag > std::numeric_limits<uint32_t>::max()) return -1;
    bool complete = false;
    int64_t cost = kUnknownFieldBytes;  // as every field is that comes with another wire type
    switch (*tag & 7) {
      case 0:
        complete = cursor.varint().has_value();
        break;
      case 1:
        complete = cursor.take(8).has_value();
        break;
      case 2:
        if (const std::optional<uint64_t> length = cursor.varint()) {
          if (const std::optional<std::string_view> body = cursor.take(*length)) {
            cost = bound_of(*body, type.FindFieldByNumber(static_cast<int>(*tag >> 3)), enough);
            complete = cost >= 0;
          }
        }
        break;
      case 5:
        complete = cursor.take(4).has_value();
        break;
      default:  // groups: no message of ours has any
        break;
    }
    if (!complete) return -1;
    total += cost;
  }
  return total;
}

}  // namespace tessera
