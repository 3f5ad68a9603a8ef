#include "launcher/job_config.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <regex>

#include "kernels/core/error.h"
#include "launcher/job.pb.h"
#include "runtime/config/text_file.h"
#include "runtime/config/text_reader.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

using Problems = std::vector<FieldProblem>;

constexpr int kMostNodes = 1 << 16;
constexpr int kMostOnNode = 4096;  // tasks, GPUs, cores
constexpr int kMostRestarts = 10'000;
constexpr int kMostLives = 1000;      // queued at once; Slurm's MaxArraySize is 1001 by default
constexpr int kMostWarning = 65'535;  // 16 bits in Slurm
constexpr int64_t kLongestLife = 365L * 24 * 3600;
constexpr size_t kMostWords = 100;
constexpr size_t kLongestText = 1000;

void resolve(JobConfig& job) {
  if (!job.has_exclusive()) job.set_exclusive(true);
  if (!job.has_restarts()) job.set_restarts(job.go_on() == JobConfig::REQUEUE ? 50 : 9);
  if (!job.has_warning()) job.set_warning(360);
}

void check_range(Problems& problems, const char* field, int64_t value, int64_t least,
                 int64_t most) {
  if (value >= least && value <= most) return;
  problems.push_back({field, concat(value == 0 ? "is missing or " : "is ", value, ", expected ",
                                    least, " to ", most)});
}

/// `value` ends up in a line for sbatch, which has its own rules for quotes, blanks and #.
void check_text(Problems& problems, const std::string& field, const std::string& value,
                const char* pattern, const char* expected) {
  const bool fits = value.size() <= kLongestText && std::regex_match(value, std::regex(pattern));
  if (!fits) problems.push_back({field, concat("is ", in_quotes(value), ", expected ", expected)});
}

bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
}

/// `value` ends up in quotes in a shell script, where all but control characters is safe.
void check_word(Problems& problems, const std::string& field, const std::string& value) {
  const bool odd = std::any_of(value.begin(), value.end(), is_control);
  if (!value.empty() && value.size() <= kLongestText && !odd) return;
  problems.push_back({field, concat("is ", in_quotes(value), ", expected one line of 1 to ",
                                    kLongestText, " characters, without tabs")});
}

template <class Check>
void check_list(Problems& problems, const std::string& field,
                const google::protobuf::RepeatedPtrField<std::string>& values, const Check& check) {
  if (static_cast<size_t>(values.size()) > kMostWords) {
    problems.push_back(
        {field, concat("has ", values.size(), " entries, expected at most ", kMostWords)});
    return;
  }
  for (int i = 0; i < values.size(); ++i) check(concat(field, "[", i, "]"), values[i]);
}

void check_numbers(const JobConfig& job, Problems& problems) {
  check_range(problems, "nodes", job.nodes(), 1, kMostNodes);
  check_range(problems, "spare_nodes", job.spare_nodes(), 0, kMostNodes);
  check_range(problems, "tasks_per_node", job.tasks_per_node(), 1, kMostOnNode);
  check_range(problems, "gpus_per_node", job.gpus_per_node(), 0, kMostOnNode);
  check_range(problems, "cpus_per_task", job.cpus_per_task(), 0, kMostOnNode);
  const bool queued = job.go_on() != JobConfig::REQUEUE;
  check_range(problems, "restarts", job.restarts(), queued ? 1 : 0,
              queued ? kMostLives - 1 : kMostRestarts);
  check_range(problems, "warning", job.warning(), 1, kMostWarning);
}

constexpr const char* kName = "[A-Za-z0-9._-]+";
constexpr const char* kNameExpected = "letters, digits and . _ -";

void check_texts(const JobConfig& job, Problems& problems) {
  if (job.has_name()) check_text(problems, "name", job.name(), kName, kNameExpected);
  if (job.has_gpu_type()) check_text(problems, "gpu_type", job.gpu_type(), kName, kNameExpected);
  if (job.has_memory_per_node()) {
    check_text(problems, "memory_per_node", job.memory_per_node(), "0|[1-9][0-9]{0,9}[KMGT]",
               "a number with K, M, G or T behind it, as 900G; or 0 for all of a node");
  }
  if (job.has_partition()) {
    check_text(problems, "partition", job.partition(), "[A-Za-z0-9._,-]+",
               "names of partitions, separated by commas");
  }
  if (job.has_account()) check_text(problems, "account", job.account(), kName, kNameExpected);
  if (job.has_qos()) check_text(problems, "qos", job.qos(), kName, kNameExpected);
  if (job.has_constraint()) {
    check_text(problems, "constraint", job.constraint(), R"re([\[\]A-Za-z0-9._&|,*()-]+)re",
               "names of features with & | , * ( ) [ ] between them, without blanks");
  }
  if (job.has_network()) {
    check_text(problems, "network", job.network(), "[A-Za-z0-9._/,:-]+",
               "names of interfaces as ip link lists them, or networks as 10.0.0.0/16");
  }
  if (job.has_log_dir()) check_word(problems, "log_dir", job.log_dir());
}

