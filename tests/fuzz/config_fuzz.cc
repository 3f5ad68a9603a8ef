#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "runtime/config/config.h"
#include "runtime/config/text_reader.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"

// Feeds any text to the configuration reader: what stands before the first NUL is the file, each
// further piece an override. It must accept or throw Error(kUsage); what it accepts must come back
// the same from its own text; and Protobuf's parser must agree with what our reader accepts.

namespace tessera {
namespace {

namespace pb = google::protobuf;

class Silent : public pb::io::ErrorCollector {
  void AddError(int, pb::io::ColumnNumber, const std::string&) override {}
};

/// Protobuf's own parser as reference. FileDescriptorProto has lists and recursion; it gets every
/// fourth text, because most of its texts are unknown fields, which are slow.
template <class Message>
void compare_readers(const std::string& text) {
  Message ours;
  Findings findings;
  read_text(text, "fuzz", ours, findings);
  if (!findings.problems.empty()) return;
  Message theirs;
  Silent silent;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&silent);
  parser.AllowPartialMessage(true);
  if (!parser.ParseFromString(text, &theirs)) __builtin_trap();
  if (ours.SerializePartialAsString() != theirs.SerializePartialAsString()) __builtin_trap();
}

std::vector<std::string> pieces(const uint8_t* data, size_t size) {
  std::vector<std::string> found(1);
  for (size_t i = 0; i < size; ++i) {
    if (data[i] == 0) {
      found.emplace_back();
    } else {
      found.back() += static_cast<char>(data[i]);
    }
  }
  return found;
}

void parse(const std::string& text, const std::vector<std::string>& overrides) {
  try {
    TrainConfig config = parse_train_config(text, "fuzz", overrides);
    const std::string resolved = to_text(config);
    if (to_text(parse_train_config(resolved, "resolved")) != resolved) __builtin_trap();
    resolve_mesh(config, 8);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kUsage) __builtin_trap();
  }
}

}  // namespace
}  // namespace tessera

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::string> pieces = tessera::pieces(data, size);
  const std::string text = pieces.front();
  pieces.erase(pieces.begin());
  tessera::parse(text, pieces);
  tessera::compare_readers<tessera::TrainConfig>(text);
  if (size % 4 == 0) tessera::compare_readers<google::protobuf::FileDescriptorProto>(text);
  return 0;
}
