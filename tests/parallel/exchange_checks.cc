#include "tests/parallel/exchange_checks.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "parallel/row_exchange.h"
#include "parallel/sequence_layout.h"
#include "parallel/token_runs.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace tessera {

namespace {

using support::Tensor;

/// Quick to make; the scale grows from rank to rank, so that sums depend on their order.
Tensor brought(DType dtype, Shape shape, int rank, uint32_t seed = 1) {
  Tensor tensor(dtype, shape);
  uint32_t word = static_cast<uint32_t>(rank) * 77 + seed;
  const auto next = [&] {
    word = word * 1664525 + 1013904223;
    return std::ldexp(static_cast<float>(word >> 8) - 8e6f, rank % 5 - 20);
  };
  if (dtype == DType::kBF16) {
    for (BF16& x : tensor.as<BF16>()) x = from_float<BF16>(next());
  } else {
    for (float& x : tensor.as<float>()) x = next();
  }
  return tensor;
}

std::vector<int> even_and_odd(int ranks) {
  std::vector<int> colors;
  for (int r = 0; r < ranks; ++r) colors.push_back(r % 2);
  return colors;
}

/// Rank `from` sends rank `to` two ranges of rows: these many, and one.
int64_t rows_between(int from, int to, int64_t many) {
  return (from * 3 + to * 5) % 3 * many;
}

struct Transfers {
  std::vector<RowTransfer> sends;
  std::vector<RowTransfer> receives;
  int64_t rows = 0;  // that are received, packed
};

// All ranks have 3 * many + 1 rows. What is sent overlaps; what is received is packed by rank, with
// a row that nobody writes in between.
Transfers transfers_of(int rank, int ranks, int64_t many) {
  Transfers all;
  for (int r = 0; r < ranks; ++r) {
    all.sends.push_back({r, many / 2, rows_between(rank, r, many)});
    all.sends.push_back({r, 3 * many - r % 2, 1});
    const int64_t rows = rows_between(r, rank, many);
    all.receives.push_back({r, all.rows, rows});
    all.receives.push_back({r, all.rows + rows + 1, 1});
    all.rows += rows + 2;
  }
  return all;
}

}  // namespace

void check_in_place(Communicator& world) {
  Stream stream{support::device()};
  for (const int64_t rows : {int64_t{0}, int64_t{3}, int64_t{9001}}) {
    SCOPED_TRACE(rows);
    const Shape shape{rows * world.size(), 5};
    const int64_t first = world.rank() * rows;
    for (const bool start : {false, true}) {
      const Tensor whole = brought(DType::kF32, shape, world.rank());
      const Tensor part(DType::kF32, {rows, 5});
      world.reduce_scatter(stream, whole.view(), part);
      world.synchronize(stream);
      const Tensor before = support::copy_of(whole.view());
      const TensorView place = whole.view().rows(first, rows);
      if (start) {
        world.start_reduce_scatter(stream, whole.view(), place).wait();
      } else {
        world.reduce_scatter(stream, whole.view(), place);
      }
      world.synchronize(stream);
      support::expect_same_bits(place, part.view(), "own rows of the sum");
      support::expect_same_bits(whole.view().rows(0, first), before.view().rows(0, first),
                                "rows before the own ones");
      const Tensor gathered(DType::kF32, shape);
      world.all_gather(stream, part.view(), gathered);
      world.synchronize(stream);
      if (start) {
        world.start_all_gather(stream, place, whole).wait();
      } else {
        world.all_gather(stream, place, whole);
      }
      world.synchronize(stream);
      support::expect_same_bits(whole.view(), gathered.view(), "whole");
    }
  }
}

