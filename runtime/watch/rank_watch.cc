#include "runtime/watch/rank_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <exception>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include "kernels/core/log.h"
#include "parallel/agreement.h"
#include "runtime/watch/flight_dump.h"
#include "runtime/watch/order_signal.h"
#include "runtime/watch/watcher.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr double kAnswerSeconds = 10;
constexpr double kLookSeconds = 8;
constexpr double kEndSeconds = 2;

std::string host_name() {
  std::array<char, 64> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

// The signals that are meant for the rank, and reach all processes of its group or job step, are
// none of the watcher's business; it ends with the rank.
[[noreturn]] void watch(Descriptor channel, pid_t rank) {
  for (const int number : {SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP, SIGPIPE, SIGCONT}) {
    signal(number, SIG_IGN);
  }
  prctl(PR_SET_NAME, "tessera-watch");
  const int nowhere = open("/dev/null", O_RDWR);
  if (nowhere >= 0) {
    dup2(nowhere, STDIN_FILENO);
    dup2(nowhere, STDOUT_FILENO);
    if (nowhere > STDERR_FILENO) close(nowhere);
  }
  try {
    Watcher(std::move(channel), rank).run();
  } catch (const std::exception& error) {
    log_line(concat("the watcher of this rank ends: ", error.what()));
  }
  _exit(0);
}

/// What an earlier job left behind is evidence: it is kept until the next one.
void make_directory(const fs::path& flight) {
  const fs::path previous = flight.string() + ".previous";
  std::error_code trouble;
  if (fs::exists(flight, trouble)) {
    fs::remove_all(previous, trouble);
    fs::rename(flight, previous, trouble);
  }
  fs::create_directories(flight, trouble);
  if (!trouble) return;
  throw Error(ExitCode::kUsage, concat("cannot make ", flight.string(), ": ", trouble.message(),
                                       "; check that run_dir is writable"));
}

/// How the watcher of rank 0 can be reached: cookie, port, host name, addresses.
std::string invitation(uint64_t cookie, int port) {
  std::ostringstream out;
  out << cookie << " " << port << " " << host_name();
  for (const std::string& address : own_addresses()) out << " " << address;
  return out.str();
}

uint64_t random_cookie() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

void take_invitation(const std::string& text, WatchBegin& begin) {
  std::istringstream in(text);
  std::string host;
  in >> begin.hello.cookie >> begin.port >> host;
  std::vector<std::string> addresses;
  if (host == host_name()) addresses.emplace_back("127.0.0.1");
  for (std::string address; in >> address;) addresses.push_back(address);
  for (const std::string& address : addresses) {
    if (begin.addresses == static_cast<int32_t>(begin.address.size())) break;
    std::array<char, 48>& place = begin.address[static_cast<size_t>(begin.addresses++)];
    address.copy(place.data(), place.size() - 1);
  }
}

void throw_on_all(Communicator& world, const std::function<void()>& work) {
  const std::optional<Failure> failure = first_failure(world, failure_of(work));
  if (failure) throw Error(failure->code, to_text(*failure, world));
}

}  // namespace

RankWatch::RankWatch(bool wanted) {
  if (!wanted) return;
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) return;
  channel_ = Descriptor(ends[0]);
  Descriptor other(ends[1]);
  const pid_t rank = getpid();
  watcher_ = fork();
  if (watcher_ == 0) {
    channel_.reset();
    watch(std::move(other), rank);
  }
  if (watcher_ < 0) {
    log_line(concat("warning: no watcher for this rank: ", std::strerror(errno)));
    channel_.reset();
    return;
  }
  obey_watcher();
}

RankWatch::~RankWatch() {
  end();
}

void RankWatch::tell(const void* message, size_t bytes) {
  // A watcher that is gone does not stop the rank.
  if (channel_.open()) (void)!send(channel_.number(), message, bytes, MSG_NOSIGNAL);
}

bool RankWatch::hear(void* message, size_t bytes, double seconds) {
  if (!channel_.open()) return false;
  pollfd one{channel_.number(), POLLIN, 0};
  if (poll(&one, 1, static_cast<int>(1000 * seconds)) != 1) return false;
  return recv(channel_.number(), message, bytes, 0) == static_cast<ssize_t>(bytes);
}

void RankWatch::begin(const fs::path& run_directory, const WatchLimits& limits,
                      Communicator& world) {
  if (!channel_.open()) return;
  WatchBegin begin{.limits = limits};
  begin.hello = {.cookie = 0, .rank = world.rank(), .ranks = world.size()};
  flight_ = run_directory / "flight";
  rank_ = world.rank();
  std::string invited;
  throw_on_all(world, [&] {
    const std::string path = fs::absolute(run_directory).string();
    if (path.size() >= begin.run_directory.size()) {
      throw Error(ExitCode::kUsage, concat("run_dir has ", path.size(), " characters, expected ",
                                           begin.run_directory.size() - 1, " at most"));
    }
    path.copy(begin.run_directory.data(), begin.run_directory.size() - 1);
    if (world.rank() != 0) return;
    make_directory(flight_);
    const auto question = RankMessage::kListen;
    tell(&question, sizeof question);
    WatchPort port{};
    const bool heard = hear(&port, sizeof port, kAnswerSeconds);
    if (!heard || port.port == 0) {
      throw Error(ExitCode::kTryAgain, heard ? std::string(port.trouble.data())
                                             : "the watcher of rank 0 does not answer");
    }
    invited = invitation(random_cookie(), port.port);
  });
  take_invitation(broadcast_text(world, invited, 0), begin);
  recorder_ = &world.log().recorder();
  recorder_->set_identity(world.rank(), world.size(), host_name());
  throw_on_all(world, [&] {
    recorder_->keep_in(ring_file(flight_, rank_));
    stacks_ = Descriptor(
        open(stacks_file(flight_, rank_).c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  });
  begin.stacks = stacks_.number();
  tell(&begin, sizeof begin);
  char done = 0;
  hear(&done, 1, kAnswerSeconds);
}

void RankWatch::fail() {
  if (recorder_ != nullptr) recorder_->set_end(FlightEnd::kFailed);
  const auto message = RankMessage::kFail;
  tell(&message, sizeof message);
  char done = 0;
  if (recorder_ != nullptr) hear(&done, 1, kLookSeconds);
}

void RankWatch::forget() {
  if (flight_.empty()) return;
  std::error_code trouble;
  fs::remove(ring_file(flight_, rank_), trouble);
  fs::remove(stacks_file(flight_, rank_), trouble);
  fs::remove(flight_, trouble);  // the last rank's succeeds
}

void RankWatch::end() {
  if (!channel_.open()) return;
  const auto message = RankMessage::kEnd;
  tell(&message, sizeof message);
  channel_.reset();
  for (int wait = 0; wait < 100 * kEndSeconds; ++wait) {
    if (waitpid(watcher_, nullptr, WNOHANG) != 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(watcher_, SIGKILL);
  waitpid(watcher_, nullptr, 0);
}

}  // namespace tessera
