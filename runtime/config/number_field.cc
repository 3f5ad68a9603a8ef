#include "runtime/config/number_field.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include "kernels/core/error.h"

namespace tessera {

namespace {

namespace pb = google::protobuf;
using pb::FieldDescriptor;

// The only part of a configuration whose absence says something: no experts.
bool may_be_absent(const FieldDescriptor& field) {
  return field.name() == "moe";
}

}  // namespace

NumberField::NumberField(pb::Message& root, std::string_view path) {
  pb::Message* owner = &root;
  while (true) {
    const size_t dot = path.find('.');
    const FieldDescriptor* field =
        owner->GetDescriptor()->FindFieldByName(std::string(path.substr(0, dot)));
    CHECK(field != nullptr, "configuration: ", owner->GetDescriptor()->name(), " has no field \"",
          path, "\"");
    if (dot == std::string_view::npos) {
      owner_ = owner;
      field_ = field;
      return;
    }
    CHECK(!field->is_repeated(), "configuration: ", field->full_name(), " is a list");
    const pb::Reflection& access = *owner->GetReflection();
    if (may_be_absent(*field) && !access.HasField(*owner, field)) return;
    owner = access.MutableMessage(owner, field);
    path.remove_prefix(dot + 1);
  }
}

bool NumberField::is_set() const {
  return owner_->GetReflection()->HasField(*owner_, field_);
}

bool NumberField::is_integer() const {
  const FieldDescriptor::CppType type = field_->cpp_type();
  return type != FieldDescriptor::CPPTYPE_FLOAT && type != FieldDescriptor::CPPTYPE_DOUBLE;
}

double NumberField::get() const {
  const pb::Reflection& access = *owner_->GetReflection();
  switch (field_->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return access.GetInt32(*owner_, field_);
    case FieldDescriptor::CPPTYPE_INT64:
      return static_cast<double>(access.GetInt64(*owner_, field_));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return access.GetFloat(*owner_, field_);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return access.GetDouble(*owner_, field_);
    case FieldDescriptor::CPPTYPE_BOOL:
      return access.GetBool(*owner_, field_) ? 1 : 0;
    default:
      throw Error(__FILE__, __LINE__, field_->full_name() + " is not a number");
  }
}

void NumberField::set(double value) {
  const pb::Reflection& access = *owner_->GetReflection();
  switch (field_->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return access.SetInt32(owner_, field_, static_cast<int32_t>(value));
    case FieldDescriptor::CPPTYPE_INT64:
      return access.SetInt64(owner_, field_, static_cast<int64_t>(value));
    case FieldDescriptor::CPPTYPE_FLOAT:
      return access.SetFloat(owner_, field_, static_cast<float>(value));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return access.SetDouble(owner_, field_, value);
    case FieldDescriptor::CPPTYPE_BOOL:
      return access.SetBool(owner_, field_, value != 0);
    default:
      throw Error(__FILE__, __LINE__, field_->full_name() + " is not a number");
  }
}

}  // namespace tessera
