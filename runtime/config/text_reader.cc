#include "runtime/config/text_reader.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/message.h>

#include "kernels/core/error.h"
#include "runtime/config/text_value.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

namespace pb = google::protobuf;
using pb::io::Tokenizer;

constexpr size_t kMostProblems = 100;
constexpr int kDeepest = 32;  // messages in messages; bounds the recursion

enum class Positions { kYes, kNo };

TextValue::Kind kind(Tokenizer::TokenType type) {
  if (type == Tokenizer::TYPE_IDENTIFIER) return TextValue::Kind::kIdentifier;
  if (type == Tokenizer::TYPE_INTEGER) return TextValue::Kind::kInteger;
  if (type == Tokenizer::TYPE_FLOAT) return TextValue::Kind::kFloat;
  if (type == Tokenizer::TYPE_STRING) return TextValue::Kind::kString;
  return TextValue::Kind::kOther;
}

// A recursive-descent parser over Protobuf's own tokenizer. TextFormat::Parser is not used because
// it stops at the first problem and its wording changes with its version.
class Reader : private pb::io::ErrorCollector {
 public:
  Reader(std::string_view text, const std::string& name, Positions positions, Findings& findings)
      : name_(name),
        positions_(positions),
        findings_(findings),
        input_(text.data(), static_cast<int>(text.size())),
        tokenizer_(&input_, this) {
    tokenizer_.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
    tokenizer_.set_allow_f_after_float(true);
    next();
  }

  /// Fields up to `close`, or to the end of the text when `close` is empty.
  void read_fields(pb::Message& message, const std::string& path, const std::string& close);
  void read_field_value(pb::Message& message, const pb::FieldDescriptor& field,
                        const std::string& path);
  void expect_end() {
    if (!at_end()) problem(concat("unexpected ", in_quotes(token().text), " after the value"));
  }

 private:
  const Tokenizer::Token& token() const { return *token_; }
  bool at_end() const { return token().type == Tokenizer::TYPE_END; }
  bool at(const char* symbol) const { return token().text == symbol; }
  void next() {
    tokenizer_.Next();
    token_ = reports_ > kMostProblems ? &end_ : &tokenizer_.current();
  }
  bool take(const char* symbol) {
    if (!at(symbol)) return false;
    next();
    return true;
  }

  std::string here() const { return place(token().line, token().column); }
  std::string place(int line, int column) const {
    if (positions_ == Positions::kNo) return name_;
    return concat(name_, ":", line + 1, ":", column + 1);
  }
  // Of several problems on one line usually only the first is real.
  void problem(const std::string& what) { report(token().line, here(), what); }
  void report(int line, const std::string& where, const std::string& what) {
    if (++reports_ > kMostProblems || line == last_problem_line_) return;
    last_problem_line_ = line;
    findings_.problems.push_back(concat(where, ": ", what));
  }
  void AddError(int line, pb::io::ColumnNumber column, const std::string& message) override {
    report(line, place(line, column), message);
  }

  void read_field(pb::Message& message, const std::string& path);
  void read_element(pb::Message& message, const pb::FieldDescriptor& field,
                    const std::string& path);
  void read_list(pb::Message& message, const pb::FieldDescriptor& field, const std::string& path);
  void read_message(pb::Message& message, const std::string& path);
  void read_scalar(pb::Message& message, const pb::FieldDescriptor& field, const std::string& path);
  void skip_value();
  bool claim(const std::string& path, const std::string& where, int line);

  std::string name_;
  Positions positions_;
  Findings& findings_;
  pb::io::ArrayInputStream input_;
  Tokenizer tokenizer_;
  const Tokenizer::Token* token_ = nullptr;
  Tokenizer::Token end_{Tokenizer::TYPE_END, "", 0, 0, 0};
  size_t reports_ = 0;
  int last_problem_line_ = -1;
  int depth_ = 0;
};

void Reader::read_fields(pb::Message& message, const std::string& path, const std::string& close) {
  while (true) {
    if (at_end()) {
      if (!close.empty()) problem(concat("the text ends inside ", path, ", expected ", close));
      return;
    }
    if (!close.empty() && take(close.c_str())) return;
    if (token().type != Tokenizer::TYPE_IDENTIFIER) {
      problem(concat("found ", in_quotes(token().text), ", expected the name of a field"));
      next();
      continue;
    }
    read_field(message, path);
    if (!take(",")) take(";");
  }
}