void check_exchange_rows(Communicator& world) {
  Stream stream{support::device()};
  for (const int64_t many : {int64_t{1}, int64_t{2}, int64_t{3000}}) {
    SCOPED_TRACE(many);
    const Transfers own = transfers_of(world.rank(), world.size(), many);
    const Shape shape{3 * many + 1, 7};
    const Tensor from = brought(DType::kBF16, shape, world.rank());
    const Tensor to = support::filled(DType::kBF16, {own.rows, 7}, -7);
    world.exchange_rows(stream, from.view(), own.sends, to, own.receives);
    world.synchronize(stream);
    for (int r = 0; r < world.size(); ++r) {
      const size_t i = 2 * static_cast<size_t>(r);
      const Tensor theirs = brought(DType::kBF16, shape, r);
      const RowTransfer& block = own.receives[i];
      support::expect_same_bits(to.view().rows(block.first, block.rows),
                                theirs.view().rows(many / 2, block.rows),
                                concat("rows of rank ", r));
      support::expect_same_bits(to.view().rows(own.receives[i + 1].first, 1),
                                theirs.view().rows(3 * many - world.rank() % 2, 1),
                                concat("last row of rank ", r));
      EXPECT_EQ(support::to_doubles(to.view().rows(block.first + block.rows, 1)),
                std::vector<double>(7, -7))
          << "a row that nobody sent was written";
    }
  }
  const Tensor rows = brought(DType::kF32, {4, 2}, 0);
  world.exchange_rows(stream, rows.view(), {}, Tensor(DType::kF32, {1, 2}), {});
  world.synchronize(stream);
}

// All forms are under way at once, on the world and on a part of it, twice each, and blocking ones
// in between. They are waited for in another order.
void check_pending(Communicator& world) {
  Stream stream{support::device()};
  const int rank = world.rank();
  const int ranks = world.size();
  const std::unique_ptr<Communicator> half = world.split(even_and_odd(ranks), "half");
  for (const int64_t n : {int64_t{5}, int64_t{20011}}) {
    SCOPED_TRACE(n);
    for (int round = 0; round < 2; ++round) {
      const Tensor sum_a = brought(DType::kF32, {n}, rank, 1);
      const Tensor sum_b = brought(DType::kBF16, {n, 3}, rank, 2);
      const Tensor largest = brought(DType::kF32, {n}, rank, 3);
      const Tensor whole = brought(DType::kF32, {n * ranks, 2}, rank, 4);
      const Tensor part(DType::kF32, {n, 2});
      const Tensor gathered(DType::kBF16, {n * ranks, 3});
      const Tensor gather_part = brought(DType::kBF16, {n, 3}, rank, 5);
      const Transfers rows = transfers_of(rank, ranks, n);
      const Tensor from = brought(DType::kF32, {3 * n + 1, 2}, rank, 6);
      const Tensor to(DType::kF32, {rows.rows, 2});
      std::vector<int64_t> counts(static_cast<size_t>(ranks), n);
      const Tensor received(DType::kF32, {n * ranks, 2});
      const Tensor tenth = support::filled(DType::kF32, {3}, 0.1);

      const Tensor sum_a_now = support::copy_of(sum_a.view());
      const Tensor sum_b_now = support::copy_of(sum_b.view());
      const Tensor largest_now = support::copy_of(largest.view());
      const Tensor part_now(DType::kF32, {n, 2});
      const Tensor gathered_now(DType::kBF16, {n * ranks, 3});
      const Tensor to_now(DType::kF32, {rows.rows, 2});
      const Tensor received_now(DType::kF32, {n * ranks, 2});

      std::vector<Pending> world_waits;
      std::vector<Pending> half_waits;
      world_waits.push_back(world.start_all_reduce(stream, sum_a, Reduction::kSum));
      half_waits.push_back(half->start_all_reduce(stream, sum_b, Reduction::kSum));
      world_waits.push_back(world.start_all_reduce(stream, largest, Reduction::kMax));
      world_waits.push_back(world.start_reduce_scatter(stream, whole.view(), part));
      world.all_reduce(stream, sum_a_now, Reduction::kSum);
      world.synchronize(stream);
      world_waits.push_back(world.start_all_gather(stream, gather_part.view(), gathered));
      world_waits.push_back(
          world.start_exchange_rows(stream, from.view(), rows.sends, to, rows.receives));
      world_waits.push_back(world.start_all_to_all(stream, whole.view(), counts, received, counts));
      half_waits.push_back(half->start_all_reduce(stream, tenth, Reduction::kSum));
      world.barrier();
      world_waits[3].wait();
      half->all_reduce(stream, sum_b_now, Reduction::kSum);
      world.synchronize(stream);
      half_waits.clear();
      for (const size_t i : {size_t{5}, size_t{1}, size_t{4}, size_t{0}, size_t{2}}) {
        world_waits[i].wait();
        EXPECT_FALSE(world_waits[i].active());
        world_waits[i].wait();
      }
      world.all_reduce(stream, largest_now, Reduction::kMax);
      world.reduce_scatter(stream, whole.view(), part_now);
      world.all_gather(stream, gather_part.view(), gathered_now);
      world.exchange_rows(stream, from.view(), rows.sends, to_now, rows.receives);
      world.all_to_all(stream, whole.view(), counts, received_now, counts);
      world.synchronize(stream);
      support::expect_same_bits(sum_a.view(), sum_a_now.view(), "sum");
      support::expect_same_bits(sum_b.view(), sum_b_now.view(), "sum of the half");
      support::expect_same_bits(largest.view(), largest_now.view(), "maximum");
      support::expect_same_bits(part.view(), part_now.view(), "part");
      support::expect_same_bits(gathered.view(), gathered_now.view(), "gathered");
      support::expect_same_bits(to.view(), to_now.view(), "rows");
      support::expect_same_bits(received.view(), received_now.view(), "received");
      EXPECT_FLOAT_EQ(tenth.as<float>()[2], 0.1f * static_cast<float>(half->size()));
    }
  }
}

