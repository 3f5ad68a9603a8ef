#include "checkpoint/fail_points.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr std::string_view kFolder = "ckpt.";
constexpr const char* kExchange = "comm.exchange";
constexpr int kAnyRank = -1;
constexpr int64_t kMaxDelay = 24 * 3600 * 1000;  // a day
constexpr int64_t kMaxRank = 1'000'000;
constexpr int64_t kMaxVisits = 1'000'000'000;

enum class Action { kKill, kStop, kError, kDelay, kExit, kSkip };

struct Point {
  std::string text;
  std::string stage;
  Action action = Action::kKill;
  int64_t number = 0;  // milliseconds or exit code
  int64_t rank = kAnyRank;
  int64_t visit = 1;
  bool for_ever = false;
  std::map<int, int64_t> visits = {};  // by rank
};

std::string word_of(std::string_view stage) {
  std::string word = concat(kFolder, stage);
  std::replace(word.begin(), word.end(), ' ', '_');
  return word;
}

[[noreturn]] void refuse(const Point& point, std::string_view word, const std::string& expected) {
  throw Error(ExitCode::kUsage, concat("fail point \"", point.text, "\": \"", word,
                                       "\" is wrong, expected ", expected));
}

std::string stage_of(const Point& point, std::string_view word) {
  std::string known;
  for (const char* stage : kSaveStages) {
    if (word_of(stage) == word) return stage;
    known += concat(word_of(stage), ", ");
  }
  if (word == kExchange) return kExchange;
  known += kExchange;
  refuse(point, word, "one of " + known);
}

std::optional<int64_t> number_in(std::string_view digits, int64_t least, int64_t most) {
  int64_t value = 0;
  const auto [end, trouble] = std::from_chars(digits.begin(), digits.end(), value);
  if (trouble != std::errc() || end != digits.end() || value < least || value > most) return {};
  return value;
}

// Cuts `text` at the last `mark`, when there is one, and returns what stands behind it.
std::optional<std::string_view> cut_off(std::string_view& text, char mark) {
  const size_t at = text.rfind(mark);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view rest = text.substr(at + 1);
  text = text.substr(0, at);
  return rest;
}

void set_action(std::string_view word, Point& point) {
  constexpr std::string_view kDelayWord = "delay=";
  constexpr std::string_view kExitWord = "exit=";
  std::optional<int64_t> number = 0;
  if (word == "kill") {
    point.action = Action::kKill;
  } else if (word == "stop") {
    point.action = Action::kStop;
  } else if (word == "error") {
    point.action = Action::kError;
  } else if (word == "skip" && point.stage == kExchange) {
    point.action = Action::kSkip;
  } else if (word.starts_with(kDelayWord)) {
    point.action = Action::kDelay;
    number = number_in(word.substr(kDelayWord.size()), 0, kMaxDelay);
  } else if (word.starts_with(kExitWord)) {
    point.action = Action::kExit;
    number = number_in(word.substr(kExitWord.size()), 0, 255);
  } else {
    number.reset();
  }
  if (!number) {
    refuse(point, word,
           concat("kill, stop, error, delay=MILLISECONDS (0 to ", kMaxDelay,
                  "), exit=CODE (0 to 255) or, of comm.exchange, skip"));
  }
  point.number = *number;
}

void set_rank(std::string_view word, Point& point) {
  constexpr std::string_view kRankWord = "rank";
  if (word == "any") return;
  const auto rank = word.starts_with(kRankWord)
                        ? number_in(word.substr(kRankWord.size()), 0, kMaxRank)
                        : std::nullopt;
  if (!rank) refuse(point, word, "any or rankR behind @, as @rank3");
  point.rank = *rank;
}

void set_visit(std::string_view word, Point& point) {
  point.for_ever = word.ends_with('+');
  const std::string_view digits = point.for_ever ? word.substr(0, word.size() - 1) : word;
  const auto visit = number_in(digits, 1, kMaxVisits);
  if (!visit) refuse(point, word, "a number from 1, or one and a +, behind #, as #2 or #2+");
  point.visit = *visit;
}

Point point_of(std::string_view text) {
  Point point;
  point.text = text;
  if (const auto visit = cut_off(text, '#')) set_visit(*visit, point);
  if (const auto rank = cut_off(text, '@')) set_rank(*rank, point);
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) refuse(point, text, "STAGE:ACTION, as ckpt.committed:kill");
  point.stage = stage_of(point, text.substr(0, colon));
  set_action(text.substr(colon + 1), point);
  return point;
}

void act(const Point& point, int rank) {
  switch (point.action) {
    case Action::kKill:
      ::kill(getpid(), SIGKILL);
      break;
    case Action::kStop:
      ::kill(getpid(), SIGSTOP);
      break;
    case Action::kError:
      throw Error(ExitCode::kTryAgain,
                  concat("fail point ", point.text, " makes rank ", rank, " fail"));
    case Action::kDelay:
      std::this_thread::sleep_for(std::chrono::milliseconds(point.number));
      break;
    case Action::kExit:
      _exit(static_cast<int>(point.number));
    case Action::kSkip:
      break;
  }
}

}  // namespace

struct FailPoints::Points {
  std::mutex mutex;
  std::vector<Point> all;
};

FailPoints::FailPoints(const std::string& text) {
  if (text.empty()) return;
  points_ = std::make_shared<Points>();
  std::string_view rest = text;
  while (true) {
    const size_t comma = rest.find(',');
    points_->all.push_back(point_of(rest.substr(0, comma)));
    if (comma == std::string_view::npos) return;
    rest = rest.substr(comma + 1);
  }
}

void FailPoints::reach(const char* stage, int rank) const {
  act_at(stage, rank);
}

bool FailPoints::passes_exchange(int rank) const {
  return act_at(kExchange, rank);
}

// False when one of the points was to skip.
bool FailPoints::act_at(const char* stage, int rank) const {
  if (!armed()) return true;
  std::vector<const Point*> now;
  {
    const std::lock_guard lock(points_->mutex);
    for (Point& point : points_->all) {
      if (point.stage != stage || (point.rank != kAnyRank && point.rank != rank)) continue;
      const int64_t visit = ++point.visits[rank];
      if (visit == point.visit || (point.for_ever && visit > point.visit)) now.push_back(&point);
    }
  }
  // Without the lock: a rank that waits here must not keep the others.
  bool pass = true;
  for (const Point* point : now) {
    pass = pass && point->action != Action::kSkip;
    act(*point, rank);
  }
  return pass;
}

std::function<void(const char* stage)> FailPoints::observer(int rank) const {
  return [copy = *this, rank](const char* stage) { copy.reach(stage, rank); };
}

}  // namespace tessera
