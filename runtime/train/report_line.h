#pragma once

#include <string>
#include <vector>

#include "runtime/monitor/event_file.h"
#include "runtime/train/hook.h"

namespace tessera {

/// What turns counts into rates.
struct RateBasis {
  double flops_per_token = 0;  ///< of the step's plan (flops.h)
  int ranks = 1;
  double peak_tflops = 0;   ///< of one device; 0: unknown, and MFU with it
  double memory_gib = 0;    ///< resident, this rank
  double memory_share = 0;  ///< of the host's memory, 0 to 1
  double time = 0;          ///< when the step ended, seconds since 1970
};

/// One step for people: a terminal's progress line without its bar.
std::string report_line(const StepReport& report, const RateBasis& basis);
/// The same step as one JSON object on one line, for metrics.jsonl.
std::string report_json(const StepReport& report, const RateBasis& basis);
/// The numbers in such a line, under its names, for TensorBoard; all but the step itself.
std::vector<Scalar> scalars_of(const std::string& line);

/// "1h02m", "3m20s", "12s".
std::string duration(double seconds);

}  // namespace tessera
