#include "runtime/config/config.h"

#include <algorithm>
#include <fstream>
#include <vector>

#include "kernels/core/error.h"
#include "parallel/process_mesh.h"
#include "runtime/config/override.h"
#include "runtime/config/resolve.h"
#include "runtime/config/text_reader.h"
#include "runtime/config/train.pb.h"
#include "runtime/config/validate.h"
#include "runtime/config/wording.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMostBytes = 1 << 20;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ExitCode::kUsage, message);
}

void throw_problems(const std::vector<std::string>& problems) {
  if (!problems.empty()) refuse(joined(problems));
}

void check_is_text(std::string_view text, const std::string& name) {
  if (text.size() > kMostBytes) {
    refuse(concat(name, " has more than ", kMostBytes, " bytes, too many for a configuration"));
  }
  const auto odd = std::find_if(text.begin(), text.end(), [](unsigned char c) {
    return (c < 0x20 && (c < '\t' || c > '\r')) || c == 0x7F;
  });
  if (odd == text.end()) return;
  refuse(concat(name, " holds the byte ", in_quotes({odd, odd + 1}), " at offset ",
                odd - text.begin(), ", expected a text file"));
}

std::string nearest_file(const fs::path& file) {
  std::vector<std::string> names;
  std::error_code ignored;
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  for (fs::directory_iterator it(folder, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    if (it->path().extension() == ".textproto") names.push_back(it->path().filename());
  }
  std::sort(names.begin(), names.end());
  return names.empty() ? "" : did_you_mean(file.filename().string(), names);
}

std::string read_file(const fs::path& file) {
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  if (!fs::exists(status)) {
    refuse(concat("configuration ", file.string(), " does not exist", nearest_file(file)));
  }
  // A pipe or a device might never end.
  if (!fs::is_regular_file(status)) {
    refuse(concat("configuration ", file.string(), " is not a regular file"));
  }
  std::ifstream in(file, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in && !in.eof()) {
    refuse(concat("configuration ", file.string(), " cannot be read; check its permissions"));
  }
  text.resize(static_cast<size_t>(in.gcount()));
  return text;
}

/// Problems as sentences that begin with where the field was written.
std::vector<std::string> located(const std::vector<FieldProblem>& problems, const std::string& name,
                                 const Findings& findings) {
  std::vector<std::string> lines;
  for (const FieldProblem& problem : problems) {
    const auto origin = findings.origins.find(problem.field);
    const std::string& where = origin == findings.origins.end() ? name : origin->second;
    lines.push_back(concat(where, ": ", problem.field, " ", problem.what));
  }
  return lines;
}

}  // namespace

TrainConfig parse_train_config(std::string_view text, const std::string& name,
                               std::span<const std::string> overrides) {
  check_is_text(text, name);
  TrainConfig config;
  Findings findings;
  read_text(text, name, config, findings);
  for (const std::string& assignment : overrides) apply_override(assignment, config, findings);
  throw_problems(findings.problems);
  resolve(config);
  throw_problems(located(validate(config), name, findings));
  return config;
}

TrainConfig load_train_config(const fs::path& file, std::span<const std::string> overrides) {
  return parse_train_config(read_file(file), file.string(), overrides);
}

int described_ranks(const TrainConfig& config) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const MeshConfig& mesh = config.mesh();
  int64_t ranks = 1;
  for (const int extent : {mesh.data(), mesh.expert(), mesh.sequence(), mesh.tensor()}) {
    ranks = std::min(kMost, ranks * std::max(1, extent));
  }
  return static_cast<int>(ranks);
}

void resolve_mesh(TrainConfig& config, int world) {
  const MeshShape shape = mesh_shape(config.mesh(), world);
  MeshConfig& mesh = *config.mutable_mesh();
  mesh.set_data(shape.data);
  mesh.set_expert(shape.expert);
  mesh.set_sequence(shape.sequence);
  mesh.set_tensor(shape.tensor);
  std::vector<std::string> lines;
  for (const FieldProblem& problem : validate_mesh(config)) {
    lines.push_back(concat(problem.field, " ", problem.what));
  }
  throw_problems(lines);
  BatchConfig& batch = *config.mutable_batch();
  if (batch.micro_sequences() == 0) {
    batch.set_micro_sequences(batch.sequences() / (shape.data * shape.expert));
  }
}

}  // namespace tessera
