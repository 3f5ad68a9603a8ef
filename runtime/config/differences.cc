#include "runtime/config/differences.h"

#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <utility>

#include "kernels/core/error.h"
#include "runtime/config/train.pb.h"

namespace tessera {

namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::util::MessageDifferencer;
using Path = std::vector<MessageDifferencer::SpecificField>;

/// A field's value on one side; of a list the element `index`, which may be beyond its end.
std::string text_of(const Message& parent, const FieldDescriptor* field, int index) {
  const google::protobuf::Reflection& reflection = *parent.GetReflection();
  const bool there = field->is_repeated()
                         ? index >= 0 && index < reflection.FieldSize(parent, field)
                         : !field->message_type() || reflection.HasField(parent, field);
  if (!there) return "nothing";
  if (field->message_type() == nullptr) {
    std::string text;
    google::protobuf::TextFormat::PrintFieldValueToString(parent, field, index, &text);
    return text;
  }
  const Message& value = field->is_repeated() ? reflection.GetRepeatedMessage(parent, field, index)
                                              : reflection.GetMessage(parent, field);
  return concat("{ ", value.ShortDebugString(), " }");
}

/// Collects a sentence for each field.
class Sentences : public MessageDifferencer::Reporter {
 public:
  void ReportAdded(const Message& before, const Message& now, const Path& path) override {
    tell(before, now, path);
  }
  void ReportDeleted(const Message& before, const Message& now, const Path& path) override {
    tell(before, now, path);
  }
  /// A message is modified when a field of it is, which has been told.
  void ReportModified(const Message& before, const Message& now, const Path& path) override {
    if (path.back().field->message_type() == nullptr) tell(before, now, path);
  }
  std::vector<std::string> take() { return std::move(sentences_); }

 private:
  /// `before` and `now` hold the last field of the path.
  void tell(const Message& before, const Message& now, const Path& path) {
    std::string name;
    for (const auto& step : path) {
      name += (name.empty() ? "" : ".") + step.field->name();
      if (step.field->is_repeated()) name += concat("[", std::max(step.index, step.new_index), "]");
    }
    const auto& last = path.back();
    sentences_.push_back(concat(name, ": ", text_of(before, last.field, last.index), " -> ",
                                text_of(now, last.field, last.new_index)));
  }

  std::vector<std::string> sentences_;
};

}  // namespace

std::vector<std::string> config_differences(const TrainConfig& before, const TrainConfig& now) {
  TrainConfig same_place = now;
  same_place.set_run_dir(before.run_dir());
  Sentences sentences;
  MessageDifferencer differencer;
  differencer.ReportDifferencesTo(&sentences);
  differencer.Compare(before, same_place);
  return sentences.take();
}

}  // namespace tessera
