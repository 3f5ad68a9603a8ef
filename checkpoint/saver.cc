#include "checkpoint/saver.h"

#include <algorithm>
#include <span>
#include <sstream>
#include <utility>

#include "checkpoint/state_digest.h"
#include "parallel/agreement.h"

namespace tessera {

namespace {

using Clock = std::chrono::steady_clock;

// Places in SaveVotes.
constexpr size_t kWorking = 0;   // ranks whose thread has not ended
constexpr size_t kFailed = 1;    // ranks that could not do their part
constexpr size_t kReplaced = 2;  // 1 when a newer incarnation has taken over
constexpr size_t kDigest = 3;    // and three more: its parts

// What rank 0 says when there is nothing to write: a ticket is neither.
constexpr const char* kNotBegun = "";
constexpr const char* kSavedAlready = "saved";

std::string encode(const SaveTicket& ticket) {
  const FileIdentity& id = ticket.identity;
  return concat(id.run_uuid, " ", id.epoch, " ", id.step, " ", ticket.directory.string());
}

SaveTicket decode(const std::string& text) {
  SaveTicket ticket;
  std::istringstream in(text);
  in >> ticket.identity.run_uuid >> ticket.identity.epoch >> ticket.identity.step;
  in.get();
  std::string directory;
  std::getline(in, directory, '\0');
  ticket.directory = directory;
  return ticket;
}

/// Adds the time that it lives to `seconds`.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double& seconds_;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace

CheckpointSaver::CheckpointSaver(Communicator& ranks, CheckpointStore* store, Options options)
    : ranks_(ranks), store_(store), options_(std::move(options)) {
  CHECK((store != nullptr) == (ranks.rank() == 0), "CheckpointSaver: rank 0 alone has the store");
  if (!options_.on_stage) options_.on_stage = [](const char*) {};
}

// Files are written from host memory.
bool CheckpointSaver::copies(const Stream& stream) const {
  return options_.background || !stream.on(DeviceKind::kCpu);
}

void CheckpointSaver::reserve(Stream& stream, const CheckpointContents& contents) {
  if (copies(stream)) (void)snapshot_.take(stream, contents);
}

int64_t CheckpointSaver::step() const {
  CHECK(busy(), "CheckpointSaver: no save is under way");
  return contents_.step;
}

bool CheckpointSaver::start(Stream& stream, const CheckpointContents& contents) {
  if (busy()) {
    ++skipped_;
    return false;
  }
  stall_ = 0;
  begin_ = Clock::now();
  const Stopwatch stopwatch(stall_);
  digest_share_.reset();
  outcome_ = {};
  // Checks the contents, too.
  std::array<double, 1> bytes{static_cast<double>(part_bytes(contents, ranks_.rank()))};
  ranks_.all_reduce_values(bytes);
  contents_ = copies(stream) ? snapshot_.take(stream, contents) : contents;
  options_.on_stage("snapshot taken");
  phase_ = Phase::kOpening;
  if (store_ == nullptr) return true;
  run([this, all = static_cast<int64_t>(bytes[0])](Outcome& outcome) {
    outcome.ticket = store_->begin(contents_.step, all);
  });
  return true;
}

void CheckpointSaver::set_next_step_digest(uint64_t share) {
  digest_share_ = share;
}

// Errors that are nobody's but the program's come out where the outcome is asked for.
void CheckpointSaver::run(std::function<void(Outcome&)> work) {
  job_ = std::async(std::launch::async, [work = std::move(work)] {
    Outcome outcome;
    try {
      work(outcome);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kTryAgain) throw;
      outcome.failure = {.reason = without_rank(error.what()), .code = error.code()};
      outcome.replaced = true;
    }
    return outcome;
  });
}

bool CheckpointSaver::ended() {
  if (!job_.valid()) return true;
  if (job_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return false;
  outcome_ = job_.get();
  if (phase_ == Phase::kWriting) options_.on_stage("before the vote");
  return true;
}

SaveVotes CheckpointSaver::votes() {
  SaveVotes votes{};
  if (!busy()) return votes;
  if (!ended()) {
    votes[kWorking] = 1;
  } else if (outcome_.failure) {
    votes[outcome_.replaced ? kReplaced : kFailed] = 1;
  }
  if (digest_share_) {
    const DigestParts parts = parts_of(*digest_share_);
    std::copy(parts.begin(), parts.end(), votes.begin() + kDigest);
  }
  return votes;
}

void CheckpointSaver::take_digest(const SaveVotes& sums) {
  if (!digest_share_) return;
  contents_.next_step_digest = digest_of(std::span(sums).subspan<kDigest, 4>());
  digest_share_.reset();
}

std::optional<SaveReport> CheckpointSaver::advance(const SaveVotes& sums) {
  if (!busy()) return std::nullopt;
  std::optional<SaveReport> report;
  {
    const Stopwatch stopwatch(stall_);
    // While rank 0 commits, the contents are its thread's.
    if (phase_ != Phase::kCommitting) take_digest(sums);
    if (sums[kReplaced] > 0) stop_replaced();
    if (sums[kWorking] == 0) report = go_on(sums);
  }
  if (report) {
    report->stall_seconds = stall_;
    report->seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  }
  return report;
}

std::optional<SaveReport> CheckpointSaver::go_on(const SaveVotes& sums) {
  const bool failed = sums[kFailed] > 0;
  switch (phase_) {
    case Phase::kOpening:
      return begin_writing();
    case Phase::kWriting:
      begin_commit(failed);
      return std::nullopt;
    default:
      return end(!failed);
  }
}

std::optional<SaveReport> CheckpointSaver::begin_writing() {
  std::string text;
  if (store_ != nullptr) {
    if (outcome_.ticket) {
      text = encode(*outcome_.ticket);
    } else {
      outcome_.report = store_->finish(contents_, ranks_.size(), std::nullopt);
      text = outcome_.report.committed ? kSavedAlready : kNotBegun;
    }
  }
  text = broadcast_text(ranks_, text, 0);
  if (text == kNotBegun || text == kSavedAlready) return end(text == kSavedAlready);
  phase_ = Phase::kWriting;
  outcome_ = {};
  run([this, ticket = decode(text)](Outcome& outcome) { write_own_part(ticket, outcome); });
  return std::nullopt;
}

void CheckpointSaver::write_own_part(const SaveTicket& ticket, Outcome& outcome) const {
  if (store_ != nullptr) {
    outcome.failure = store_->write(contents_);
    return;
  }
  outcome.failure = failure_of([&] {
    FileIdentity identity = ticket.identity;
    identity.writer = ranks_.rank();
    write_part(open_checkpoint(ticket), identity, contents_, options_.on_stage);
  });
}

void CheckpointSaver::begin_commit(bool failed) {
  options_.on_stage("after the vote");
  std::optional<Failure> failure;
  if (failed) {
    failure = first_failure(ranks_, outcome_.failure);
    failure->reason = to_text(*failure, ranks_);
  }
  phase_ = Phase::kCommitting;
  outcome_ = {};
  if (store_ == nullptr) return;
  run([this, failure](Outcome& outcome) {
    outcome.report = store_->finish(contents_, ranks_.size(), failure);
    if (!outcome.report.committed) outcome.failure = {.reason = outcome.report.failure};
  });
}

SaveReport CheckpointSaver::end(bool committed) {
  phase_ = Phase::kIdle;
  SaveReport report = std::exchange(outcome_, {}).report;
  report.committed = committed;
  report.skipped = skipped_;
  return report;
}

void CheckpointSaver::stop_replaced() {
  phase_ = Phase::kIdle;
  const std::optional<Failure> lost = first_failure(ranks_, outcome_.failure);
  throw Error(lost->code, lost->reason);
}

std::optional<SaveReport> CheckpointSaver::finish() {
  while (busy()) {
    SaveVotes sums{};
    {
      const Stopwatch stopwatch(stall_);
      if (job_.valid()) job_.wait();
      sums = votes();
      ranks_.all_reduce_values(sums);
    }
    if (std::optional<SaveReport> report = advance(sums)) return report;
  }
  return std::nullopt;
}

}  // namespace tessera
