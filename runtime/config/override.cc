#include "runtime/config/override.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "kernels/core/error.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

namespace pb = google::protobuf;

// What was noted about a field or about the fields inside it no longer holds.
void forget(const std::string& path, Findings& findings) {
  std::erase_if(findings.origins, [&](const auto& entry) {
    const std::string& name = entry.first;
    if (!name.starts_with(path)) return false;
    return name.size() == path.size() || name[path.size()] == '.' || name[path.size()] == '[';
  });
}

bool needs_quotes(const pb::FieldDescriptor& field, const std::string& value) {
  return field.cpp_type() == pb::FieldDescriptor::CPPTYPE_STRING && !field.is_repeated() &&
         value.front() != '"' && value.front() != '\'';
}

std::string escaped(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + "\"";
}

void set_field(const std::string& path, const std::string& value, const std::string& origin,
               const pb::FieldDescriptor& field, pb::Message& message, Findings& findings) {
  forget(path, findings);
  message.GetReflection()->ClearField(&message, &field);
  if (value.empty()) return;
  read_value(needs_quotes(field, value) ? escaped(value) : value, origin, path, field, message,
             findings);
  findings.origins.insert_or_assign(path, origin);
}

}  // namespace

void apply_override(const std::string& assignment, pb::Message& message, Findings& findings) {
  const std::string origin = "--set " + shown(assignment);
  const auto problem = [&](const std::string& what) {
    findings.problems.push_back(concat(origin, ": ", what));
  };
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos) return problem("has no \"=\", expected a.b.c=value");
  const std::string path = assignment.substr(0, equals);
  pb::Message* owner = &message;
  for (size_t begin = 0;;) {
    const size_t dot = std::min(path.find('.', begin), path.size());
    const std::string name = path.substr(begin, dot - begin);
    const pb::FieldDescriptor* field = owner->GetDescriptor()->FindFieldByName(name);
    if (field == nullptr) {
      const std::string place =
          begin == 0 ? owner->GetDescriptor()->name() : shown(path.substr(0, begin - 1));
      return problem(concat(place, " has no field ", in_quotes(name),
                            did_you_mean(name, field_names(*owner))));
    }
    if (dot == path.size()) {
      return set_field(path, assignment.substr(equals + 1), origin, *field, *owner, findings);
    }
    if (field->cpp_type() != pb::FieldDescriptor::CPPTYPE_MESSAGE || field->is_repeated()) {
      return problem(
          concat(path.substr(0, dot), " has no fields, expected ", path.substr(0, dot), "=value"));
    }
    owner = owner->GetReflection()->MutableMessage(owner, field);
    begin = dot + 1;
  }
}

}  // namespace tessera
