#pragma once

#include <string>

#include "runtime/config/text_reader.h"

namespace tessera {

/// Applies `a.b.c=value`, as given to --set, to `message`: what `a.b.c` held is replaced. The value
/// is in text format, except that a text needs no quotes. `a.b.c=` takes the field away, so that
/// its default holds again. Problems begin with "--set a.b.c=value".
void apply_override(const std::string& assignment, google::protobuf::Message& message,
                    Findings& findings);

}  // namespace tessera
