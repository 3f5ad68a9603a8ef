#include "runtime/config/text_value.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "kernels/core/error.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

namespace pb = google::protobuf;
using pb::FieldDescriptor;
using pb::io::Tokenizer;
using Kind = TextValue::Kind;

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::vector<std::string> value_names(const pb::EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) names.push_back(type.value(i)->name());
  return names;
}

template <class T>
std::optional<T> to_integer(const TextValue& value) {
  if (value.kind != Kind::kInteger) return {};
  const uint64_t most = static_cast<uint64_t>(std::numeric_limits<T>::max());
  if (value.negative && !std::numeric_limits<T>::is_signed) return {};
  uint64_t magnitude = 0;
  if (!Tokenizer::ParseInteger(value.text, most + (value.negative ? 1 : 0), &magnitude)) return {};
  return static_cast<T>(value.negative ? 0 - magnitude : magnitude);
}

std::optional<double> to_double(const TextValue& value) {
  double magnitude = 0;
  const std::string word = lower(value.text);
  if (value.kind == Kind::kInteger || value.kind == Kind::kFloat) {
    // 0x10 and 010 would mean different things to different readers.
    const bool decimal = value.kind == Kind::kFloat || value.text == "0" || value.text[0] != '0';
    if (!decimal) return {};
    magnitude = Tokenizer::ParseFloat(value.text);
  } else if (value.kind == Kind::kIdentifier && (word == "inf" || word == "infinity")) {
    magnitude = std::numeric_limits<double>::infinity();
  } else if (value.kind == Kind::kIdentifier && word == "nan") {
    magnitude = std::numeric_limits<double>::quiet_NaN();
  } else {
    return {};
  }
  return value.negative ? -magnitude : magnitude;
}

// A double beyond the range of float is infinite, not undefined.
float to_float(double value) {
  constexpr double kMost = std::numeric_limits<float>::max();
  if (value > kMost) return std::numeric_limits<float>::infinity();
  if (value < -kMost) return -std::numeric_limits<float>::infinity();
  return static_cast<float>(value);
}

std::optional<bool> to_bool(const TextValue& value) {
  if (value.negative) return {};
  const std::string& text = value.text;
  if (value.kind == Kind::kIdentifier && (text == "true" || text == "True" || text == "t")) {
    return true;
  }
  if (value.kind == Kind::kIdentifier && (text == "false" || text == "False" || text == "f")) {
    return false;
  }
  uint64_t number = 0;
  if (value.kind != Kind::kInteger || !Tokenizer::ParseInteger(text, 1, &number)) return {};
  return number == 1;
}

const pb::EnumValueDescriptor* to_enum(const TextValue& value, const pb::EnumDescriptor& type) {
  if (value.kind == Kind::kIdentifier && !value.negative) return type.FindValueByName(value.text);
  const std::optional<int32_t> number = to_integer<int32_t>(value);
  return number ? type.FindValueByNumber(*number) : nullptr;
}

bool valid_utf8(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t at) { return static_cast<unsigned char>(text[at]); };
    const unsigned char first = byte(i);
    const size_t more = first < 0x80 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    if ((first >= 0x80 && first < 0xC2) || first > 0xF4 || i + more >= text.size()) return false;
    for (size_t j = 1; j <= more; ++j) {
      if ((byte(i + j) & 0xC0) != 0x80) return false;
    }
    // Overlong forms, surrogates and what lies beyond U+10FFFF.
    if ((first == 0xE0 && byte(i + 1) < 0xA0) || (first == 0xED && byte(i + 1) > 0x9F) ||
        (first == 0xF0 && byte(i + 1) < 0x90) || (first == 0xF4 && byte(i + 1) > 0x8F)) {
      return false;
    }
    i += more + 1;
  }
  return true;
}

std::optional<std::string> to_text(const TextValue& value, bool bytes) {
  if (value.kind != Kind::kString || value.negative) return {};
  std::string text;
  Tokenizer::ParseStringAppend(value.text, &text);
  for (const std::string& more : value.more_strings) Tokenizer::ParseStringAppend(more, &text);
  if (!bytes && (text.find('\0') != std::string::npos || !valid_utf8(text))) return {};
  return text;
}

}  // namespace

std::string kind_of(const FieldDescriptor& field) {
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "a number";
    case FieldDescriptor::CPPTYPE_ENUM:
      return "a name";
    case FieldDescriptor::CPPTYPE_STRING:
      return "UTF-8 text in quotes";
    case FieldDescriptor::CPPTYPE_UINT32:
      return "an integer from 0 to 4294967295";
    case FieldDescriptor::CPPTYPE_UINT64:
      return "an integer from 0 to 18446744073709551615";
    case FieldDescriptor::CPPTYPE_INT32:
      return "an integer of at most 32 bits";
    default:
      return "an integer of at most 64 bits";
  }
}

std::string store_value(const TextValue& value, const FieldDescriptor& field,
                        pb::Message& message) {
  const pb::Reflection& access = *message.GetReflection();
  using R = pb::Reflection;
  const auto put = [&](const auto& found, auto set, auto add) {
    if (found) (access.*(field.is_repeated() ? add : set))(&message, &field, *found);
    return static_cast<bool>(found);
  };
  bool fits = false;
  std::string hint;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      fits = put(to_integer<int32_t>(value), &R::SetInt32, &R::AddInt32);
      break;
    case FieldDescriptor::CPPTYPE_INT64:
      fits = put(to_integer<int64_t>(value), &R::SetInt64, &R::AddInt64);
      break;
    case FieldDescriptor::CPPTYPE_UINT32:
      fits = put(to_integer<uint32_t>(value), &R::SetUInt32, &R::AddUInt32);
      break;
    case FieldDescriptor::CPPTYPE_UINT64:
      fits = put(to_integer<uint64_t>(value), &R::SetUInt64, &R::AddUInt64);
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      fits = put(to_double(value), &R::SetDouble, &R::AddDouble);
      break;
    case FieldDescriptor::CPPTYPE_FLOAT: {
      const std::optional<double> wide = to_double(value);
      fits = put(wide ? std::optional(to_float(*wide)) : std::nullopt, &R::SetFloat, &R::AddFloat);
      break;
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      fits = put(to_bool(value), &R::SetBool, &R::AddBool);
      break;
    case FieldDescriptor::CPPTYPE_ENUM: {
      const pb::EnumValueDescriptor* found = to_enum(value, *field.enum_type());
      fits = found != nullptr;
      if (!fits) hint = did_you_mean(value.text, value_names(*field.enum_type()));
      if (fits && field.is_repeated()) access.AddEnum(&message, &field, found);
      if (fits && !field.is_repeated()) access.SetEnum(&message, &field, found);
      break;
    }
    default: {
      std::optional<std::string> text = to_text(value, field.type() == FieldDescriptor::TYPE_BYTES);
      fits = text.has_value();
      if (fits && field.is_repeated()) access.AddString(&message, &field, std::move(*text));
      if (fits && !field.is_repeated()) access.SetString(&message, &field, std::move(*text));
    }
  }
  if (fits) return {};
  const std::string found = shown((value.negative ? "-" : "") + value.text);
  return hint.empty() ? concat(found, ", expected ", kind_of(field)) : found + hint;
}

}  // namespace tessera