void check_pending_in_chunks(Communicator& world) {
  Stream stream{support::device()};
  const int64_t part_rows = 4300001 / world.size() + 1;
  const Tensor whole = brought(DType::kF32, {part_rows * world.size()}, world.rank());
  const Tensor sum = support::copy_of(whole.view());
  const Tensor sum_now = support::copy_of(whole.view());
  const Tensor part(DType::kF32, {part_rows});
  Pending first = world.start_all_reduce(stream, sum, Reduction::kSum);
  Pending second = world.start_reduce_scatter(stream, whole.view(), part);
  world.all_reduce(stream, sum_now, Reduction::kSum);
  world.synchronize(stream);
  // The move waits for the first one.
  first = std::move(second);
  world.synchronize(stream);
  support::expect_same_bits(sum.view(), sum_now.view(), "sum");
  first.wait();
  world.synchronize(stream);
  support::expect_same_bits(part.view(), sum.view().rows(world.rank() * part_rows, part_rows),
                            "part");
}

namespace {

/// Element `column` of the row of a token, where it is owned.
float value_of(int64_t token, int64_t column) {
  return static_cast<float>(token * 3 + column);
}

// bf16 has 8 bits: values of this size, added in bf16, would be rounded at every sum.
float gradient_of(int64_t token, int64_t column, int rank) {
  const auto mixed = static_cast<uint32_t>(token * 5 + column * 11 + rank * 7);
  return std::ldexp(static_cast<float>(mixed * 2654435761u >> 24), rank % 3 * 4 - 8);
}

template <class F>
Tensor rows_with(DType dtype, const TokenRanges& tokens, int64_t rows, F value) {
  std::vector<double> values(static_cast<size_t>(rows * 3), -1);
  size_t i = 0;
  for (const TokenRange& range : tokens) {
    for (int64_t token = range.begin; token < range.end; ++token) {
      for (int64_t column = 0; column < 3; ++column) values[i++] = value(token, column);
    }
  }
  return support::from_doubles(dtype, {rows, 3}, values);
}

bool contains(const TokenRanges& ranges, int64_t token) {
  for (const TokenRange& range : ranges) {
    if (range.begin <= token && token < range.end) return true;
  }
  return false;
}

void check_fetch_and_give_back(Communicator& world, DType dtype,
                               const std::vector<TokenRanges>& owned,
                               const std::vector<TokenRanges>& needed) {
  Stream stream{support::device()};
  const size_t rank = static_cast<size_t>(world.rank());
  RowExchange exchange;
  exchange.plan(world.rank(), owned, needed);
  EXPECT_EQ(exchange.rows_owned(), rows_of(owned[rank]));
  EXPECT_EQ(exchange.rows_needed(), rows_of(needed[rank]));
  int64_t returned = 0;
  for (size_t r = 0; r < needed.size(); ++r) {
    for (const TokenRange& range : owned[rank]) {
      for (int64_t t = range.begin; t < range.end; ++t)
        returned += r != rank && contains(needed[r], t);
    }
  }
  EXPECT_EQ(exchange.rows_returned(), returned);

  const Tensor own = rows_with(dtype, owned[rank], exchange.rows_owned(), value_of);
  const int64_t capacity = exchange.rows_needed() + 2;
  const Tensor found = support::filled(dtype, {capacity, 3}, -1);
  exchange.fetch(world, stream, own.view(), found);
  world.synchronize(stream);
  support::expect_same_bits(found.view(), rows_with(dtype, needed[rank], capacity, value_of).view(),
                            "fetched rows");

  const Tensor dneeded = rows_with(dtype, needed[rank], capacity, [&](int64_t token, int64_t c) {
    return gradient_of(token, c, world.rank());
  });
  const Tensor down = support::filled(dtype, own.shape(), 99);
  Arena arena(support::device(), 1 << 20);
  exchange.give_back(world, stream, arena, dneeded.view(), down);
  world.synchronize(stream);
  EXPECT_EQ(arena.mark(), 0);
  const Tensor expected =
      rows_with(dtype, owned[rank], exchange.rows_owned(), [&](int64_t token, int64_t c) {
        float sum = 0;
        for (size_t r = 0; r < needed.size(); ++r) {
          if (!contains(needed[r], token)) continue;
          const Tensor one = support::from_doubles(
              dtype, {1}, std::vector<double>{gradient_of(token, c, static_cast<int>(r))});
          sum += static_cast<float>(support::to_doubles(one.view())[0]);
        }
        return sum;
      });
  support::expect_same_bits(down.view(), expected.view(), "returned rows");
}

}  // namespace

