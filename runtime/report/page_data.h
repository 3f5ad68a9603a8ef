#pragma once

#include <string>

#include "runtime/report/run_record.h"

namespace tessera {

/// What the page shows of a run, as JSON that may stand in an HTML document: it holds no '<'. Long
/// runs are cut to about a thousand points with mean, least and most of the steps of each; the
/// whole stays below 9 MB whatever the run is.
std::string page_data(const RunRecord& run);

}  // namespace tessera
