#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/core/dtype.h"

namespace tessera {

/// The exchanges of a Communicator.
enum class Collective : uint8_t {
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kExchangeRows,
  kBroadcast,
  kAllReduceValues,
  kBarrier,
  kSplit,
};
inline constexpr int kCollectives = 9;

/// "all_reduce", "all_gather", ...
const char* name_of(Collective operation);

/// One exchange of this rank. Plain bytes: it can be copied, and written to a file as it is.
struct CollectiveRecord {
  std::array<char, 32> communicator{};  ///< its name, cut to 31 characters, ends with 0
  int64_t number = 0;                   ///< 0, 1, ... on its communicator, the same on every rank
  int64_t sent = 0;                     ///< bytes from this rank to others
  int64_t received = 0;                 ///< bytes from others to this rank
  int64_t step = -1;                    ///< as set_place said
  int32_t layer = -1;
  Collective operation = Collective::kBarrier;
  DType dtype = DType::kU8;  ///< of the tensors; u8 when there are none
  bool completed = false;    ///< false: started only
};
static_assert(std::is_trivially_copyable_v<CollectiveRecord>);

struct Traffic {
  int64_t calls = 0;
  int64_t sent = 0;      ///< bytes from this rank to others
  int64_t received = 0;  ///< bytes from others to this rank

  friend bool operator==(const Traffic&, const Traffic&) = default;
};

/// What one rank has exchanged: the last kCapacity exchanges one by one, and all of them in sums.
/// One log for all communicators that were split from the same world. On kPlan the bytes are those
/// that the exchange would move. Another thread may read while the rank works, or hangs.
class CollectiveLog {
 public:
  static constexpr int64_t kCapacity = 4096;

  CollectiveLog();

  /// Written into all records from now on; -1 for outside of any step or layer.
  void set_place(int64_t step, int layer);
  void set_layer(int layer);

  /// How many exchanges were ever started.
  int64_t size() const;
  /// Exchange `index`, one of the last min(size(), kCapacity); they are in order of their start.
  CollectiveRecord record(int64_t index) const;

  /// The names of all communicators, in order of their making, each once.
  std::vector<std::string> communicators() const;
  /// The sums over all communicators of this name; zeros when there is none.
  Traffic traffic(std::string_view communicator, Collective operation) const;
  /// As above, over all operations.
  Traffic traffic(std::string_view communicator) const;

  /// Bytes of scratch memory that all these communicators have for their exchanges. It grows with
  /// the largest ones, and stays. On a plan: what MPI ranks will have.
  int64_t scratch() const;

  /// For Communicator. `add` returns the place of the sums of a name, `start` the index of the
  /// record, in which it fills in the name and the place in the run.
  int add(const std::string& communicator);
  int64_t start(int communicator, CollectiveRecord record);
  void complete(int64_t index);
  void add_scratch(int64_t bytes);

 private:
  struct Sums {
    std::string communicator;
    std::array<Traffic, kCollectives> of{};
  };

  size_t place(int64_t index) const { return static_cast<size_t>(index % kCapacity); }

  mutable std::mutex mutex_;
  std::vector<CollectiveRecord> ring_;
  std::vector<Sums> sums_;
  int64_t size_ = 0;
  int64_t scratch_ = 0;
  int64_t step_ = -1;
  int32_t layer_ = -1;
};

}  // namespace tessera
