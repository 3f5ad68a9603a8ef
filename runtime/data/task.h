#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/data/answer_file.h"

namespace tessera {

/// Synthetic tasks whose answers lie far back: what a model can recall, and whether the gate finds
/// where it stands. A sample is a document of exactly `length` tokens, the last one an end of
/// document. Facts stand at random places of [length / 16, 3/4 length), questions behind them;
/// everything else is noise.
enum class TaskKind : uint8_t {
  /// Multi-query associative recall (Arora et al. 2023, arXiv:2312.04927): `pairs` facts "key
  /// value" with different keys, each asked for once as "key", in another order.
  kMqar,
  kPasskey,    ///< one fact "mark value" in noise without values, asked for at the end as "ask"
  kInduction,  ///< one fact "key value" among values, asked for at the end as "key"
  /// Selective copying (Gu & Dao 2023, arXiv:2312.00752): `pairs` values in noise; "ask" at the
  /// end is followed by all of them in order.
  kCopy,
  /// `pairs` facts "key number", asked for two at a time as "key + key" or "key - key": the answer
  /// is taken modulo `modulus`, and has two sources.
  kArithmetic,
};
inline constexpr std::array kTaskKinds = {TaskKind::kMqar, TaskKind::kPasskey, TaskKind::kInduction,
                                          TaskKind::kCopy, TaskKind::kArithmetic};
const char* name_of(TaskKind kind);
/// Throws Error (kUsage) that names `flag` for an unknown name.
TaskKind task_kind(const std::string& name, const std::string& flag);

struct TaskOptions {
  TaskKind kind = TaskKind::kMqar;
  int64_t length = 256;
  int64_t pairs = 8;     ///< facts of a sample; 1 for passkey and induction, whatever is set
  int64_t keys = 32;     ///< different keys
  int64_t values = 64;   ///< different values
  int64_t noise = 29;    ///< different tokens of noise
  int64_t modulus = 10;  ///< of arithmetic: numbers are the first so many values
  uint64_t seed = 1;
};

/// Tokens by number: 0 ends a document, 1 asks or subtracts, 2 marks or adds, then noise, keys and
/// values follow each other.
struct TaskTokens {
  static constexpr int32_t kEnd = 0;
  static constexpr int32_t kAsk = 1;
  static constexpr int32_t kMark = 2;
  explicit TaskTokens(const TaskOptions& options)
      : noise(3),
        keys(noise + static_cast<int32_t>(options.noise)),
        values(keys + static_cast<int32_t>(options.keys)),
        vocabulary(values + static_cast<int32_t>(options.values)) {}

  int32_t noise;
  int32_t keys;
  int32_t values;
  int32_t vocabulary;
};

struct TaskSample {
  std::vector<int32_t> tokens;
  std::vector<Answer> answers;  ///< in tokens of the sample; a source is the value of a fact
};

/// Throws Error (kUsage) that names the option when there can be no such samples.
void check(const TaskOptions& options);
/// Sample `index` of a split, a pure function of its arguments. Splits share no random numbers.
TaskSample make_sample(const TaskOptions& options, const std::string& split, int64_t index);

}  // namespace tessera
