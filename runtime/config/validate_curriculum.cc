#include "runtime/config/validate_curriculum.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string>

#include "kernels/core/error.h"
#include "runtime/config/batch_schedule.h"
#include "runtime/config/train.pb.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

using Problems = std::vector<FieldProblem>;

constexpr double kMostSequences = 16777216;  // 2^24, as batch.sequences
constexpr int64_t kMostSteps = 1000000000000;

template <class... Parts>
void require(bool condition, Problems& problems, const std::string& field, const Parts&... what) {
  if (!condition) problems.push_back({field, concat(what...)});
}

// Fit for keys, file names and lines of a log.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
}

/// A name that is plain and not in `taken`, where it then is.
void validate_name(const std::string& name, const std::string& field, std::set<std::string>& taken,
                   Problems& problems) {
  require(!name.empty(), problems, field, "is missing, expected a name");
  if (name.empty()) return;
  require(is_plain_name(name), problems, field, "is ", in_quotes(name),
          ", expected at most 64 letters, digits and any of _ - .");
  require(taken.insert(name).second, problems, field, "is ", in_quotes(name),
          ", which is taken; expected another name");
}

std::string element(const std::string& list, int index) {
  return concat(list, "[", index, "]");
}

/// Steps of the points of `list`: in range and ascending.
template <class Points>
void validate_points(const Points& points, const std::string& list, Problems& problems) {
  for (int i = 0; i < points.size(); ++i) {
    const auto& point = points[i];
    const std::string field = element(list, i);
    if (point.has_share()) {
      const bool both = point.has_step();
      require(!both, problems, field, "has step ", point.step(), " and share ", point.share(),
              "; take one of them away");
      require(both, problems, field + ".share", "is ", point.share(), ", expected 0 to 1");
      continue;
    }
    require(point.step() >= 1 && point.step() <= kMostSteps, problems, field + ".step", "is ",
            point.step(), ", expected 1 to ", kMostSteps);
    require(i == 0 || point.step() > points[i - 1].step(), problems, field + ".step", "is ",
            point.step(), ", expected above that of the point before it, ",
            i == 0 ? 0 : points[i - 1].step());
  }
}

void validate_shares(const google::protobuf::RepeatedPtrField<Point>& points,
                     const std::string& list, bool zero, Problems& problems) {
  validate_points(points, list, problems);
  for (int i = 0; i < points.size(); ++i) {
    const double value = points[i].value();
    require(value <= 1 && (value > 0 || (zero && value == 0)), problems,
            element(list, i) + ".value", "is ", value, ", expected ",
            zero ? "0 to 1" : "above 0 and at most 1");
  }
}

void validate_sizes(const TrainConfig& config, Problems& problems) {
  const CurriculumConfig& curriculum = config.curriculum();
  const int64_t longest = config.batch().sequence_length();
  validate_points(curriculum.sequence_length(), "curriculum.sequence_length", problems);
  for (int i = 0; i < curriculum.sequence_length_size(); ++i) {
    const int64_t length = curriculum.sequence_length(i).value();
    require(length >= 2 && length <= longest && longest % length == 0, problems,
            element("curriculum.sequence_length", i) + ".value", "is ", length,
            ", expected a divisor of batch.sequence_length = ", longest, " and at least 2");
  }
  validate_points(curriculum.sequences(), "curriculum.sequences", problems);
  for (int i = 0; i < curriculum.sequences_size(); ++i) {
    const int64_t sequences = curriculum.sequences(i).value();
    require(sequences >= 1 && sequences <= config.batch().sequences(), problems,
            element("curriculum.sequences", i) + ".value", "is ", sequences,
            ", expected 1 to batch.sequences = ", config.batch().sequences());
  }
  if (!problems.empty()) return;
  for (const int64_t step : batch_changes(config)) {
    const BatchSize size = batch_size_at(config, step);
    require(static_cast<double>(size.sequences) <= kMostSequences, problems,
            "curriculum.sequence_length", "makes ", size.sequences, " sequences of ",
            size.sequence_length, " tokens a step, expected at most ", kMostSequences,
            "; set curriculum.keep to SEQUENCES, or batch.sequences lower");
  }
}

/// The sum of all weights is greatest at a point, as they move along straight lines.
void validate_weights(const CurriculumConfig& curriculum, Problems& problems) {
  std::set<int64_t> steps;
  for (const SourceConfig& source : curriculum.sources()) {
    for (const Point& point : source.weight()) steps.insert(point.step());
  }
  for (const int64_t step : steps) {
    double sum = 0;
    for (const SourceConfig& source : curriculum.sources()) {
      sum += weight_at(source.weight(), step);
    }
    if (sum <= 1 + 1e-12) continue;
    problems.push_back(
        {"curriculum.sources", concat("have weights that add up to ", sum, " at step ", step,
                                      ", expected at most 1; data.path has what they leave")});
    return;
  }
}