void Reader::read_field(pb::Message& message, const std::string& path) {
  const std::string name = token().text;
  const std::string full = path.empty() ? name : path + "." + name;
  const std::string where = here();
  const int line = token().line;
  const pb::FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(name);
  if (field == nullptr) {
    const std::string owner = path.empty() ? message.GetDescriptor()->name() : path;
    problem(
        concat(owner, " has no field ", in_quotes(name), did_you_mean(name, field_names(message))));
  }
  next();
  const bool colon = take(":");
  if (field == nullptr) return skip_value();
  if (!colon && field->cpp_type() != pb::FieldDescriptor::CPPTYPE_MESSAGE) {
    problem(concat("found ", in_quotes(token().text), ", expected \":\" after ", full));
    return skip_value();
  }
  if (!field->is_repeated() && !claim(full, where, line)) return skip_value();
  read_field_value(message, *field, full);
}

/// Notes where a field was written. False, with a problem, when it had been written before.
bool Reader::claim(const std::string& path, const std::string& where, int line) {
  const auto [entry, fresh] = findings_.origins.emplace(path, where);
  if (!fresh) {
    report(line, where,
           concat(path, " is set twice, first at ", entry->second, "; take one of them away"));
  }
  return fresh;
}

void Reader::read_field_value(pb::Message& message, const pb::FieldDescriptor& field,
                              const std::string& path) {
  if (field.is_repeated() && at("[")) return read_list(message, field, path);
  read_element(message, field, path);
}

void Reader::read_list(pb::Message& message, const pb::FieldDescriptor& field,
                       const std::string& path) {
  next();
  if (take("]")) return;
  do {
    if (at_end()) break;
    read_element(message, field, path);
  } while (take(","));
  if (!take("]")) {
    problem(concat("found ", in_quotes(token().text), ", expected \",\" or \"]\" in ", path));
  }
}

void Reader::read_element(pb::Message& message, const pb::FieldDescriptor& field,
                          const std::string& path) {
  const pb::Reflection& access = *message.GetReflection();
  std::string element = path;
  if (field.is_repeated()) {
    element = concat(path, "[", access.FieldSize(message, &field), "]");
    claim(element, here(), token().line);
  }
  if (field.cpp_type() != pb::FieldDescriptor::CPPTYPE_MESSAGE) {
    return read_scalar(message, field, element);
  }
  read_message(field.is_repeated() ? *access.AddMessage(&message, &field)
                                   : *access.MutableMessage(&message, &field),
               element);
}

void Reader::read_message(pb::Message& message, const std::string& path) {
  if (!at("{") && !at("<")) {
    problem(concat(path, " is ", shown(token().text), ", expected a message: ", path, " { ... }"));
    return skip_value();
  }
  if (depth_ == kDeepest) {
    problem(concat("messages are nested more than ", kDeepest, " deep"));
    return skip_value();
  }
  const std::string close = at("{") ? "}" : ">";
  next();
  ++depth_;
  read_fields(message, path, close);
  --depth_;
}

void Reader::read_scalar(pb::Message& message, const pb::FieldDescriptor& field,
                         const std::string& path) {
  TextValue value;
  const std::string where = here();
  const int line = token().line;
  if (at("-")) {
    value.negative = true;
    next();
  }
  const Tokenizer::TokenType type = token().type;
  value.kind = kind(type);
  value.text = token().text;
  if (at("{") || at("<") || at("[")) {
    problem(concat(path, " is ", shown(value.text), ", expected ", kind_of(field)));
    return skip_value();
  }
  // A closing brace or a missing value is left for the caller.
  if (value.kind != TextValue::Kind::kOther) next();
  while (type == Tokenizer::TYPE_STRING && token().type == Tokenizer::TYPE_STRING) {
    value.more_strings.push_back(token().text);
    next();
  }
  const std::string complaint = store_value(value, field, message);
  if (!complaint.empty()) report(line, where, concat(path, " is ", complaint));
}

// Without recursion, so that depth costs nothing.
void Reader::skip_value() {
  int64_t depth = 0;
  do {
    if (at_end()) return;
    if (depth == 0 && (at("}") || at(">") || at("]"))) return;
    const bool string = token().type == Tokenizer::TYPE_STRING;
    const bool sign = at("-");
    if (at("{") || at("<") || at("[")) ++depth;
    if (at("}") || at(">") || at("]")) --depth;
    next();
    if (depth == 0 && sign) continue;
    while (string && token().type == Tokenizer::TYPE_STRING) next();
    if (depth == 0) return;
  } while (true);
}

}  // namespace

void read_text(std::string_view text, const std::string& name, pb::Message& message,
               Findings& findings) {
  Reader(text, name, Positions::kYes, findings).read_fields(message, "", "");
}

void read_value(std::string_view text, const std::string& name, const std::string& path,
                const pb::FieldDescriptor& field, pb::Message& message, Findings& findings) {
  Reader reader(text, name, Positions::kNo, findings);
  reader.read_field_value(message, field, path);
  reader.expect_end();
}

std::vector<std::string> field_names(const pb::Message& message) {
  const pb::Descriptor& type = *message.GetDescriptor();
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->name());
  return names;
}

}  // namespace tessera
