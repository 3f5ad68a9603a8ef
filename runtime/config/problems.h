#pragma once

#include <string>
#include <vector>

#include "runtime/config/text_reader.h"

namespace tessera {

struct FieldProblem {
  std::string field;  ///< full name: "model.kv_heads"
  std::string what;   ///< `is 3, expected ...`: the rest of the sentence, with the way out
};

/// Problems as sentences that begin with where the field was written, or with `name` of the text.
std::vector<std::string> located(const std::vector<FieldProblem>& problems, const std::string& name,
                                 const Findings& findings);

/// Throws Error(kUsage) with one line per problem; does nothing when there is none.
void throw_problems(const std::vector<std::string>& problems);

}  // namespace tessera
