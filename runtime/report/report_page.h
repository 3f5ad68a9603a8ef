#pragma once

#include <string>

#include "runtime/report/run_record.h"

namespace tessera {

/// A run as one HTML document (docs/report.md). It is whole: styles, script and data are in it, and
/// its own policy forbids it to ask a network for anything.
std::string report_page(const RunRecord& run);

}  // namespace tessera
