#include "runtime/report/run_log.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

#include "runtime/report/line_file.h"

namespace tessera {

namespace {

constexpr size_t kLongestText = 400;

// The number behind the first `mark` of a text, or `otherwise`.
int64_t number_behind(std::string_view text, std::string_view mark, int64_t otherwise) {
  const size_t at = text.find(mark);
  if (at == std::string_view::npos) return otherwise;
  const std::string_view digits = text.substr(at + mark.size());
  int64_t number = otherwise;
  std::from_chars(digits.data(), digits.data() + digits.size(), number);
  return number;
}

// "23:43:55 " in front of a line.
bool has_clock(std::string_view line) {
  static constexpr std::string_view kForm = "00:00:00 ";
  if (line.size() < kForm.size()) return false;
  return std::equal(kForm.begin(), kForm.end(), line.begin(), [](char form, char c) {
    return form == '0' ? std::isdigit(static_cast<unsigned char>(c)) != 0 : form == c;
  });
}

// Without "[rank 3/16] ".
std::string_view without_rank(std::string_view text) {
  const size_t end = text.starts_with("[rank ") ? text.find("] ") : std::string_view::npos;
  return end == std::string_view::npos ? text : text.substr(end + 2);
}

/// How a kind of event is told: by what its line begins with or holds, and what is behind the mark
/// is its step.
struct Sentence {
  RunEvent::Kind kind;
  std::string_view begin;
  std::string_view holds;
  std::string_view step_mark;
};
using Kind = RunEvent::Kind;
constexpr std::array kSentences = std::to_array<Sentence>({
    {Kind::kStart, "ranks ", "threads per rank", ""},
    {Kind::kResume, "resumed from ", "", " after step "},
    {Kind::kSave, "saved ", "", "/step-"},
    {Kind::kSkip, "step ", " is skipped: ", "step "},
    {Kind::kStop, "", " asked to stop: ", " after step "},
    {Kind::kHold, "quality guard: ", " the transition waits: ", " after step "},
    {Kind::kHold, "quality guard: ", " the transition goes on: ", " after step "},
    {Kind::kWarning, "warning: ", "", "step "},
    {Kind::kWarning, "HANG", "", ""},
    {Kind::kResume, "changed since the checkpoint: ", "", ""},
    {Kind::kResume, "step ", " is bit-exact: ", "step "},
    {Kind::kResume, "step ", " differs in bits from ", "step "},
});

}  // namespace

const char* name_of(RunEvent::Kind kind) {
  static constexpr std::array kNames{"start", "resume", "save", "skip",
                                     "stop",  "change", "hold", "warning"};
  return kNames[static_cast<size_t>(kind)];
}

bool read_event(std::string_view line, RunEvent& event) {
  if (!has_clock(line)) return false;
  event.clock = line.substr(0, 8);
  const std::string_view text = without_rank(line.substr(9));
  event.text = text.substr(0, kLongestText);
  for (const Sentence& sentence : kSentences) {
    if (!text.starts_with(sentence.begin)) continue;
    if (text.find(sentence.holds) == std::string_view::npos) continue;
    event.kind = sentence.kind;
    if (!sentence.step_mark.empty()) {
      event.step = number_behind(text, sentence.step_mark, event.step);
    }
    return true;
  }
  if (text.starts_with("step ")) event.step = number_behind(text, "step ", event.step);
  return false;
}

std::vector<RunEvent> read_log(const std::filesystem::path& path) {
  std::vector<RunEvent> events;
  RunEvent event;
  read_lines(path, [&](std::string_view line) {
    if (!read_event(line, event)) return true;
    // A start does not know yet where it goes on.
    const bool after_start = !events.empty() && events.back().kind == RunEvent::Kind::kStart;
    if (after_start && event.kind == RunEvent::Kind::kResume) events.back().step = event.step;
    events.push_back(event);
    return true;
  });
  return events;
}

}  // namespace tessera
