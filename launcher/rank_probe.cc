#include "launcher/rank_probe.h"

#include <sstream>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/error.h"
#include "parallel/mpi_communicator.h"

namespace tessera {

namespace {

constexpr CaptureLimits kPatience{.seconds = 60, .grace = 5};
constexpr size_t kMostSaid = 600;  // characters of mpirun's pages

// What begins at "from ", of a line such as
//   [...] from n2 to: n1 Unable to connect to the peer 10.77.1.1 on port 1025: Network is
//   unreachable
// in one sentence; empty when it is something else.
std::string pair_in(const std::string& text) {
  std::istringstream words(text);
  std::string from, to, address, skipped, why;
  words >> skipped >> from >> skipped >> to;
  for (const char* expected : {"Unable", "to", "connect", "to", "the", "peer"}) {
    words >> skipped;
    if (skipped != expected) words.setstate(std::ios::failbit);
  }
  words >> address >> skipped >> skipped >> skipped >> std::ws;  // on port 1025:
  if (!std::getline(words, why)) return "";
  return concat("host ", from, " cannot reach host ", to, " at ", address, " (", why, ")");
}

// The first pair that Open MPI's TCP transport could not connect; empty when there is none. Ranks
// write at once: a line may begin with what another one was about to say.
std::string unreached(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    for (size_t at = line.find("from "); at != std::string::npos; at = line.find("from ", at + 1)) {
      if (std::string pair = pair_in(line.substr(at)); !pair.empty()) return pair;
    }
  }
  return "";
}

}  // namespace

std::string explain_mpirun(const CapturedCommand& said) {
  if (said.ok()) return "";
  const std::string pair = unreached(said.errors);
  if (!pair.empty()) return pair;
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
