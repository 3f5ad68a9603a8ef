#include "runtime/watch/watcher.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <exception>
#include <fstream>
#include <thread>
#include <utility>

#include "kernels/core/log.h"
#include "runtime/watch/flight_dump.h"
#include "runtime/watch/order_signal.h"
#include "runtime/watch/process_state.h"

namespace tessera {

namespace {

constexpr double kTick = 0.2;
// Longer between two looks: this process, and so perhaps the host, was stopped meanwhile.
constexpr double kAsleep = 5;
constexpr double kDumpSeconds = 10;
constexpr double kExitSeconds = 3;
constexpr double kLinkWarning = 30;
constexpr int64_t kReportedRecords = 512;

double seconds(int64_t from, int64_t to) {
  return 1e-9 * static_cast<double>(to - from);
}

void sleep_for(double seconds) {
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

template <class T>
void publish(T& field, T value) {
  std::atomic_ref<T>(field).store(value, std::memory_order_release);
}

}  // namespace

Watcher::Watcher(Descriptor channel, pid_t rank)
    : channel_(std::move(channel)),
      rank_process_(rank),
      started_(monotonic_nanoseconds()),
      last_tick_(started_) {}

void Watcher::answer_port() {
  WatchPort answer{};
  try {
    server_.emplace();
    answer.port = server_->port();
  } catch (const std::exception& error) {
    std::string(error.what()).copy(answer.trouble.data(), answer.trouble.size() - 1);
  }
  send(channel_.number(), &answer, sizeof answer, MSG_NOSIGNAL);
}

void Watcher::answer() {
  const char done = 1;
  send(channel_.number(), &done, 1, MSG_NOSIGNAL);
}

void Watcher::begin(const WatchBegin& begin) {
  begin_ = begin;
  const std::filesystem::path run_directory(begin.run_directory.data());
  flight_ = (run_directory / "flight").string();
  file_ = std::make_unique<FlightFile>(ring_file(flight_, begin.hello.rank), true);
  times_.emplace(begin.limits);
  set_error_rank(begin.hello.rank, begin.hello.ranks);
  const int64_t now = monotonic_nanoseconds();
  if (begin.hello.rank == 0) {
    also_log_to(run_directory / "log.txt");
    server_->begin(
        {.ranks = begin.hello.ranks, .cookie = begin.hello.cookie, .limits = begin.limits}, now);
    return;
  }
  WatchLink::Target target{.addresses = {}, .port = begin.port, .hello = begin.hello};
  for (int32_t i = 0; i < begin.addresses; ++i) {
    target.addresses.emplace_back(begin.address[static_cast<size_t>(i)].data());
  }
  link_.emplace(std::move(target), now);
}

Watcher::Talk Watcher::listen_to_rank() {
  while (true) {
    WatchBegin message{};
    const ssize_t got = recv(channel_.number(), &message, sizeof message, MSG_DONTWAIT);
    if (got == 0) return Talk::kClosed;
    if (got < 0) {
      const bool nothing = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
      return nothing ? Talk::kGoOn : Talk::kClosed;
    }
    switch (message.kind) {
      case RankMessage::kListen:
        answer_port();
        break;
      case RankMessage::kBegin:
        begin(message);
        answer();
        break;
      case RankMessage::kFail:
        failed_ = true;
        failed_since_ = monotonic_nanoseconds();
        break;
      case RankMessage::kEnd:
        return Talk::kEnd;
    }
  }
}

/// Looks at the process, and writes what it sees beside what the rank writes.
void Watcher::look(int64_t now) {
  FlightState& state = file_->map().state;
  const ProcessState seen = gone_ ? ProcessState{} : process_state(rank_process_);
  state.waits_at = {};
  seen.waits_at.copy(state.waits_at.data(), state.waits_at.size() - 1);
  publish(state.process_state, static_cast<int64_t>(seen.state));
  publish(state.seen, now);
  if (seen.state != 'T') {
    stopped_since_ = 0;
  } else if (stopped_since_ == 0) {
    stopped_since_ = now;
  }
  times_->observe(state);
}

Concern Watcher::concern(int64_t now) {
  const FlightState& state = file_->map().state;
  if (failed_ || state.end == FlightEnd::kFailed) return Concern::kFailed;
  if (gone_) return Concern::kGone;
  const bool stopped = stopped_since_ > 0 && seconds(stopped_since_, now) > begin_.limits.stopped;
  if (stopped) return Concern::kStopped;
  const int64_t since = std::max(state.section_began, forgiven_);
  return seconds(since, now) > times_->limit(state) ? Concern::kSlow : Concern::kNone;
}

RankReport Watcher::report(int64_t now) const {
  RankReport report = report_of(file_->map(), now, kReportedRecords);
  report.rank = begin_.hello.rank;
  return report;
}

WatchOrder Watcher::exchange(const HeartbeatBody& own, int64_t now) {
  const ReportMaker make = [&] { return report(now); };
  if (link_) return link_->tick(own, make, now);
  MonitorNews news;
  const WatchOrder order = server_->tick(own, make, now, news);
  note(std::move(news));
  return order;
}

void Watcher::note(MonitorNews news) {
  const bool hang = !news.lines.empty() && news.lines.front().starts_with("HANG");
  if (hang) {
    news.lines.push_back(concat("  dumps: ", flight_, ", explained by `tessera flight ",
                                begin_.run_directory.data(), "`"));
  }
  for (const std::string& line : news.lines) log_line(line);
  if (!hang) return;
  std::ofstream said(hang_file(flight_));
  for (const std::string& line : news.lines) said << line << "\n";
  if (news.suspects.empty()) return;
  std::ofstream suspects(suspects_file(flight_));
  for (const std::string& host : news.suspects) suspects << host << "\n";
}

/// The record and the stacks, by a process of its own: a file system that does not answer must not
/// keep the rank alive.
void Watcher::write_down() {
  const pid_t writer = fork();
  if (writer == 0) {
    const int rank = begin_.hello.rank;
    const RankReport all = report_of(file_->map(), monotonic_nanoseconds());
    std::ofstream(dump_file(flight_, rank)) << to_json(all) << "\n";
    const bool answers = !gone_ && all.state.process_state != 'T';
    if (answers) ask_for_stacks(rank_process_, stacks_file(flight_, rank), begin_.stacks);
    _exit(0);
  }
  const int64_t begin = monotonic_nanoseconds();
  while (writer > 0 && seconds(begin, monotonic_nanoseconds()) < kDumpSeconds) {
    if (waitpid(writer, nullptr, WNOHANG) != 0) return;
    sleep_for(0.02);
  }
  if (writer > 0) kill(writer, SIGKILL);
}

void Watcher::end_rank() {
  if (gone_) return;
  order_exit(rank_process_);
  const int64_t begin = monotonic_nanoseconds();
  while (seconds(begin, monotonic_nanoseconds()) < kExitSeconds) {
    // The rank has the only other end of the channel.
    if (listen_to_rank() != Talk::kGoOn) return;
    sleep_for(0.02);
  }
  kill(rank_process_, SIGKILL);
}

/// True: the rank has been ended, and with it the watcher's work.
bool Watcher::obey(WatchOrder order) {
  if (order == WatchOrder::kWriteDown && !std::exchange(written_, true)) {
    write_down();
    if (link_) link_->leave();
    if (server_) server_->leave();
  }
  if (order != WatchOrder::kEnd) return false;
  end_rank();
  return true;
}

void Watcher::check_lease(int64_t now) {
  if (!link_) return;
  const double silence = link_->silence(now);
  if (link_->ever_heard() && silence > begin_.limits.lease) {
    log_line(
        concat("no word from rank 0's watcher (", link_->addresses(), ") for ",
               static_cast<int64_t>(silence),
               " s: it is down, or this host is cut off; this rank ends with 75, as others may "
               "go on without it"));
    // First the rank, which may be writing: then, if the file system lets us, the record.
    end_rank();
    gone_ = true;
    write_down();
    _exit(0);
  }
  if (!link_->ever_heard() && silence > kLinkWarning && !std::exchange(warned_of_link_, true)) {
    log_line(concat("warning: rank 0's watcher cannot be reached at ", link_->addresses(),
                    "; a hang of this rank will be found by the others only. Open TCP between the "
                    "hosts"));
  }
}

/// Before the run begins nobody else knows of this rank.
void Watcher::check_setup(int64_t now) {
  if (seconds(std::max(started_, forgiven_), now) < WatchLimits{}.setup) return;
  log_line(
      concat("HANG phase setup: this rank did not get through the start of MPI and the reading "
             "of its configuration in ",
             static_cast<int64_t>(WatchLimits{}.setup), " s; process state ",
             to_text(process_state(rank_process_).state), "; it ends with 75"));
  end_rank();
  _exit(0);
}

/// The rank died without a word: the others hear it from us, until they end or we are killed too.
void Watcher::watch_over_gone_rank() {
  gone_ = true;
  const int64_t begin = monotonic_nanoseconds();
  const bool told = begun() && file_->map().state.end == FlightEnd::kRunning && !failed_;
  while (told && seconds(begin, monotonic_nanoseconds()) < kDumpSeconds) {
    const int64_t now = monotonic_nanoseconds();
    look(now);
    const HeartbeatBody own{
        .now = now, .concern = Concern::kGone, .unused = 0, .state = file_->map().state};
    if (obey(exchange(own, now))) return;
    sleep_for(0.1);
  }
}

void Watcher::wait_for_news(double seconds) const {
  std::vector<pollfd> all{{channel_.number(), POLLIN, 0}};
  if (link_ && link_->descriptor() >= 0) {
    const short events = link_->has_unsent() ? POLLIN | POLLOUT : POLLIN;
    all.push_back({link_->descriptor(), events, 0});
  }
  if (server_) {
    for (const int one : server_->descriptors()) all.push_back({one, POLLIN, 0});
  }
  poll(all.data(), all.size(), static_cast<int>(1000 * seconds));
}

/// The time; after a sleep of this process, all that was late meanwhile is forgiven.
int64_t Watcher::now_forgiving() {
  const int64_t now = monotonic_nanoseconds();
  if (seconds(last_tick_, now) > kAsleep) {
    forgiven_ = now;
    if (stopped_since_ > 0) stopped_since_ = now;
    if (link_) link_->forgive(now);
    if (server_ && begun()) server_->forgive(now);
  }
  last_tick_ = now;
  return now;
}

void Watcher::run() {
  while (true) {
    wait_for_news(kTick);
    const Talk talk = listen_to_rank();
    if (talk == Talk::kEnd) {
      if (link_) link_->leave();
      return;
    }
    if (talk == Talk::kClosed) return watch_over_gone_rank();
    const int64_t now = now_forgiving();
    if (!begun()) {
      check_setup(now);
      continue;
    }
    look(now);
    const HeartbeatBody own{
        .now = now, .concern = concern(now), .unused = 0, .state = file_->map().state};
    if (obey(exchange(own, now))) return;
    check_lease(now);
    if (failed_ && seconds(failed_since_, now) > 2) {
      write_down();
      answer();
      return;
    }
  }
}

}  // namespace tessera