// Windows that reach over three ranks, sinks, documents that begin anywhere, and whole segments.
void check_row_exchange(Communicator& world) {
  const int ranks = world.size();
  const int64_t length = 8 * ranks;
  const std::vector<int32_t> starts{0, 5, static_cast<int32_t>(length),
                                    static_cast<int32_t>(length), static_cast<int32_t>(2 * length)};
  for (const SequenceOrder order : {SequenceOrder::kContiguous, SequenceOrder::kZigzag}) {
    for (const int tensor_ranks : {1, 2}) {
      if (ranks % tensor_ranks != 0) continue;
      const SequenceLayout layout(order, 2, length, ranks / tensor_ranks, tensor_ranks);
      for (const int64_t window : {int64_t{1}, int64_t{4}, int64_t{23}, int64_t{1000}}) {
        std::vector<TokenRanges> owned;
        std::vector<TokenRanges> needed;
        for (int r = 0; r < ranks; ++r) {
          owned.push_back(layout.context_tokens(r / tensor_ranks, r % tensor_ranks));
          std::vector<TokenRun> pieces;
          NeededKeys keys;
          query_pieces(starts, owned.back(), pieces);
          window_keys(starts, pieces, window, 2, keys);
          needed.push_back(keys.tokens);
        }
        SCOPED_TRACE(concat(order == SequenceOrder::kZigzag ? "zigzag" : "contiguous", ", window ",
                            window, ", tensor ranks ", tensor_ranks));
        check_fetch_and_give_back(world, DType::kF32, owned, needed);
        check_fetch_and_give_back(world, DType::kBF16, owned, needed);
      }
    }
  }
}

