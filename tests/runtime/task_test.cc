#include "runtime/data/task.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

TaskOptions options_of(TaskKind kind, int64_t length = 256) {
  return {.kind = kind, .length = length};
}

/// A sample with names for its tokens.
struct Sample {
  Sample(const TaskOptions& options, int64_t index, const std::string& split = "train")
      : tokens(options), sample(make_sample(options, split, index)) {}

  int32_t at(int64_t position) const { return sample.tokens[static_cast<size_t>(position)]; }
  bool is_key(int32_t token) const { return token >= tokens.keys && token < tokens.values; }
  bool is_value(int32_t token) const { return token >= tokens.values && token < tokens.vocabulary; }
  int64_t count(auto&& is) const { return std::ranges::count_if(sample.tokens, is); }

  TaskTokens tokens;
  TaskSample sample;
};

TEST(Task, SamplesHaveTheirLengthAndTokensOfTheVocabulary) {
  for (const TaskKind kind : kTaskKinds) {
    for (const int64_t length : {128, 300, 2048}) {
      const TaskOptions options = options_of(kind, length);
      EXPECT_NO_THROW(check(options));
      const Sample s(options, 7);
      ASSERT_EQ(std::ssize(s.sample.tokens), length) << name_of(kind);
      EXPECT_EQ(s.sample.tokens.back(), TaskTokens::kEnd);
      EXPECT_EQ(s.count([](int32_t t) { return t == TaskTokens::kEnd; }), 1);
      EXPECT_EQ(s.count([&](int32_t t) { return t < 0 || t >= s.tokens.vocabulary; }), 0);
      ASSERT_FALSE(s.sample.answers.empty());
      for (const Answer& answer : s.sample.answers) {
        EXPECT_LT(answer.source, length * 3 / 4) << name_of(kind);
        EXPECT_GE(answer.source, length / 16);
        EXPECT_GE(answer.position, length * 3 / 4);
        EXPECT_LT(answer.position, length - 1);
        EXPECT_TRUE(s.is_value(s.at(answer.source)));
        EXPECT_TRUE(s.is_value(s.at(answer.position)));
      }
    }
  }
}

TEST(Task, RecallAsksForEachKeyOnceAndTheAnswerStandsBehindIt) {
  for (int64_t index = 0; index < 20; ++index) {
    const Sample s(options_of(TaskKind::kMqar), index);
    ASSERT_EQ(s.sample.answers.size(), 8u);
    std::set<int32_t> keys;
    for (const Answer& answer : s.sample.answers) {
      const int32_t key = s.at(answer.position - 1);
      EXPECT_TRUE(s.is_key(key));
      EXPECT_EQ(s.at(answer.source - 1), key);
      EXPECT_EQ(s.at(answer.source), s.at(answer.position));
      EXPECT_EQ(std::ranges::count(s.sample.tokens, key), 2);  // the fact and the question
      keys.insert(key);
    }
    EXPECT_EQ(keys.size(), 8u);
    EXPECT_EQ(s.count([&](int32_t t) { return s.is_value(t); }), 16);
    // In another order than the facts, or it could be known without the key.
    const auto by_source = [](const Answer& a) { return a.source; };
    EXPECT_FALSE(std::ranges::is_sorted(s.sample.answers, {}, by_source)) << index;
  }
}

TEST(Task, NeedlesAreUnique) {
  for (int64_t index = 0; index < 20; ++index) {
    const Sample passkey(options_of(TaskKind::kPasskey), index);
    const Answer a = passkey.sample.answers.at(0);
    EXPECT_EQ(passkey.at(a.source - 1), TaskTokens::kMark);
    EXPECT_EQ(passkey.at(a.position - 1), TaskTokens::kAsk);
    EXPECT_EQ(passkey.at(a.position), passkey.at(a.source));
    EXPECT_EQ(passkey.count([&](int32_t t) { return passkey.is_value(t); }), 2);
    const Sample induction(options_of(TaskKind::kInduction), index);
    const Answer b = induction.sample.answers.at(0);
    EXPECT_TRUE(induction.is_key(induction.at(b.source - 1)));
    EXPECT_EQ(induction.at(b.position - 1), induction.at(b.source - 1));
    EXPECT_EQ(induction.at(b.position), induction.at(b.source));
    EXPECT_EQ(induction.count([&](int32_t t) { return induction.is_key(t); }), 2);
    EXPECT_EQ(induction.count([&](int32_t t) { return induction.is_value(t); }), 253);
  }
}

TEST(Task, CopyAnswersAllValuesInOrder) {
  for (int64_t index = 0; index < 20; ++index) {
    const Sample s(options_of(TaskKind::kCopy), index);
    std::vector<int32_t> values;
    std::ranges::copy_if(s.sample.tokens, std::back_inserter(values),
                         [&](int32_t t) { return s.is_value(t); });
    ASSERT_EQ(values.size(), 16u);
    EXPECT_TRUE(std::equal(values.begin(), values.begin() + 8, values.begin() + 8));
    EXPECT_EQ(s.at(256 - 1 - 8 - 1), TaskTokens::kAsk);
    for (size_t i = 0; i < 8; ++i) {
      EXPECT_EQ(s.sample.answers[i].position, 256 - 1 - 8 + static_cast<int64_t>(i));
      EXPECT_EQ(s.at(s.sample.answers[i].source), values[i]);
    }
  }
}

