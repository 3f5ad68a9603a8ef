#pragma once

#include <memory>

#include "parallel/flight_recorder.h"

namespace tessera {

/// Shows what a FlightRecorder is told to NVIDIA's profilers, in the domain "tessera": steps,
/// phases, layers and waits as ranges inside each other, exchanges as ranges of their own. While no
/// profiler looks that is a few calls that do nothing. nullptr in builds without CUDA.
/// The recorder must outlive it.
std::unique_ptr<FlightObserver> make_nvtx_ranges(FlightRecorder& recorder);

}  // namespace tessera
