#include "runtime/config/config.h"

#include <algorithm>
#include <vector>

#include "parallel/process_mesh.h"
#include "runtime/config/override.h"
#include "runtime/config/problems.h"
#include "runtime/config/resolve.h"
#include "runtime/config/text_file.h"
#include "runtime/config/text_reader.h"
#include "runtime/config/train.pb.h"
#include "runtime/config/validate.h"

namespace tessera {

namespace fs = std::filesystem;

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
  return parse_train_config(read_text_file(file), file.string(), overrides);
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
