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
          .map = head_map(a),
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
  QueryTasks(const SegmentGrid& grid, std::span<const int32_t> of_groups, const HeadMap& of_heads,
             int64_t d)
      : stretches(pieces_of(grid)),
        groups(of_groups),
        map(of_heads),
        heads(run_heads(map.group_heads)),
        length(std::min(kMostRunTokens, run_tokens(heads, d))),
        pieces(part_bound(stretches, length)) {}

  int64_t parts() const { return (map.group_heads + heads - 1) / heads; }
  int64_t count() const { return pieces * static_cast<int64_t>(groups.size()) * parts(); }
  /// A task may have no tokens or no heads.
  QueryTask at(int64_t index) const {
    // The last pieces see most keys and come first, so that the tasks end together.
    const int64_t rest = index % (static_cast<int64_t>(groups.size()) * parts());
    const int64_t number = pieces - 1 - index / (static_cast<int64_t>(groups.size()) * parts());
    const int64_t group = groups[static_cast<size_t>(rest / parts())];
    const int64_t first = rest % parts() * heads;
    return {find_piece(stretches, length, number), group, map.begin_of(group) + first,
            std::min(heads, map.count_of(group) - first)};
  }

  Stretches stretches;
  std::span<const int32_t> groups;
  HeadMap map;
  int64_t heads;
  int64_t length;
  int64_t pieces;
};

/// Calls attend(panel, tokens) for all panels that tokens of the piece see, in ascending order.
template <class T, class Attend>
void for_each_panel(const AttentionOperands<T>& in, const Stretches& runs, const QueryTask& task,
                    Attend&& attend) {
  const Piece& piece = task.piece;
  const int64_t end = piece.first + piece.count;
  const int64_t lowest = piece.first - std::min<int64_t>(in.window - 1, INT32_MAX);
  Attendees tokens;
  for (int64_t run = runs.begin_of(piece.segment); run < runs.begin_of(piece.segment + 1); ++run) {
    const int64_t last = std::min(end, runs.end(run));
    for (int64_t key = runs.first(run); key < last; key += kPanel) {
      // Between the sinks and the window nothing is seen.
      if (key >= in.sinks && key + kPanel <= lowest) key += (lowest - key) / kPanel * kPanel;
      if (key >= last) break;
      const KeyPanel panel{key, std::min(kPanel, runs.end(run) - key), task.group,
                           runs.origin(run) + key};
      tokens.count = 0;
      for (int64_t at = std::max(piece.first, key); at < end; ++at) {
        tokens.add(at, piece.query_origin + at, -1, 0.0f);
      }
      attend(panel, tokens);
    }
  }
}

template <class T>
void forward(ThreadPool& threads, const AttentionForward& a) {
  const AttentionOperands<T> in = operands<T>(a);
  const typename ForwardRun<T>::Output out{
      .o = {a.o.as<T>().data(), in.q.heads, in.q.d},
      .lse = a.lse.as<float>().data(),
      .sink_logits = a.sink_logits.empty() ? nullptr : a.sink_logits.as<float>().data()};
  const QueryTasks tasks(a.grid, a.groups, in.map, in.q.d);
  const Stretches runs = runs_of(a.grid);
  threads.for_each(tasks.count(), [&](int64_t index) {
    const QueryTask task = tasks.at(index);
    if (task.piece.count == 0 || task.heads <= 0) return;
    Scratch scratch;
    ForwardRun<T> run(in, out, task.piece, task.first_head, task.heads, scratch);
    for_each_panel(in, runs, task, [&](const KeyPanel& panel, const Attendees& tokens) {
      run.attend(panel, tokens, true);
    });
    run.finish();
  });
}

template <class T>
void query_gradient(ThreadPool& threads, const AttentionBackward& a, const AttentionOperands<T>& in,
                    const GradientOperands<T>& gradient) {
  const typename QueryGradientRun<T>::Output out{.dq = {a.dq.as<T>().data(), in.q.heads, in.q.d}};
  const QueryTasks tasks(a.grid, a.groups, in.map, in.q.d);
  const Stretches runs = runs_of(a.grid);
  threads.for_each(tasks.count(), [&](int64_t index) {
    const QueryTask task = tasks.at(index);
    if (task.piece.count == 0 || task.heads <= 0) return;
    Scratch scratch;
    QueryGradientRun<T> run(in, gradient, out, task.piece, task.first_head, task.heads, scratch);
    for_each_panel(in, runs, task, [&](const KeyPanel& panel, const Attendees& tokens) {
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
  const Stretches pieces = pieces_of(a.grid);
  const Stretches runs = runs_of(a.grid);
  // Panels count from the beginning of a run, wherever that is.
  const Stretches rows{runs.starts, {}, {}};
  const auto groups = static_cast<int64_t>(a.groups.size());
  threads.for_each(part_bound(rows, kPanel) * groups, [&](int64_t index) {
    const StretchPart keys = find_part(rows, kPanel, index / groups);
    if (keys.count == 0) return;
    Scratch scratch;
    const int64_t first = runs.first(keys.stretch) + keys.first;
    const KeyPanel panel{first, keys.count, a.groups[static_cast<size_t>(index % groups)],
                         rows.row(keys.stretch) + keys.first};
    KeyGradientPanel<T> run(in, gradient, panel, scratch);
    const int64_t behind = first < in.sinks ? INT32_MAX : in.window - 1;
    const int64_t end = first + keys.count + std::min<int64_t>(behind, INT32_MAX);
    const auto attend = [&](const Attendees& some) { run.attend(some); };
    Attendees tokens;
    add_attendees(pieces, runs.segment(keys.stretch), first, end, tokens, attend);
    attend(tokens);
    run.finish(dk, dv);
  });
}

}  // namespace

void attention_forward(ThreadPool& threads, const AttentionForward& a) {
  with_float_type(a.q.dtype(), [&]<class T>() { forward<T>(threads, a); });
}

void attention_backward(ThreadPool& threads, const AttentionBackward& a) {
  attention_delta(threads, {.delta = a.delta,
                            .dsink_logits = a.dsink_logits,
                            .d_o = a.d_o,
                            .o = a.o,
                            .lse = a.lse,
                            .sink_logits = a.sink_logits,
                            .groups = a.groups,
                            .map = head_map(a)});
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
