#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "kernels/core/error.h"
#include "parallel/self_communicator.h"

// What the flight recorder costs: nanoseconds of an exchange that does nothing but be recorded, in
// memory and in a file.
//   flight_bench

namespace tessera {
namespace {

constexpr int kCalls = 200'000;
constexpr int kRepetitions = 15;

double median_nanoseconds(Communicator& world) {
  std::vector<double> times;
  for (int i = 0; i < kRepetitions; ++i) {
    const int64_t begin = monotonic_nanoseconds();
    for (int call = 0; call < kCalls; ++call) world.barrier();
    times.push_back(static_cast<double>(monotonic_nanoseconds() - begin) / kCalls);
  }
  std::nth_element(times.begin(), times.begin() + kRepetitions / 2, times.end());
  return times[kRepetitions / 2];
}

int main_with_file() {
  SelfCommunicator world;
  std::printf("in memory  %6.1f ns an exchange\n", median_nanoseconds(world));
  const std::filesystem::path file = std::filesystem::temp_directory_path() / "flight_bench";
  world.log().recorder().keep_in(file);
  std::printf("in a file  %6.1f ns an exchange\n", median_nanoseconds(world));
  std::filesystem::remove(file);
  return 0;
}

}  // namespace
}  // namespace tessera

int main() {
  return tessera::main_with_file();
}