void check_traffic(Communicator& world) {
  Stream stream{support::device()};
  const int64_t others = world.size() - 1;
  const std::unique_ptr<Communicator> group =
      world.split(std::vector<int>(static_cast<size_t>(world.size()), 0), "traffic");
  CollectiveLog& log = world.log();
  EXPECT_EQ(&group->log(), &log);
  EXPECT_EQ(group->name(), "traffic");
  log.set_place(17, 3);
  const Tensor whole(DType::kF32, {4 * world.size(), 2});
  const Tensor part(DType::kF32, {4, 2});
  group->all_gather(stream, part.view(), whole);
  world.synchronize(stream);
  group->start_all_gather(stream, part.view(), whole).wait();
  EXPECT_EQ(log.traffic("traffic", Collective::kAllGather),
            (Traffic{2, 2 * 32 * others, 2 * 32 * others}));
  group->reduce_scatter(stream, whole.view(), part);
  world.synchronize(stream);
  EXPECT_EQ(log.traffic("traffic", Collective::kReduceScatter),
            (Traffic{1, 32 * others, 32 * others}));
  const Transfers rows = transfers_of(world.rank(), world.size(), 2);
  const Tensor to(DType::kF32, {rows.rows, 2});
  int64_t sent = 0;
  for (const RowTransfer& send : rows.sends) sent += send.peer == world.rank() ? 0 : send.rows * 8;
  {
    const Tensor from(DType::kF32, {7, 2});
    const Pending pending =
        group->start_exchange_rows(stream, from.view(), rows.sends, to, rows.receives);
    const CollectiveRecord record = log.record(log.size() - 1);
    EXPECT_EQ(log.name_of_group(record), "traffic");
    EXPECT_EQ(record.elements, 2);
    EXPECT_STREQ(record.file.data(), "parallel/exchange_checks.cc");
    EXPECT_EQ(record.operation, Collective::kExchangeRows);
    EXPECT_EQ(record.dtype, DType::kF32);
    EXPECT_EQ(record.number, 3);
    EXPECT_EQ(record.step, 17);
    EXPECT_EQ(record.layer, 3);
    EXPECT_EQ(record.sent, sent);
    if (!pending.active()) world.synchronize(stream);
    EXPECT_EQ(log.record(record.index).completed > 0, !pending.active());
  }
  world.synchronize(stream);
  EXPECT_GT(log.record(log.size() - 1).completed, 0);
  const Tensor long_sum(DType::kF32, {20011});
  group->all_reduce(stream, long_sum, Reduction::kSum);
  group->broadcast(stream, part, world.size() - 1);
  world.synchronize(stream);
  std::vector<double> totals;
  for (int operation = 0; operation < kCollectives; ++operation) {
    const Traffic traffic = log.traffic("traffic", static_cast<Collective>(operation));
    totals.push_back(static_cast<double>(traffic.sent));
    totals.push_back(static_cast<double>(traffic.received));
  }
  EXPECT_EQ(log.traffic("traffic").sent, std::accumulate(totals.begin(), totals.end(), 0.0) -
                                             static_cast<double>(log.traffic("traffic").received));
  world.all_reduce_values(totals);
  for (size_t i = 0; i < totals.size(); i += 2) EXPECT_EQ(totals[i], totals[i + 1]) << i / 2;
  const size_t sums = 2 * static_cast<size_t>(Collective::kAllReduce);
  EXPECT_EQ(totals[sums], 2.0 * 20011 * 4 * static_cast<double>(others));
  log.set_place(-1, -1);
}

}  // namespace tessera
