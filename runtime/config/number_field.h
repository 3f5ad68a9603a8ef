#pragma once

#include <string_view>

namespace google::protobuf {
class FieldDescriptor;
class Message;
}  // namespace google::protobuf

namespace tessera {

/// A number or truth value somewhere inside a message, read and written as double: exact up to
/// 2^53. Messages on the way that may be left out as a whole (model.moe) are not made.
class NumberField {
 public:
  /// `path` is "a.b.c" and must exist. Keeps a reference to `root`. Other messages on the way are
  /// made when they are absent.
  NumberField(google::protobuf::Message& root, std::string_view path);

  /// False when the field is inside a message that was left out.
  bool reachable() const { return owner_ != nullptr; }
  bool is_set() const;
  bool is_integer() const;
  double get() const;
  void set(double value);

 private:
  google::protobuf::Message* owner_ = nullptr;
  const google::protobuf::FieldDescriptor* field_ = nullptr;
};

}  // namespace tessera