// Options that the script sets from other fields: twice is one too many.
std::string field_of_option(const std::string& option) {
  static constexpr std::array<std::array<const char*, 2>, 23> kOptions{{
      {"job-name", "name"},         {"nodes", "nodes and spare_nodes"},
      {"ntasks", "tasks_per_node"}, {"ntasks-per-node", "tasks_per_node"},
      {"gpus", "gpus_per_node"},    {"gpus-per-node", "gpus_per_node"},
      {"gres", "gpus_per_node"},    {"cpus-per-task", "cpus_per_task"},
      {"mem", "memory_per_node"},   {"time", "time"},
      {"signal", "warning"},        {"partition", "partition"},
      {"account", "account"},       {"qos", "qos"},
      {"constraint", "constraint"}, {"exclusive", "exclusive"},
      {"requeue", "go_on"},         {"no-requeue", "go_on"},
      {"array", "go_on"},           {"dependency", "go_on"},
      {"output", "log_dir"},        {"no-kill", "spare_nodes"},
      {"open-mode", "log_dir"},
  }};
  const std::string name = option.substr(2, option.find('=') - 2);
  for (const auto& [known, field] : kOptions) {
    if (name == known) return field;
  }
  return "";
}

void check_option(Problems& problems, const std::string& field, const std::string& option) {
  const size_t before = problems.size();
  check_text(problems, field, option, "--[a-z][a-z-]*(=[A-Za-z0-9._/,:@%+*&|()=-]+)?",
             "one long option of sbatch, as --reservation=night, without blanks and quotes");
  if (problems.size() > before) return;
  const std::string owner = field_of_option(option);
  if (!owner.empty()) {
    problems.push_back({field, concat("is ", in_quotes(option), ", expected none that ", owner,
                                      " sets: set that field")});
  }
}

void check_lists(const JobConfig& job, Problems& problems) {
  const auto word = [&](const std::string& field, const std::string& value) {
    check_word(problems, field, value);
  };
  check_list(problems, "sbatch", job.sbatch(),
             [&](const std::string& field, const std::string& value) {
               check_option(problems, field, value);
             });
  check_list(problems, "starter_options", job.starter_options(), word);
  check_list(problems, "container", job.container(), word);
  check_list(problems, "environment", job.environment(),
             [&](const std::string& field, const std::string& value) {
               const std::string name = value.substr(0, value.find('='));
               const bool named = value.find('=') != std::string::npos &&
                                  std::regex_match(name, std::regex("[A-Za-z_][A-Za-z0-9_]*"));
               if (named) return word(field, value);
               problems.push_back({field, concat("is ", in_quotes(value),
                                                 ", expected NAME=value with a name of letters, "
                                                 "digits and _")});
             });
}

void check_together(const JobConfig& job, Problems& problems) {
  const int64_t seconds = seconds_of(job.time());
  if (seconds == 0 || seconds > kLongestLife) {
    problems.push_back(
        {"time", concat(job.time().empty() ? "is missing" : concat("is ", in_quotes(job.time())),
                        ", expected HH:MM:SS or D-HH:MM:SS with 0 to 23 hours and at most 365 "
                        "days, as 24:00:00 or 1-00:00:00 for a day")});
  } else if (job.warning() >= seconds) {
    problems.push_back({"warning", concat("is ", job.warning(), ", expected less than time = ",
                                          job.time(), ", which is ", seconds, " s")});
  }
  if (job.gpus_per_node() > 0 && job.tasks_per_node() > job.gpus_per_node()) {
    problems.push_back({"tasks_per_node",
                        concat("is ", job.tasks_per_node(), ", expected at most gpus_per_node = ",
                               job.gpus_per_node(), ": each rank has a GPU of its own")});
  }
  if (job.has_gpu_type() && job.gpus_per_node() == 0) {
    problems.push_back({"gpu_type", concat("is ", in_quotes(job.gpu_type()),
                                           ", but gpus_per_node is 0: set both or neither")});
  }
  if (job.spare_nodes() > 0 && job.starter() == JobConfig::MPIRUN) {
    problems.push_back(
        {"spare_nodes", concat("is ", job.spare_nodes(),
                               ", expected 0 with starter MPIRUN, which does not notice a lost "
                               "node for minutes: take SRUN")});
  }
}

}  // namespace

int64_t seconds_of(std::string_view time) {
  // Slurm also reads "24:00" and "60", as minutes; whoever writes "24:00" means hours.
  static const std::regex kForm("(?:([0-9]{1,3})-)?([0-9]{1,3}):([0-5][0-9]):([0-5][0-9])");
  std::match_results<std::string_view::const_iterator> part;
  if (!std::regex_match(time.begin(), time.end(), part, kForm)) return 0;
  const int64_t days = part[1].matched ? std::stol(part[1].str()) : 0;
  const int64_t hours = std::stol(part[2].str());
  if (part[1].matched && hours > 23) return 0;
  return ((days * 24 + hours) * 60 + std::stol(part[3].str())) * 60 + std::stol(part[4].str());
}

std::vector<FieldProblem> validate(const JobConfig& job) {
  Problems problems;
  check_numbers(job, problems);
  check_texts(job, problems);
  check_lists(job, problems);
  check_together(job, problems);
  return problems;
}

JobConfig parse_job_config(std::string_view text, const std::string& name) {
  check_is_text(text, name);
  JobConfig job;
  Findings findings;
  read_text(text, name, job, findings);
  throw_problems(findings.problems);
  resolve(job);
  throw_problems(located(validate(job), name, findings));
  return job;
}

JobConfig load_job_config(const std::filesystem::path& file) {
  return parse_job_config(read_text_file(file), file.string());
}

}  // namespace tessera