void validate_sources(const CurriculumConfig& curriculum, Problems& problems) {
  std::set<std::string> names{"data"};
  for (int i = 0; i < curriculum.sources_size(); ++i) {
    const SourceConfig& source = curriculum.sources(i);
    const std::string field = element("curriculum.sources", i);
    validate_name(source.name(), field + ".name", names, problems);
    require(!source.path().empty(), problems, field + ".path",
            "is missing, expected a directory made by tessera data prepare");
    require(source.weight_size() > 0, problems, field + ".weight",
            "is missing, expected one point or more: weight { value: 0.1 }");
    validate_shares(source.weight(), field + ".weight", /*zero=*/true, problems);
    require(source.scores().empty() || curriculum.difficulty_size() > 0, problems,
            field + ".scores", "is set, but curriculum.difficulty is not: set both or neither");
  }
  if (problems.empty()) validate_weights(curriculum, problems);
}

void validate_difficulty(const CurriculumConfig& curriculum, Problems& problems) {
  validate_shares(curriculum.difficulty(), "curriculum.difficulty", /*zero=*/false, problems);
  const bool scores = !curriculum.scores().empty() ||
                      std::any_of(curriculum.sources().begin(), curriculum.sources().end(),
                                  [](const SourceConfig& s) { return !s.scores().empty(); });
  const bool points = curriculum.difficulty_size() > 0;
  require(!points || scores, problems, "curriculum.difficulty",
          "is set, but no data set has scores; make them with tessera data score and set "
          "curriculum.scores");
  require(points || curriculum.scores().empty(), problems, "curriculum.scores",
          "is set, but curriculum.difficulty is not: set both or neither");
}

void validate_tokens(const TrainConfig& config, Problems& problems) {
  const SparsityConfig& s = config.sparsity();
  const auto told = [&](bool set, const char* tokens, const char* steps, int64_t value) {
    require(!set, problems, concat("sparsity.", tokens), "is set, and so is ", steps, " = ", value,
            "; take one of them away, with --set sparsity.", tokens, "= for example");
  };
  told(s.has_dense_tokens(), "dense_tokens", "dense_steps", s.dense_steps());
  told(s.has_gate_warmup_tokens(), "gate_warmup_tokens", "gate_warmup_steps",
       s.gate_warmup_steps());
  told(s.has_transition_tokens(), "transition_tokens", "transition_steps", s.transition_steps());
}

}  // namespace

Problems validate_stages(const TrainConfig& config) {
  Problems problems;
  validate_tokens(config, problems);
  const SparsityConfig& sparsity = config.sparsity();
  const auto start = sparsity.start();
  const std::string begins =
      concat(", but the run begins in ", SparsityConfig::Start_Name(start), " (sparsity.start)");
  const auto no_steps = [&](const char* field, int64_t steps) {
    require(steps == 0, problems, field, "is ", steps, begins, ": leave it out, or start earlier");
  };
  require(start != SparsityConfig::GATE_WARMUP ||
              (sparsity.gate_warmup_steps() > 0 &&
               sparsity.gate_warmup_steps() == sparsity.dense_steps()),
          problems, "sparsity.gate_warmup_steps", "is ", sparsity.gate_warmup_steps(), begins,
          ": set it, and leave dense_steps out");
  if (start >= SparsityConfig::TRANSITION) {
    no_steps("sparsity.dense_steps", sparsity.dense_steps());
    no_steps("sparsity.gate_warmup_steps", sparsity.gate_warmup_steps());
  }
  require(start != SparsityConfig::TRANSITION || sparsity.transition_steps() > 0, problems,
          "sparsity.transition_steps", "is missing or 0", begins, ": expected at least 1");
  if (start == SparsityConfig::TUNING) {
    no_steps("sparsity.transition_steps", sparsity.transition_steps());
  }
  return problems;
}

Problems validate_curriculum(const TrainConfig& config) {
  Problems problems;
  validate_sizes(config, problems);
  validate_sources(config.curriculum(), problems);
  validate_difficulty(config.curriculum(), problems);
  return problems;
}

Problems validate_hooks(const TrainConfig& config) {
  Problems problems;
  std::set<std::string> names{"log", "gate_control"};  // Tessera's own
  for (int i = 0; i < config.hooks_size(); ++i) {
    const HookConfig& hook = config.hooks(i);
    const std::string field = element("hooks", i);
    validate_name(hook.name(), field + ".name", names, problems);
    require(!hook.library().empty(), problems, field + ".library",
            "is missing, expected the path of a shared library (docs/curriculum.md)");
  }
  return problems;
}

}  // namespace tessera
