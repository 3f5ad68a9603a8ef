#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace google::protobuf {
class FieldDescriptor;
class Message;
}  // namespace google::protobuf

namespace tessera {

/// What reading found, collected so that all problems are told at once.
struct Findings {
  std::vector<std::string> problems;  ///< "run.textproto:3:5: model.layers is ..., expected ..."
  /// Where each field was written, by full name: "model.layers" -> "run.textproto:3:5". An element
  /// of a repeated field is "names[2]".
  std::map<std::string, std::string> origins;
};

/// Reads text-format Protobuf (protobuf.dev/reference/protobuf/textformat-spec, without extensions
/// and Any) into `message`, which is added to. After a problem reading goes on behind it, and stops
/// after 100. Stricter than TextFormat: nothing twice, enums by known name or
/// number, strings without NUL, at most 32 messages deep. `name` is what messages call the text.
void read_text(std::string_view text, const std::string& name, google::protobuf::Message& message,
               Findings& findings);

/// Reads `text` as the value of `field`, whose full name is `path`, in `message`. The field must be
/// unset. Problems begin with `name` alone.
void read_value(std::string_view text, const std::string& name, const std::string& path,
                const google::protobuf::FieldDescriptor& field, google::protobuf::Message& message,
                Findings& findings);

/// The names of the fields of a message, for hints.
std::vector<std::string> field_names(const google::protobuf::Message& message);

}  // namespace tessera
