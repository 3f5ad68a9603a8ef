#include "launcher/doctor/mpirun_trouble.h"

#include <algorithm>
#include <array>

#include "kernels/core/error.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

struct Known {
  const char* sign;  // in what mpirun and ranks write
  const char* found;
  const char* advice;
};

constexpr std::array kKnown = std::to_array<Known>({
    {"orted: command not found",
     "orted, the daemon of Open MPI, is not in the PATH of a login by ssh",
     "install openmpi-bin there, or set PATH in the start file of the shell"},
    {"orted: not found", "orted, the daemon of Open MPI, is not in the PATH of a login by ssh",
     "install openmpi-bin there, or set PATH in the start file of the shell"},
    {"None of the TCP networks specified to be included",
     "the interface that is asked for (oob_tcp_if_include, btl_tcp_if_include) is not on every "
     "host",
     "name one that is, or a network as 10.0.0.0/24, which every host finds by itself"},
    {"reliably start one or more daemons", "mpirun cannot start its daemon, orted, on another host",
     "try by hand: ssh HOST orted --version"},
    {"unable to find network interfaces", "this host has no network, not even loopback",
     "ip link set lo up, and an address for another interface"},
    {"requested component was not found",
     "a component of Open MPI that is asked for (OMPI_MCA_btl, OMPI_MCA_pml, ...) is not there",
     "unset it: env | grep OMPI_MCA shows what is set"},
    {"sees a world of", "MPI of the program and mpirun do not belong together",
     "use the mpirun of the MPI library that tessera was built with"},
    {"Host key verification failed", "ssh does not know the key of a host",
     "log in once by hand: ssh HOST true"},
    {"Permission denied", "ssh wants a password", "ssh-copy-id HOST"},
    {"not enough slots", "mpirun finds too few slots", "unset OMPI_MCA_rmaps_* and hostfiles"},
    {"No route to host", "a rank finds no way to another one",
     "name the interface that connects all hosts: --interface NIC"},
    {"Connection refused", "a rank or daemon is refused by another host",
     "open the ports of the hosts for each other (firewall), or name the interface: --interface "
     "NIC"},
    {"accepted a TCP connection from what appears to be a",
     "two hosts have the same address on an "
     "interface that MPI uses",
     "name the interface that connects all hosts: --interface NIC"},
    {"unable to find any usable plugins for the BTL", "Open MPI finds no way between ranks",
     "unset OMPI_MCA_btl"},
    {"errno = 1\n", "ranks of one host may not read each other's memory",
     "export OMPI_MCA_btl_vader_single_copy_mechanism=none, or give the container SYS_PTRACE"},
});

bool is_frame(const std::string& line) {
  return line.size() >= 20 && line.find_first_not_of("-*=_") == std::string::npos;
}

// Without "[host:12345] " in front.
std::string without_source(const std::string& line) {
  const size_t end = line.starts_with('[') ? line.find("] ") : std::string::npos;
  return end == std::string::npos ? line : line.substr(end + 2);
}

// The first sentence of the first frame, or the first line where there is none. Sentences in
// frames go over several lines.
std::string first_sentence(const std::string& text) {
  std::vector<std::string> lines = lines_in(text);
  const auto frame = std::find_if(lines.begin(), lines.end(), is_frame);
  if (frame == lines.end() || frame + 1 == lines.end()) {
    return lines.empty() ? "" : without_source(lines.front());
  }
  std::string sentence;
  for (auto line = frame + 1; line != lines.end() && !is_frame(*line); ++line) {
    sentence += (sentence.empty() ? "" : " ") + *line;
    const size_t end = sentence.find(". ");
    if (end != std::string::npos) return sentence.substr(0, end);
    if (sentence.ends_with('.') || sentence.ends_with(':')) break;
  }
  while (sentence.ends_with('.') || sentence.ends_with(':')) sentence.pop_back();
  return sentence;
}

}  // namespace

MpirunTrouble mpirun_trouble(const CapturedCommand& said) {
  const std::string all = said.errors + said.output;
  for (const Known& known : kKnown) {
    if (all.find(known.sign) != std::string::npos) return {known.found, known.advice};
  }
  if (said.timed_out) return {said.trouble, "try by hand: mpirun -np 2 hostname"};
  const std::string sentence = first_sentence(said.errors);
  return {sentence.empty() ? said.trouble : sentence, "try by hand: mpirun -np 2 hostname"};
}

}  // namespace tessera
