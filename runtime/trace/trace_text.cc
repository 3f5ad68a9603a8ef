#include "runtime/trace/trace_text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <string_view>

namespace tessera {

namespace {

constexpr int kCompute = 1;
constexpr int kCheckpoint = 2;
constexpr int kFirstGroup = 10;

void add(std::string& out, int64_t number) {
  std::array<char, 24> digits{};
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), number).ptr;
  out.append(digits.data(), end);
}

// Microseconds with three decimals.
void add_time(std::string& out, int64_t nanoseconds) {
  if (nanoseconds < 0) out += '-';
  const int64_t size = std::abs(nanoseconds);
  add(out, size / 1000);
  out += '.';
  for (const int64_t unit : {100, 10, 1}) out += static_cast<char>('0' + size / unit % 10);
}

void add_text(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < ' ') continue;
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  out += '"';
}

/// One event. Its line is whole when this goes.
class Line {
 public:
  /// `form` is the letter of the format: X a span, b and e the ends of an asynchronous one, s and f
  /// those of an arrow, i a moment, M a name.
  Line(std::string& out, char form, int rank, int thread) : out_(out) {
    out_ += "{\"ph\":\"";
    out_ += form;
    out_ += "\",\"pid\":";
    add(out_, rank);
    out_ += ",\"tid\":";
    add(out_, thread);
  }
  ~Line() { out_ += has_arguments_ ? "}},\n" : "},\n"; }
  Line(const Line&) = delete;
  Line& operator=(const Line&) = delete;

  void number(const char* key, int64_t value) { add(name(key), value); }
  void time(const char* key, int64_t nanoseconds) { add_time(name(key), nanoseconds); }
  void text(const char* key, std::string_view value) { add_text(name(key), value); }
  /// A key for what the caller appends.
  std::string& name(const char* key) {
    if (!first_) out_ += ',';
    first_ = false;
    out_ += '"';
    out_ += key;
    out_ += "\":";
    return out_;
  }
  /// All that follows is for the reader to see.
  void arguments() {
    out_ += ",\"args\":{";
    has_arguments_ = first_ = true;
  }

 private:
  std::string& out_;
  bool first_ = false;
  bool has_arguments_ = false;
};

// Names of colors that chrome://tracing knows; Perfetto has its own, by name.
const char* color_of(const TraceSpan& span) {
  if (span.kind == TraceSpan::Kind::kWait) return "terrible";
  if (span.kind != TraceSpan::Kind::kPhase) return nullptr;
  switch (span.phase) {
    case Phase::kData:
      return "rail_load";
    case Phase::kForward:
      return "thread_state_running";
    case Phase::kBackward:
      return "thread_state_runnable";
    case Phase::kSums:
      return "thread_state_iowait";
    case Phase::kUpdate:
      return "rail_animation";
    case Phase::kValidation:
      return "rail_response";
    case Phase::kCheckpoint:
      return "olive";
    default:
      return "grey";
  }
}

const char* category_of(TraceSpan::Kind kind) {
  static constexpr std::array<const char*, 5> kNames{"step", "phase", "layer", "wait", "trace"};
  return kNames[static_cast<size_t>(kind)];
}

std::string name_of(const TraceSpan& span) {
  switch (span.kind) {
    case TraceSpan::Kind::kStep:
      return "step " + std::to_string(span.step);
    case TraceSpan::Kind::kPhase:
      return name_of(span.phase);
    case TraceSpan::Kind::kLayer:
      return "layer " + std::to_string(span.layer);
    case TraceSpan::Kind::kWait:
      return std::string("wait for ") + name_of(span.operation);
    default:
      return "write the trace";
  }
}

}  // namespace

const char* TraceText::name_of_group(int32_t group) const {
  return map_.groups[static_cast<size_t>(group)].name.data();
}

int TraceText::thread_of(int32_t group) const {
  int32_t first = 0;
  while (std::string_view(name_of_group(first)) != name_of_group(group)) ++first;
  return kFirstGroup + first;
}

void TraceText::append_thread(int thread, const std::string& name, int place,
                              std::string& out) const {
  {
    Line line(out, 'M', rank_.rank, thread);
    line.text("name", "thread_name");
    line.arguments();
    line.text("name", name);
  }
  Line line(out, 'M', rank_.rank, thread);
  line.text("name", "thread_sort_index");
  line.arguments();
  line.number("sort_index", place);
}