TEST(Task, ArithmeticAddsAndSubtractsTwoFacts) {
  TaskOptions options = options_of(TaskKind::kArithmetic);
  options.modulus = 7;
  std::set<int32_t> signs;
  for (int64_t index = 0; index < 20; ++index) {
    const Sample s(options, index);
    ASSERT_EQ(s.sample.answers.size(), 8u);  // 4 answers of 2 sources
    for (size_t i = 0; i < 8; i += 2) {
      const int64_t position = s.sample.answers[i].position;
      ASSERT_EQ(s.sample.answers[i + 1].position, position);
      const auto number_of = [&](int32_t key) {
        return s.at(std::ranges::find(s.sample.tokens, key) - s.sample.tokens.begin() + 1) -
               s.tokens.values;
      };
      const int32_t x = number_of(s.at(position - 3));
      const int32_t y = number_of(s.at(position - 1));
      const bool minus = s.at(position - 2) == TaskTokens::kAsk;
      EXPECT_EQ(s.at(position) - s.tokens.values, (minus ? x - y + 7 : x + y) % 7);
      signs.insert(s.at(position - 2));
      std::set<int32_t> asked{s.at(position - 3), s.at(position - 1)};
      EXPECT_EQ(asked, (std::set<int32_t>{s.at(s.sample.answers[i].source - 1),
                                          s.at(s.sample.answers[i + 1].source - 1)}));
    }
  }
  EXPECT_EQ(signs, (std::set<int32_t>{TaskTokens::kAsk, TaskTokens::kMark}));
}

TEST(Task, SamplesDependOnSeedSplitAndIndexAlone) {
  std::set<std::vector<int32_t>> seen;
  for (const TaskKind kind : kTaskKinds) {
    for (const uint64_t seed : {1, 2}) {
      TaskOptions options = options_of(kind);
      options.seed = seed;
      for (const char* split : {"train", "validation"}) {
        for (const int64_t index : {0, 1, 100000}) {
          const TaskSample sample = make_sample(options, split, index);
          EXPECT_EQ(make_sample(options, split, index).tokens, sample.tokens);
          EXPECT_TRUE(seen.insert(sample.tokens).second) << name_of(kind) << split << index;
        }
      }
    }
  }
}

TEST(Task, FactsStandEverywhereAlike) {
  std::array<int, 8> found{};  // eighths of the places
  for (int64_t index = 0; index < 400; ++index) {
    for (const Answer& a : make_sample(options_of(TaskKind::kMqar), "train", index).answers) {
      ++found[static_cast<size_t>((a.source - 16) * 8 / (192 - 16))];
    }
  }
  for (const int count : found) EXPECT_NEAR(count, 400, 100);
}

TEST(Task, ImpossibleOptionsAreNamed) {
  const auto problem = [](auto&& change, TaskKind kind = TaskKind::kMqar) {
    TaskOptions options = options_of(kind);
    change(options);
    return thrown_by([&] { check(options); });
  };
  EXPECT_EQ(problem([](TaskOptions& o) { o.length = 31; }),
            "2: --length is 31, expected 32 to 1073741824");
  EXPECT_EQ(problem([](TaskOptions& o) { o.values = 1; }),
            "2: --values is 1, expected 2 to 1048576");
  EXPECT_EQ(problem([](TaskOptions& o) { o.pairs = 32; }),
            "2: --pairs is 32, expected 1 to 31, the places in 256 tokens; or give a larger "
            "--length");
  EXPECT_EQ(problem([](TaskOptions& o) { o.keys = 7; }),
            "2: --pairs is 8, expected 1 to 7, the number of --keys: they must differ");
  EXPECT_EQ(problem([](TaskOptions& o) { o.pairs = 63; }, TaskKind::kCopy),
            "2: --pairs is 63, expected 1 to 62, the places in 256 tokens; or give a larger "
            "--length");
  EXPECT_EQ(problem([](TaskOptions& o) { o.pairs = 7; }, TaskKind::kArithmetic),
            "2: --pairs is 7, expected an even number: arithmetic asks for two facts at a time");
  EXPECT_EQ(problem([](TaskOptions& o) { o.modulus = 65; }, TaskKind::kArithmetic),
            "2: --modulus is 65, expected 2 to 64, the number of values");
  EXPECT_EQ(problem([](TaskOptions& o) { o.pairs = 1000; }, TaskKind::kPasskey), "nothing");
  EXPECT_EQ(thrown_by([] { task_kind("recall", "--kind"); }),
            "2: --kind is recall, expected one of mqar, passkey, induction, copy, arithmetic");
  for (const TaskKind kind : kTaskKinds) EXPECT_EQ(task_kind(name_of(kind), "--kind"), kind);
}

// As many facts and questions as the check allows can be written.
TEST(Task, TheMostPairsFit) {
  for (const TaskKind kind : {TaskKind::kMqar, TaskKind::kCopy, TaskKind::kArithmetic}) {
    for (const int64_t length : {64, 65, 66, 67, 100}) {
      TaskOptions options = options_of(kind, length);
      options.keys = 100;
      for (options.pairs = 100; thrown_by([&] { check(options); }) != "nothing"; --options.pairs) {
        ASSERT_GT(options.pairs, 1);
      }
      const TaskSample sample = make_sample(options, "train", 0);
      EXPECT_EQ(std::ssize(sample.answers), options.pairs) << name_of(kind) << length;
      EXPECT_EQ(sample.tokens.back(), TaskTokens::kEnd);
    }
  }
}

}  // namespace
}  // namespace tessera
