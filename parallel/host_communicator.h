#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/core/event.h"
#include "parallel/communicator.h"

namespace tessera {

/// A communicator whose implementations reach host memory only. Tensors of a GPU go through pinned
/// memory: reductions, gathers and broadcasts in chunks of chunk_bytes, so that this memory is
/// bounded, exchanges of rows whole. The host waits for the stream at the start of an exchange and
/// does the rest in the wait. So several ranks can share a GPU, which NCCL refuses; the results are
/// those of host tensors, to the bit.
class HostCommunicator : public Communicator {
 protected:
  HostCommunicator(int rank, int size) : Communicator(rank, size) {}
  HostCommunicator(int rank, int size, const Communicator& parent, const std::string& name)
      : Communicator(rank, size, parent, name) {}

  void copy_own_rows(const Call& call) { Communicator::copy_own_rows(host_stream_, call); }

 private:
  // As do_start, do_finish and do_broadcast, with tensors in host memory.
  virtual int host_start(const Call& call) = 0;
  virtual void host_finish(int ticket) = 0;
  virtual void host_broadcast(TensorView data, int root) = 0;

  int do_start(Stream& stream, const Call& call) final;
  void do_finish(int ticket) final;
  void do_broadcast(Stream& stream, TensorView data, int root) final;

  /// Memory of the host that a GPU copies from and to, and whether it still does.
  struct Staging {
    Buffer buffer;
    std::unique_ptr<Event> busy;
  };
  /// An exchange of tensors of a GPU between its start and its end.
  struct Staged {
    bool free = true;
    Stream* stream = nullptr;
    Call call{};  // its spans are of the vectors below
    std::vector<int64_t> send_rows;
    std::vector<int64_t> receive_rows;
    std::vector<RowTransfer> sends;
    std::vector<RowTransfer> receives;
    int64_t begin = 0;  // of the chunk under way: elements of a part
    int64_t count = 0;
    int ticket = kDone;  // of the chunk
    Staging from;
    Staging to;
  };

  Staged& take_staged(Stream& stream, const Call& call, int& index);
  TensorView take_memory(Staging& staging, const Stream& stream, const ConstTensorView& like,
                         Shape shape);
  void start_chunk(Staged& staged);
  void unload(Staged& staged);
  void start_rows(Staged& staged);
  void unload_rows(Staged& staged);

  Stream host_stream_{Device{}};
  std::vector<std::unique_ptr<Staged>> staged_;
  Staging broadcast_;
};

}  // namespace tessera