void TraceText::append_names(std::string& out) {
  if (named_ < 0) {
    {
      Line line(out, 'M', rank_.rank, 0);
      line.text("name", "process_name");
      line.arguments();
      line.text("name", rank_.name);
    }
    {
      Line line(out, 'M', rank_.rank, 0);
      line.text("name", "process_sort_index");
      line.arguments();
      line.number("sort_index", rank_.rank);
    }
    append_thread(kCompute, "compute", 0, out);
    append_thread(kCheckpoint, "checkpoint", 1000, out);
    named_ = 0;
  }
  for (; named_ < map_.state.groups; ++named_) {
    const int thread = thread_of(named_);
    const bool seen = thread != kFirstGroup + named_;
    if (!seen && map_.groups[static_cast<size_t>(named_)].size > 1) {
      append_thread(thread, name_of_group(named_), thread, out);
    }
  }
}

void TraceText::append(const TraceSpan& span, std::string& out) const {
  Line line(out, 'X', rank_.rank, kCompute);
  line.time("ts", time(span.begin));
  line.time("dur", span.end - span.begin);
  line.text("name", name_of(span));
  line.text("cat", category_of(span.kind));
  if (const char* color = color_of(span)) line.text("cname", color);
  line.arguments();
  line.number("step", span.step);
  if (span.kind != TraceSpan::Kind::kWait) return;
  line.text("axis", name_of_group(span.group));
  line.number("number", span.number);
}

void TraceText::append(const TraceExchange& exchange, std::string& out) const {
  const CollectiveRecord& record = exchange.record;
  const int thread = thread_of(record.group);
  const char* const axis = name_of_group(record.group);
  const std::string operation = tessera::name_of(record.operation);
  const std::string name = exchange.overlapped ? operation + " " + axis : operation;
  // The same for no other exchange of any rank.
  const int64_t identity = (int64_t{rank_.rank} << 32) + record.index;
  {
    Line line(out, exchange.overlapped ? 'b' : 'X', rank_.rank, thread);
    line.time("ts", time(record.started));
    if (!exchange.overlapped) line.time("dur", record.completed - record.started);
    if (exchange.overlapped) line.number("id", identity);
    line.text("name", name);
    line.text("cat", "exchange");
    line.arguments();
    line.number("step", record.step);
    if (record.layer >= 0) line.number("layer", record.layer);
    line.text("phase", tessera::name_of(record.phase));
    line.text("axis", axis);
    line.number("number", record.number);
    line.number("sent", record.sent);
    line.number("received", record.received);
    line.number("elements", record.elements);
    line.text("dtype", tessera::name_of(record.dtype));
    line.text("call", std::string(record.file.data()) + ":" + std::to_string(record.line));
    if (!exchange.finished) line.number("unfinished", 1);
  }
  if (!exchange.overlapped) return;
  {
    Line line(out, 'e', rank_.rank, thread);
    line.time("ts", time(record.completed));
    line.number("id", identity);
    line.text("name", name);
    line.text("cat", "exchange");
  }
  if (exchange.wait_began == 0) return;
  // From the span that starts it to the one that waits for it.
  for (const bool start : {true, false}) {
    Line line(out, start ? 's' : 'f', rank_.rank, kCompute);
    line.time("ts", time(start ? record.started : exchange.wait_began));
    line.number("id", identity);
    line.text("name", "exchange");
    line.text("cat", "exchange");
    if (!start) line.text("bp", "e");
  }
}

void TraceText::append(const TraceStage& stage, std::string& out) const {
  const bool moment = stage.begin == stage.end;
  Line line(out, moment ? 'i' : 'X', rank_.rank, kCheckpoint);
  line.time("ts", time(stage.begin));
  if (moment) {
    line.text("s", "t");
  } else {
    line.time("dur", stage.end - stage.begin);
  }
  line.text("name", stage.name);
  line.text("cat", "checkpoint");
  if (stage.times == 1) return;
  line.arguments();
  line.number("times", stage.times);
}

void TraceText::append(const Timeline::Events& events, const std::vector<TraceStage>& stages,
                       std::string& out) {
  append_names(out);
  for (const TraceSpan& span : events.spans) append(span, out);
  for (const TraceExchange& exchange : events.exchanges) append(exchange, out);
  for (const TraceStage& stage : stages) append(stage, out);
}

void TraceText::append_end(int64_t dropped, std::string& out) const {
  {
    Line line(out, 'M', rank_.rank, 0);
    line.text("name", "process_labels");
    line.arguments();
    line.text("labels",
              dropped == 0 ? "all events" : std::to_string(dropped) + " events are missing");
  }
  out.erase(out.size() - 2, 1);
}

}  // namespace tessera
