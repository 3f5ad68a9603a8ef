#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace google::protobuf {
class FieldDescriptor;
class Message;
}  // namespace google::protobuf

namespace tessera {

/// A scalar as it was written.
struct TextValue {
  enum class Kind : uint8_t { kIdentifier, kInteger, kFloat, kString, kOther };
  Kind kind = Kind::kOther;
  bool negative = false;                  ///< a minus sign stood before it
  std::string text;                       ///< one token
  std::vector<std::string> more_strings;  ///< kString: tokens that follow; "a" 'b' is "ab"
};

/// What `field` wants, for a message: "an integer", "a number", "one of COSINE, WSD".
std::string kind_of(const google::protobuf::FieldDescriptor& field);

/// Sets the scalar `field` of `message`, or adds to it when it is repeated, and returns an empty
/// text. When the value does not fit, does nothing and returns `"x", expected an integer`.
std::string store_value(const TextValue& value, const google::protobuf::FieldDescriptor& field,
                        google::protobuf::Message& message);

}  // namespace tessera
