#include "runtime/data/task.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/core/random.h"

namespace tessera {

namespace {

/// The random numbers of one sample.
class Draws {
 public:
  Draws(uint64_t seed, const std::string& split, int64_t index)
      : key_(seed ^ hash_name(("task " + split).c_str())), index_(static_cast<uint64_t>(index)) {}

  /// In [0, n), n < 2^31.
  int32_t below(int64_t n) {
    if (used_ == words_.size()) {
      words_ = philox(key_, index_, block_++);
      used_ = 0;
    }
    return static_cast<int32_t>((uint64_t{words_[used_++]} * static_cast<uint64_t>(n)) >> 32);
  }
  /// `count` different numbers of [0, n) in random order.
  std::vector<int64_t> choose(int64_t count, int64_t n) {
    std::vector<int64_t> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t i = 0; i < count; ++i) {
      std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(i + below(n - i))]);
    }
    all.resize(static_cast<size_t>(count));
    return all;
  }

 private:
  uint64_t key_;
  uint64_t index_;
  uint64_t block_ = 0;
  std::array<uint32_t, 4> words_{};
  size_t used_ = words_.size();
};

/// Where facts may stand, and questions: [facts, questions) and [questions, length - 1).
struct Parts {
  explicit Parts(int64_t length) : facts(length / 16), questions(length * 3 / 4), end(length - 1) {}
  int64_t fact_slots() const { return (questions - facts) / 2; }
  int64_t question_slots(int64_t width) const { return (end - questions) / width; }

  int64_t facts;
  int64_t questions;
  int64_t end;
};

bool asks_for_one(TaskKind kind) {
  return kind == TaskKind::kPasskey || kind == TaskKind::kInduction;
}

/// One sample on its way.
class Writer {
 public:
  Writer(const TaskOptions& options, const std::string& split, int64_t index)
      : options_(options),
        tokens_(options),
        parts_(options.length),
        draws_(options.seed, split, index) {
    sample_.tokens.resize(static_cast<size_t>(options.length));
    for (int32_t& token : sample_.tokens) token = noise();
    sample_.tokens.back() = TaskTokens::kEnd;
  }

  TaskSample write();

 private:
  // Induction hides its fact among values; elsewhere noise is a kind of its own.
  int32_t noise() {
    if (options_.kind == TaskKind::kInduction) return value();
    return tokens_.noise + draws_.below(options_.noise);
  }
  int32_t value() { return tokens_.values + draws_.below(options_.values); }
  int32_t& at(int64_t position) { return sample_.tokens[static_cast<size_t>(position)]; }
  void answer(int64_t position, std::vector<int64_t> sources);
  void write_recall();
  void write_needle(int32_t mark, int32_t question);
  void write_copy();
  void write_arithmetic();
  /// "key value" facts; returns where their values stand.
  std::vector<int64_t> write_facts(const std::vector<int64_t>& keys, int64_t values);

  const TaskOptions& options_;
  TaskTokens tokens_;
  Parts parts_;
  Draws draws_;
  TaskSample sample_;
};

void Writer::answer(int64_t position, std::vector<int64_t> sources) {
  std::ranges::sort(sources);
  for (const int64_t source : sources) sample_.answers.push_back({position, source});
}

std::vector<int64_t> Writer::write_facts(const std::vector<int64_t>& keys, int64_t values) {
  const auto count = static_cast<int64_t>(keys.size());
  std::vector<int64_t> places = draws_.choose(count, parts_.fact_slots());
  for (size_t i = 0; i < places.size(); ++i) {
    const int64_t position = parts_.facts + 2 * places[i];
    at(position) = tokens_.keys + static_cast<int32_t>(keys[i]);
    at(position + 1) = tokens_.values + draws_.below(values);
    places[i] = position + 1;
  }
  return places;
}

void Writer::write_recall() {
  const std::vector<int64_t> keys = draws_.choose(options_.pairs, options_.keys);
  const std::vector<int64_t> sources = write_facts(keys, options_.values);
  const std::vector<int64_t> slots = draws_.choose(options_.pairs, parts_.question_slots(2));
  for (size_t i = 0; i < keys.size(); ++i) {
    const int64_t position = parts_.questions + 2 * slots[i];
    at(position) = at(sources[i] - 1);
    at(position + 1) = at(sources[i]);
    answer(position + 1, {sources[i]});
  }
}

void Writer::write_needle(int32_t mark, int32_t question) {
  const int64_t position = parts_.facts + draws_.below(parts_.questions - parts_.facts - 1);
  at(position) = mark;
  at(position + 1) = value();
  at(parts_.end - 2) = question;
  at(parts_.end - 1) = at(position + 1);
  answer(parts_.end - 1, {position + 1});
}

