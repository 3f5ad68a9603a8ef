#include "runtime/config/problems.h"

#include "kernels/core/error.h"
#include "runtime/config/wording.h"

namespace tessera {

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

void throw_problems(const std::vector<std::string>& problems) {
  if (!problems.empty()) throw Error(ExitCode::kUsage, joined(problems));
}

}  // namespace tessera
