#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_gradient.h"

namespace tessera::cpu {

namespace {

// Tokens per task of the query-major kernels: every packed panel of keys serves 8 tiles.
constexpr int64_t kMostRunTokens = 128;

template <class T, class A>
AttentionOperands<T> operands(const A& a) {
  const int64_t d = a.q.shape()[2];
  return {.q = {a.q.template as<T>().data(), a.q.shape()[1], d},
          .k = {a.k.template as<T>().data(), a.k.shape()[1], d},
          .v = {a.v.template as<T>().data(), a.v.shape()[1], d},
          .scale = a.scale,
          .window = a.window,
          .sinks = a.sink_tokens,
          .tokens = a.q.shape()[0]};
}

/// One task of a query-major kernel: a piece of a segment and some heads of a group.
struct QueryTask {
  Piece piece;
  int64_t group;
  int64_t first_head;
  int64_t heads;
};

/// How the query-major kernels are cut into tasks.
struct QueryTasks {
  QueryTasks(const SegmentGrid& grid, std::span<const int32_t> of_groups, int64_t in_group,
             int64_t d)
      : starts(grid.starts.as<int32_t>()),
        groups(of_groups),
        group_heads(in_group),
        heads(run_heads(in_group)),
        length(std::min(kMostRunTokens, run_tokens(heads, d))),
        pieces(grid.tokens() / length + grid.segments()) {}

  int64_t parts() const { return (group_heads + heads - 1) / heads; }
  int64_t count() const { return pieces * static_cast<int64_t>(groups.size()) * parts(); }
  QueryTask at(int64_t index) const {
    // The last pieces see most keys and come first, so that the tasks end together.
    const int64_t rest = index % (static_cast<int64_t>(groups.size()) * parts());
    const int64_t number = pieces - 1 - index / (static_cast<int64_t>(groups.size()) * parts());
    const int64_t group = groups[static_cast<size_t>(rest / parts())];
    const int64_t first = rest % parts() * heads;
    return {find_piece(starts, length, number), group, group * group_heads + first,
            std::min(heads, group_heads - first)};
  }

  std::span<const int32_t> starts;
  std::span<const int32_t> groups;
  int64_t group_heads;
  int64_t heads;
  int64_t length;
  int64_t pieces;
};

/// Calls attend(panel, tokens) for all panels that tokens of the piece see, in ascending order.
template <class T, class Attend>
void for_each_panel(const AttentionOperands<T>& in, const QueryTask& task, Attend&& attend) {
  const int64_t end = task.piece.first + task.piece.count;
  Attendees tokens;
  for (int64_t key = 0; key < end; key += kPanel) {
    const KeyPanel panel{key, std::min(kPanel, task.piece.segment_tokens - key), task.group};
    const bool in_window = task.piece.first - (key + kPanel - 1) < in.window;
    if (!in_window && key >= in.sinks) continue;
    tokens.count = 0;
    for (int64_t at = std::max(task.piece.first, key); at < end; ++at) tokens.add(at, -1, 0.0f);
    attend(panel, tokens);
  }
}

template <class T>
void forward(ThreadPool& threads, const AttentionForward& a) {
  const AttentionOperands<T> in = operands<T>(a);
  const typename ForwardRun<T>::Output out{
      .o = {a.o.as<T>().data(), in.q.heads, in.q.d},
      .lse = a.lse.as<float>().data(),
      .sink_logits = a.sink_logits.empty() ? nullptr : a.sink_logits.as<float>().data()};
  const QueryTasks tasks(a.grid, a.groups, in.q.heads / in.k.heads, in.q.d);
  threads.for_each(tasks.count(), [&](int64_t index) {
    const QueryTask task = tasks.at(index);
    if (task.piece.count == 0) return;
    Scratch scratch;
    ForwardRun<T> run(in, out, task.piece, task.first_head, task.heads, scratch);
    for_each_panel(in, task, [&](const KeyPanel& panel, const Attendees& tokens) {
      run.attend(panel, tokens, true);
    });
    run.finish();
  });
}

template <class T>
void query_gradient(ThreadPool& threads, const AttentionBackward& a, const AttentionOperands<T>& in,
                    const GradientOperands<T>& gradient) {
  const typename QueryGradientRun<T>::Output out{.dq = {a.dq.as<T>().data(), in.q.heads, in.q.d}};
  const QueryTasks tasks(a.grid, a.groups, in.q.heads / in.k.heads, in.q.d);
  threads.for_each(tasks.count(), [&](int64_t index) {
    const QueryTask task = tasks.at(index);
    if (task.piece.count == 0) return;
    Scratch scratch;
    QueryGradientRun<T> run(in, gradient, out, task.piece, task.first_head, task.heads, scratch);
    for_each_panel(in, task, [&](const KeyPanel& panel, const Attendees& tokens) {
      run.attend(panel, tokens);
    });
    run.finish();
  });
}

template <class T>
void key_gradient(ThreadPool& threads, const AttentionBackward& a, const AttentionOperands<T>& in,
                  const GradientOperands<T>& gradient) {
  const HeadRows<T> dk{a.dk.as<T>().data(), in.k.heads, in.k.d};
  const HeadRows<T> dv{a.dv.as<T>().data(), in.k.heads, in.k.d};
  const auto starts = a.grid.starts.as<int32_t>();
  const auto groups = static_cast<int64_t>(a.groups.size());
  const int64_t pieces = a.grid.tokens() / kPanel + a.grid.segments();
  threads.for_each(pieces * groups, [&](int64_t index) {
    const Piece keys = find_piece(starts, kPanel, index / groups);
    if (keys.count == 0) return;
    Scratch scratch;
    const KeyPanel panel{keys.first, keys.count, a.groups[static_cast<size_t>(index % groups)]};
    KeyGradientPanel<T> run(in, gradient, keys.origin, panel, scratch);
    const int64_t length = keys.segment_tokens;
    const int64_t end =
        keys.first < in.sinks
            ? length
            : std::min(length - keys.first - keys.count, in.window - 1) + keys.first + keys.count;
    Attendees tokens;
    for (int64_t at = keys.first; at < end; ++at) {
      tokens.add(at, -1, 0.0f);
      if (tokens.count < Attendees::kMost && at + 1 < end) continue;
      run.attend(tokens);
      tokens.count = 0;
    }
    run.finish(dk, dv);
  });
}

}  // namespace

void attention_forward(ThreadPool& threads, const AttentionForward& a) {
  with_float_type(a.q.dtype(), [&]<class T>() { forward<T>(threads, a); });
}

void attention_backward(ThreadPool& threads, const AttentionBackward& a) {
  const int64_t group_heads = a.q.shape()[1] / a.k.shape()[1];
  attention_delta(threads, {.delta = a.delta,
                            .dsink_logits = a.dsink_logits,
                            .d_o = a.d_o,
                            .o = a.o,
                            .lse = a.lse,
                            .sink_logits = a.sink_logits,
                            .groups = a.groups,
                            .group_heads = group_heads});
  with_float_type(a.q.dtype(), [&]<class T>() {
    const AttentionOperands<T> in = operands<T>(a);
    const GradientOperands<T> gradient{.d_o = {a.d_o.as<T>().data(), in.q.heads, in.q.d},
                                       .lse = a.lse.as<float>().data(),
                                       .delta = a.delta.as<float>().data()};
    query_gradient(threads, a, in, gradient);
    key_gradient(threads, a, in, gradient);
  });
}

}  // namespace tessera::cpu
