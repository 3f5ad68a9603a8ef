#include "parallel/host_communicator.h"

#include <algorithm>
#include <numeric>

#include "kernels/core/copy.h"
#include "parallel/message_sizes.h"

namespace tessera {

namespace {

// Tickets of exchanges on the host are even, those of staged ones odd.
constexpr int host_ticket(int ticket) {
  return 2 * ticket;
}
constexpr int staged_ticket(int index) {
  return 2 * index + 1;
}

bool moves_rows(Collective operation) {
  return operation == Collective::kAllToAll || operation == Collective::kExchangeRows;
}

/// A tensor that consists of parts for, or from, each rank: what the ranks have in common is the
/// elements of a part.
int64_t parts_of(const ConstTensorView& tensor, int64_t part_elements) {
  return part_elements == 0 ? 0 : tensor.elements() / part_elements;
}

TensorView flat(const TensorView& tensor) {
  return tensor.reshape({tensor.elements()});
}
ConstTensorView flat(const ConstTensorView& tensor) {
  return tensor.reshape({tensor.elements()});
}

int64_t sum(std::span<const int64_t> rows) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

}  // namespace

HostCommunicator::Staged& HostCommunicator::take_staged(Stream& stream, const Call& call,
                                                        int& index) {
  const auto unused = std::find_if(staged_.begin(), staged_.end(), [](auto& s) { return s->free; });
  index = static_cast<int>(unused - staged_.begin());
  if (unused == staged_.end()) staged_.push_back(std::make_unique<Staged>());
  Staged& staged = *staged_[static_cast<size_t>(index)];
  staged.free = false;
  staged.stream = &stream;
  staged.call = call;
  const auto keep = [](auto& kept, auto& span) {
    kept.assign(span.begin(), span.end());
    span = kept;
  };
  keep(staged.send_rows, staged.call.send_rows);
  keep(staged.receive_rows, staged.call.receive_rows);
  keep(staged.sends, staged.call.sends);
  keep(staged.receives, staged.call.receives);
  staged.begin = 0;
  return staged;
}

TensorView HostCommunicator::take_memory(Staging& staging, const Stream& stream,
                                         const ConstTensorView& like, Shape shape) {
  if (staging.busy != nullptr) staging.busy->wait();
  if (staging.busy == nullptr) staging.busy = std::make_unique<Event>(stream.device());
  const int64_t bytes = shape.elements() * size_of(like.dtype());
  if (staging.buffer.bytes() < bytes) {
    log().add_scratch(bytes - staging.buffer.bytes());
    staging.buffer = Buffer::pinned(stream.device(), bytes);
  }
  return staging.buffer.view(like.dtype(), shape);
}

/// The elements [begin, begin + count) of all parts to the host, and the exchange of them there.
void HostCommunicator::start_chunk(Staged& staged) {
  const Call& call = staged.call;
  const int64_t elements = std::min(call.from.elements(), call.to.elements());  // of a part
  const int64_t width = size_of(call.from.dtype());
  const int64_t most = std::max(parts_of(call.from, elements), parts_of(call.to, elements));
  const int64_t chunk = most == 0 ? 0 : chunk_bytes(size()) / width / most;
  staged.count = std::min(chunk, elements - staged.begin);
  const TensorView from = take_memory(staged.from, *staged.stream, call.from,
                                      {parts_of(call.from, elements) * staged.count});
  for (int64_t part = 0; part < parts_of(call.from, elements); ++part) {
    copy(*staged.stream, flat(call.from).rows(part * elements + staged.begin, staged.count),
         from.rows(part * staged.count, staged.count));
  }
  Call on_host = call;
  on_host.from = on_host.to = from;
  if (call.operation != Collective::kAllReduce) {
    on_host.to = take_memory(staged.to, *staged.stream, call.to,
                             {parts_of(call.to, elements) * staged.count});
  }
  staged.stream->synchronize();
  staged.ticket = host_start(on_host);
}

void HostCommunicator::unload(Staged& staged) {
  const Call& call = staged.call;
  const int64_t elements = std::min(call.from.elements(), call.to.elements());
  Staging& staging = call.operation == Collective::kAllReduce ? staged.from : staged.to;
  const int64_t parts = parts_of(call.to, elements);
  const TensorView to = staging.buffer.view(call.to.dtype(), {parts * staged.count});
  for (int64_t part = 0; part < parts; ++part) {
    copy(*staged.stream, to.rows(part * staged.count, staged.count),
         flat(call.to).rows(part * elements + staged.begin, staged.count));
  }
  staging.busy->record(*staged.stream);
}

/// The same rows in the same places on the host.
void HostCommunicator::start_rows(Staged& staged) {
  const Call& call = staged.call;
  const TensorView from = take_memory(staged.from, *staged.stream, call.from, call.from.shape());
  const auto load = [&](int64_t first, int64_t rows) {
    copy(*staged.stream, call.from.rows(first, rows), from.rows(first, rows));
  };
  if (call.operation == Collective::kAllToAll) load(0, sum(call.send_rows));
  for (const RowTransfer& send : call.sends) load(send.first, send.rows);
  Call on_host = call;
  on_host.from = from;
  on_host.to = take_memory(staged.to, *staged.stream, call.to, call.to.shape());
  staged.stream->synchronize();
  staged.ticket = host_start(on_host);
}

void HostCommunicator::unload_rows(Staged& staged) {
  const Call& call = staged.call;
  const TensorView to = staged.to.buffer.view(call.to.dtype(), call.to.shape());
  const auto store = [&](int64_t first, int64_t rows) {
    copy(*staged.stream, to.rows(first, rows), call.to.rows(first, rows));
  };
  if (call.operation == Collective::kAllToAll) store(0, sum(call.receive_rows));
  for (const RowTransfer& receive : call.receives) store(receive.first, receive.rows);
  staged.to.busy->record(*staged.stream);
}

int HostCommunicator::do_start(Stream& stream, const Call& call) {
  if (!stream.on(DeviceKind::kGpu)) {
    const int ticket = host_start(call);
    return ticket == kDone ? kDone : host_ticket(ticket);
  }
  int index = 0;
  Staged& staged = take_staged(stream, call, index);
  moves_rows(call.operation) ? start_rows(staged) : start_chunk(staged);
  return staged_ticket(index);
}

// After an error the memory stays taken: others may still write into it.
void HostCommunicator::do_finish(int ticket) {
  if (ticket % 2 == 0) return host_finish(ticket / 2);
  Staged& staged = *staged_[static_cast<size_t>(ticket / 2)];
  const auto finish = [&] {
    if (staged.ticket != kDone) host_finish(staged.ticket);
  };
  finish();
  if (moves_rows(staged.call.operation)) {
    unload_rows(staged);
  } else {
    unload(staged);
    const int64_t elements = std::min(staged.call.from.elements(), staged.call.to.elements());
    for (staged.begin += staged.count; staged.begin < elements; staged.begin += staged.count) {
      start_chunk(staged);
      finish();
      unload(staged);
    }
  }
  staged.free = true;
}

void HostCommunicator::do_broadcast(Stream& stream, TensorView data, int root) {
  if (!stream.on(DeviceKind::kGpu)) return host_broadcast(data, root);
  const int64_t chunk = chunk_bytes(size()) / size_of(data.dtype());
  for (int64_t begin = 0; begin < data.elements(); begin += chunk) {
    const TensorView part = flat(data).rows(begin, std::min(chunk, data.elements() - begin));
    const TensorView staged = take_memory(broadcast_, stream, data, part.shape());
    if (rank() == root) copy(stream, part, staged);
    stream.synchronize();
    host_broadcast(staged, root);
    if (rank() != root) copy(stream, staged, part);
    broadcast_.busy->record(stream);
  }
}

}  // namespace tessera
