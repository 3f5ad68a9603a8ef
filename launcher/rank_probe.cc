#include "launcher/rank_probe.h"

#include <regex>
#include <sstream>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/error.h"
#include "parallel/mpi_communicator.h"

namespace tessera {

namespace {

constexpr CaptureLimits kPatience{.seconds = 60, .grace = 5};
constexpr size_t kMostSaid = 600;  // characters of mpirun's pages

}  // namespace

std::string explain_mpirun(const CapturedCommand& said) {
  if (said.ok()) return "";
  // Of Open MPI's TCP transport, about every pair that should have been.
  const std::regex no_way(
      R"(from (\S+) to: (\S+) Unable to connect to the peer (\S+) on port \d+: ([^\n]*))");
  std::smatch pair;
  if (std::regex_search(said.errors, pair, no_way)) {
    return concat("host ", pair.str(1), " cannot reach host ", pair.str(2), " at ", pair.str(3),
                  " (", pair.str(4), ")");
  }
  if (said.timed_out) return concat("ranks do not get through to each other: ", said.trouble);
  std::string line;
  std::istringstream words(said.errors);
  for (std::string word; words >> word;) {
    if (word.find_first_not_of('-') != std::string::npos) line += (line.empty() ? "" : " ") + word;
  }
  return line.empty() ? said.trouble : line.substr(0, kMostSaid);
}

std::string probe_ranks(const MpirunOptions& options, const std::string& program) {
  std::vector<std::string> words = mpirun_command(options, {program, "host-check", "--exchange"});
  std::erase(words, "-q");  // here its pages are wanted
  return explain_mpirun(capture_command(words, kPatience));
}

void exchange_greetings() {
  MpiEnvironment mpi;
  Communicator& world = mpi.world();
  const Device device{DeviceKind::kCpu};
  Stream stream(device, 1);
  const std::vector<int64_t> rows(static_cast<size_t>(world.size()), 1);
  const int64_t bytes = int64_t{world.size()} * 4;
  Buffer send(device, bytes);
  Buffer receive(device, bytes);
  world.all_to_all(stream, send.view(DType::kF32, {world.size(), 1}), rows,
                   receive.view(DType::kF32, {world.size(), 1}), rows);
}

}  // namespace tessera
