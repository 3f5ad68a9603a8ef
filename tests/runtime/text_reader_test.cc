#include "runtime/config/text_reader.h"

#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/text_format.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include "kernels/core/error.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"
#include "runtime/config/wording.h"

namespace tessera {
namespace {

using google::protobuf::FileDescriptorProto;
using google::protobuf::TextFormat;
using google::protobuf::util::MessageDifferencer;

template <class M>
std::string problems_of(const std::string& text) {
  M message;
  Findings findings;
  read_text(text, "t", message, findings);
  return joined(findings.problems);
}

std::string problems(const std::string& text) {
  return problems_of<TrainConfig>(text);
}

// TextFormat is the reference: whatever it prints must be read as the same message.
TEST(TextReader, ReadsWhatTextFormatPrints) {
  FileDescriptorProto printed;
  TrainConfig::descriptor()->file()->CopyTo(&printed);
  printed.add_public_dependency(7);
  printed.add_public_dependency(-8);
  printed.mutable_options()->set_java_package("quotes \" ' \\ \t \xC3\xA9");
  printed.mutable_options()->set_deprecated(true);
  auto& option = *printed.mutable_options()->add_uninterpreted_option();
  option.set_double_value(-1.5e-300);
  option.set_negative_int_value(std::numeric_limits<int64_t>::min());
  option.set_positive_int_value(std::numeric_limits<uint64_t>::max());
  option.set_string_value(std::string("\0\xff bytes", 8));
  std::string text;
  TextFormat::PrintToString(printed, &text);
  FileDescriptorProto read;
  Findings findings;
  read_text(text, "t", read, findings);
  EXPECT_EQ(joined(findings.problems), "");
  EXPECT_TRUE(MessageDifferencer::Equals(read, printed)) << read.DebugString();

  FileDescriptorProto again;
  Findings more;
  read_text(to_text(printed), "t", again, more);
  EXPECT_EQ(joined(more.problems), "");
  EXPECT_TRUE(MessageDifferencer::Equals(again, printed)) << again.DebugString();
}

TEST(TextReader, ReadsEveryWayToWriteAValue) {
  const std::string text = R"(
    # a comment with a brace {
    model: < vocabulary: 0x101, hidden: 0100; layers: 3 norm_epsilon: 1e-5f
             moe { router: SIGMOID balance_scope: 1 } qk_norm: t tie_embeddings: 0 >
    optimizer { learning_rate: .5 beta1: 1 beta2: -inf epsilon: nan weight_decay: -2.5E+1 }
    run_dir: "runs" '/' "\x61\n" seed: 18446744073709551615 steps: -9223372036854775808
  )";
  TrainConfig ours;
  Findings findings;
  read_text(text, "t", ours, findings);
  EXPECT_EQ(joined(findings.problems), "");
  TrainConfig theirs;
  ASSERT_TRUE(TextFormat::ParseFromString(text, &theirs));
  EXPECT_EQ(ours.DebugString(), theirs.DebugString());
  EXPECT_EQ(ours.model().vocabulary(), 257);
  EXPECT_EQ(ours.run_dir(), "runs/a\n");
}

TEST(TextReader, ReadsListsOnOneLineAndOnSeveral) {
  FileDescriptorProto file;
  Findings findings;
  read_text(
      "dependency: ['a', \"b\" 'c'] dependency: 'd' public_dependency: [] "
      "message_type [{ name: 'M' }, < name: 'N' >]",
      "t", file, findings);
  EXPECT_EQ(joined(findings.problems), "");
  ASSERT_EQ(file.dependency_size(), 3);
  EXPECT_EQ(file.dependency(1), "bc");
  ASSERT_EQ(file.message_type_size(), 2);
  EXPECT_EQ(file.message_type(1).name(), "N");
  EXPECT_EQ(findings.origins.at("dependency[2]"), "t:1:40");
}

TEST(TextReader, NamesFileLineColumnAndTheNearestName) {
  EXPECT_EQ(problems("model {\n  layerz: 3\n}"),
            "t:2:3: model has no field \"layerz\"; did you mean \"layers\"?");
  EXPECT_EQ(problems("stepz: 1"),
            "t:1:1: TrainConfig has no field \"stepz\"; did you mean "
            "\"steps\"?");
  EXPECT_EQ(problems("schedule { shape: COSIN }"),
            "t:1:19: schedule.shape is COSIN; did you mean \"COSINE\"?");
  EXPECT_EQ(problems("schedule { shape: 9 }"),
            "t:1:19: schedule.shape is 9; expected one of COSINE, WSD, CONSTANT");
}

TEST(TextReader, TellsAllProblemsAtOnceAndReadsOn) {
  TrainConfig config;
  Findings findings;
  read_text(
      "stepz: { a: [1, 2] b { c: 'x' 'y' } }\n"
      "model { layers: 'three' }\n"
      "steps: 1.5\n"
      "seed: -1\n"
      "batch: 7\n"
      "run_dir: runs\n"
      "optimizer { learning_rate: fast }\n"
      "runtime { threads: 3000000000 }\n"
      "data { document_boundaries: 2 }\n"
      "checkpoint { every: 5 }\n",
      "t", config, findings);
  EXPECT_EQ(joined(findings.problems),
            "t:1:1: TrainConfig has no field \"stepz\"; did you mean \"steps\"?\n"
            "t:2:17: model.layers is 'three', expected an integer of at most 32 bits\n"
            "t:3:8: steps is 1.5, expected an integer of at most 64 bits\n"
            "t:4:7: seed is -1, expected an integer from 0 to 18446744073709551615\n"
            "t:5:8: batch is 7, expected a message: batch { ... }\n"
            "t:6:10: run_dir is runs, expected UTF-8 text in quotes\n"
            "t:7:28: optimizer.learning_rate is fast, expected a number\n"
            "t:8:20: runtime.threads is 3000000000, expected an integer of at most 32 bits\n"
            "t:9:29: data.document_boundaries is 2, expected true or false");
  EXPECT_EQ(config.checkpoint().every(), 5);
}

TEST(TextReader, RefusesASecondValue) {
  EXPECT_EQ(problems("steps: 1\nsteps: 2"),
            "t:2:1: steps is set twice, first at t:1:1; take one of them away");
  EXPECT_EQ(problems("model { layers: 1 }\nmodel { heads: 1 }"),
            "t:2:1: model is set twice, first at t:1:1; take one of them away");
}

TEST(TextReader, ExplainsBrokenSyntax) {
  EXPECT_EQ(problems("seed: 4steps: 513"), "t:1:8: Need space between number and identifier.");
  EXPECT_EQ(problems("model {\n layers: 3"), "t:2:11: the text ends inside model, expected }");
  EXPECT_EQ(problems("steps: 3 }"), "t:1:10: found \"}\", expected the name of a field");
  EXPECT_EQ(problems("steps 3"), "t:1:7: found \"3\", expected \":\" after steps");
  EXPECT_EQ(problems("steps:"), "t:1:7: steps is , expected an integer of at most 64 bits");
  EXPECT_EQ(problems("run_dir: \"runs"), "t:1:15: Unexpected end of string.");
  EXPECT_EQ(problems("steps: [1]"), "t:1:8: steps is [, expected an integer of at most 64 bits");
  EXPECT_EQ(problems("[google.com/x] { }"), "t:1:1: found \"[\", expected the name of a field");
  EXPECT_EQ(problems_of<FileDescriptorProto>("dependency: ['a' 'b'"),
            "t:1:21: found \"\", expected \",\" or \"]\" in dependency");
}

TEST(TextReader, RefusesTextThatIsNotUtf8) {
  EXPECT_EQ(problems("run_dir: \"\\xff\""),
            "t:1:10: run_dir is \"\\xff\", expected UTF-8 text in quotes");
  EXPECT_EQ(problems("run_dir: \"a\\000b\""),
            "t:1:10: run_dir is \"a\\000b\", expected UTF-8 text in quotes");
  EXPECT_EQ(problems("run_dir: \"\\xed\\xa0\\x80\""),  // a surrogate
            "t:1:10: run_dir is \"\\xed\\xa0\\x80\", expected UTF-8 text in quotes");
  EXPECT_EQ(problems("run_dir: \"\\xe2\\x82\\xac \\xf0\\x9f\\x98\\x80\""), "");
}

TEST(TextReader, SurvivesDepthAndLength) {
  std::string nested;
  for (int i = 0; i < 40; ++i) nested += "nested_type { ";
  EXPECT_EQ(problems_of<FileDescriptorProto>("message_type { " + nested),
            "t:1:462: messages are nested more than 32 deep");
  const std::string braces(1000000, '{');
  EXPECT_NE(problems("model " + braces), "");
  EXPECT_NE(problems("unknown " + braces), "");
  EXPECT_NE(problems("unknown: " + std::string(1000000, '[')), "");
  EXPECT_NE(problems(std::string(1000000, '}')), "");
  EXPECT_NE(problems(std::string(1000000, '-')), "");
  std::string lines;
  for (int i = 0; i < 100000; ++i) lines += "a: 1\n";
  EXPECT_TRUE(problems(lines).ends_with("and 80 more problems; mend these first"));
}

TEST(TextReader, ReadsOneValue) {
  TrainConfig config;
  Findings findings;
  const auto* field = TrainConfig::descriptor()->FindFieldByName("mesh");
  read_value("{ tensor: 2 }", "--set", "mesh", *field, config, findings);
  EXPECT_EQ(joined(findings.problems), "");
  EXPECT_EQ(config.mesh().tensor(), 2);
  read_value("3 4", "--set", "steps", *TrainConfig::descriptor()->FindFieldByName("steps"), config,
             findings);
  EXPECT_EQ(joined(findings.problems), "--set: unexpected \"4\" after the value");
}

}  // namespace
}  // namespace tessera