void Writer::write_copy() {
  std::vector<int64_t> places = draws_.choose(options_.pairs, parts_.questions - parts_.facts);
  std::ranges::sort(places);
  const int64_t first = parts_.end - options_.pairs;
  at(first - 1) = TaskTokens::kAsk;
  for (size_t i = 0; i < places.size(); ++i) {
    const int64_t source = parts_.facts + places[i];
    const int64_t position = first + static_cast<int64_t>(i);
    at(source) = at(position) = value();
    answer(position, {source});
  }
}

void Writer::write_arithmetic() {
  const std::vector<int64_t> keys = draws_.choose(options_.pairs, options_.keys);
  const std::vector<int64_t> sources = write_facts(keys, options_.modulus);
  const std::vector<int64_t> slots = draws_.choose(options_.pairs / 2, parts_.question_slots(4));
  for (size_t i = 0; i < slots.size(); ++i) {
    const int64_t a = sources[2 * i];
    const int64_t b = sources[2 * i + 1];
    const int64_t position = parts_.questions + 4 * slots[i];
    const bool subtract = draws_.below(2) == 1;
    const int64_t x = at(a) - tokens_.values;
    const int64_t y = at(b) - tokens_.values;
    const int64_t result = (subtract ? x - y + options_.modulus : x + y) % options_.modulus;
    at(position) = at(a - 1);
    at(position + 1) = subtract ? TaskTokens::kAsk : TaskTokens::kMark;
    at(position + 2) = at(b - 1);
    at(position + 3) = tokens_.values + static_cast<int32_t>(result);
    answer(position + 3, {a, b});
  }
}

TaskSample Writer::write() {
  switch (options_.kind) {
    case TaskKind::kMqar:
      write_recall();
      break;
    case TaskKind::kPasskey:
      write_needle(TaskTokens::kMark, TaskTokens::kAsk);
      break;
    case TaskKind::kInduction: {
      const int32_t key = tokens_.keys + draws_.below(options_.keys);
      write_needle(key, key);
      break;
    }
    case TaskKind::kCopy:
      write_copy();
      break;
    case TaskKind::kArithmetic:
      write_arithmetic();
      break;
  }
  std::ranges::sort(sample_.answers, {},
                    [](const Answer& a) { return std::pair(a.position, a.source); });
  return std::move(sample_);
}

void expect(const char* option, int64_t value, int64_t least, int64_t most,
            const std::string& why = "") {
  if (value >= least && value <= most) return;
  throw Error(ExitCode::kUsage,
              concat("--", option, " is ", value, ", expected ", least, " to ", most, why));
}

}  // namespace

const char* name_of(TaskKind kind) {
  switch (kind) {
    case TaskKind::kMqar:
      return "mqar";
    case TaskKind::kPasskey:
      return "passkey";
    case TaskKind::kInduction:
      return "induction";
    case TaskKind::kCopy:
      return "copy";
    case TaskKind::kArithmetic:
      return "arithmetic";
  }
  return "?";
}

TaskKind task_kind(const std::string& name, const std::string& flag) {
  std::string names;
  for (const TaskKind kind : kTaskKinds) {
    if (name == name_of(kind)) return kind;
    names += concat(names.empty() ? "" : ", ", name_of(kind));
  }
  throw Error(ExitCode::kUsage, concat(flag, " is ", name, ", expected one of ", names));
}

void check(const TaskOptions& options) {
  constexpr int64_t kMost = 1 << 20;
  expect("length", options.length, 32, int64_t{1} << 30);
  expect("keys", options.keys, 1, kMost);
  expect("values", options.values, 2, kMost);
  expect("noise", options.noise, 1, kMost);
  if (asks_for_one(options.kind)) return;
  const Parts parts(options.length);
  int64_t places = parts.fact_slots();
  if (options.kind == TaskKind::kMqar) places = std::min(places, parts.question_slots(2));
  if (options.kind == TaskKind::kCopy) places = parts.end - parts.questions - 1;
  if (options.kind == TaskKind::kArithmetic) {
    expect("modulus", options.modulus, 2, options.values, ", the number of values");
    places = std::min(places, 2 * parts.question_slots(4));
    if (options.pairs % 2 != 0) {
      throw Error(ExitCode::kUsage, concat("--pairs is ", options.pairs,
                                           ", expected an even number: arithmetic asks for two "
                                           "facts at a time"));
    }
  }
  expect("pairs", options.pairs, 1, places,
         concat(", the places in ", options.length, " tokens; or give a larger --length"));
  if (options.kind == TaskKind::kCopy) return;
  expect("pairs", options.pairs, 1, options.keys, ", the number of --keys: they must differ");
}

TaskSample make_sample(const TaskOptions& options, const std::string& split, int64_t index) {
  return Writer(options, split, index).write();
}

}  // namespace tessera
