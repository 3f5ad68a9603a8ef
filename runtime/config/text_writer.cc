#include "runtime/config/text_writer.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include "kernels/core/error.h"

namespace tessera {

namespace {

namespace pb = google::protobuf;

void write(const pb::Message& message, const std::string& indent, std::string& text) {
  const pb::Descriptor& type = *message.GetDescriptor();
  const pb::Reflection& access = *message.GetReflection();
  for (int i = 0; i < type.field_count(); ++i) {
    const pb::FieldDescriptor& field = *type.field(i);
    const bool list = field.is_repeated();
    if (!list && field.has_presence() && !access.HasField(message, &field)) continue;
    const int count = list ? access.FieldSize(message, &field) : 1;
    for (int element = 0; element < count; ++element) {
      text += indent + field.name();
      if (field.cpp_type() == pb::FieldDescriptor::CPPTYPE_MESSAGE) {
        text += " {\n";
        write(list ? access.GetRepeatedMessage(message, &field, element)
                   : access.GetMessage(message, &field),
              indent + "  ", text);
        text += indent + "}\n";
      } else {
        std::string value;
        pb::TextFormat::PrintFieldValueToString(message, &field, list ? element : -1, &value);
        text += concat(": ", value, "\n");
      }
    }
  }
}

}  // namespace

std::string to_text(const pb::Message& message) {
  std::string text;
  write(message, "", text);
  return text;
}

}  // namespace tessera
