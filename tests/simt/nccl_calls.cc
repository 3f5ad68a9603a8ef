#include <nccl.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "kernels/core/error.h"
#include "tests/simt/memory_checks.h"

// NCCL among threads of this process. Every call is still in progress when it returns: its work is
// done when ncclCommGetAsyncError has been asked often enough and the other ranks are there, and a
// communicator that is used before is an error. So who does not wait as NCCL demands is found.

namespace tessera::simt {
namespace {

using Message = std::vector<char>;
constexpr int kPolls = 3;

/// What the ranks of a communicator share.
struct Clique {
  std::map<std::pair<int, int>, std::deque<Message>> mail;  // by sender and receiver
  int ranks = 0;
  int joined = 0;
  int finalized = 0;
  bool aborted = false;
  std::map<int, std::map<int, std::pair<int, int>>> splits;      // color and key by split and rank
  std::map<std::pair<int, int>, std::shared_ptr<Clique>> parts;  // by split and color
};

/// Something that a communicator has to do: whether it is done.
using Step = std::function<bool()>;

struct Shared {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Clique>> cliques;  // by unique id
  int ids = 0;
};
Shared& shared() {
  static Shared instance;
  return instance;
}

struct Call {
  ncclComm_t comm;
  Step step;
  bool waits = false;  // for a message
};
struct Group {
  int depth = 0;
  std::vector<Call> calls;
};
Group& group() {
  thread_local Group instance;
  return instance;
}
std::string& last_error() {
  thread_local std::string text;
  return text;
}

ncclResult_t refuse(ncclResult_t result, const std::string& why) {
  last_error() = why;
  return result;
}

}  // namespace
}  // namespace tessera::simt

struct ncclComm {
  std::shared_ptr<tessera::simt::Clique> clique;
  int rank = 0;
  int splits = 0;
  int polls = 0;  // until its steps may be done
  std::deque<tessera::simt::Step> steps;
  ncclResult_t state = ncclSuccess;
};

namespace tessera::simt {
namespace {

ncclResult_t give(ncclComm_t comm, std::vector<Step> steps) {
  if (!comm->steps.empty()) return refuse(ncclInvalidUsage, "the communicator is in progress");
  if (comm->state != ncclSuccess) return refuse(comm->state, "the communicator has failed");
  comm->polls = kPolls;
  for (Step& step : steps) comm->steps.push_back(std::move(step));
  return ncclInProgress;
}

/// As a part of a group, or alone. Sends are given first, so that nobody waits for himself.
ncclResult_t post(ncclComm_t comm, Step step) {
  if (group().depth == 0) return give(comm, {std::move(step)});
  group().calls.push_back({comm, std::move(step)});
  return ncclSuccess;
}

void put(ncclComm_t comm, int peer, const void* from, size_t bytes) {
  const char* const begin = static_cast<const char*>(from);
  comm->clique->mail[{comm->rank, peer}].emplace_back(begin, begin + bytes);
}

/// Takes a message of `peer`, if it is there.
bool take(ncclComm_t comm, int peer, void* to, size_t bytes) {
  std::deque<Message>& mail = comm->clique->mail[{peer, comm->rank}];
  if (mail.empty()) return false;
  if (mail.front().size() != bytes) {
    comm->state = refuse(ncclInvalidUsage, concat("rank ", peer, " sent ", mail.front().size(),
                                                  " bytes, rank ", comm->rank, " expects ", bytes));
    return true;
  }
  if (bytes > 0) std::memcpy(to, mail.front().data(), bytes);
  mail.pop_front();
  return true;
}

bool split_now(ncclComm_t comm, int number, int color, ncclComm_t* part) {
  const auto& entries = comm->clique->splits[number];
  if (static_cast<int>(entries.size()) < comm->clique->ranks) return false;
  if (color == NCCL_SPLIT_NOCOLOR) return true;
  std::vector<std::pair<int, int>> members;  // key and rank
  for (const auto& [rank, entry] : entries) {
    if (entry.first == color) members.emplace_back(entry.second, rank);
  }
  std::sort(members.begin(), members.end());
  auto& clique = comm->clique->parts[{number, color}];
  if (clique == nullptr) clique = std::make_shared<Clique>();
  clique->ranks = static_cast<int>(members.size());
  *part = std::make_unique<ncclComm>().release();
  (*part)->clique = clique;
  for (size_t i = 0; i < members.size(); ++i) {
    if (members[i].second == comm->rank) (*part)->rank = static_cast<int>(i);
  }
  return true;
}

}  // namespace
}  // namespace tessera::simt

using tessera::simt::shared;

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  const std::lock_guard lock(shared().mutex);
  std::snprintf(id->internal, sizeof id->internal, "clique %d", shared().ids++);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) return ncclInvalidUsage;  // not needed so far
  const std::lock_guard lock(shared().mutex);
  auto& clique = shared().cliques[id.internal];
  if (clique == nullptr) clique = std::make_shared<tessera::simt::Clique>();
  clique->ranks = ranks;
  ++clique->joined;
  *comm = std::make_unique<ncclComm>().release();
  (*comm)->clique = clique;
  (*comm)->rank = rank;
  return tessera::simt::give(*comm,
                             {[c = *comm] { return c->clique->joined == c->clique->ranks; }});
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part, ncclConfig_t*) {
  const std::lock_guard lock(shared().mutex);
  const int number = comm->splits++;
  comm->clique->splits[number][comm->rank] = {color, key};
  return tessera::simt::give(comm,
                             {[=] { return tessera::simt::split_now(comm, number, color, part); }});
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  const std::lock_guard lock(shared().mutex);
  ++comm->clique->finalized;
  return tessera::simt::give(comm,
                             {[=] { return comm->clique->finalized == comm->clique->ranks; }});
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  const std::unique_ptr<ncclComm> owner(comm);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  const std::lock_guard lock(shared().mutex);
  comm->clique->aborted = true;
  return ncclCommDestroy(comm);
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) {
  const tessera::simt::DeviceWork work;
  const std::lock_guard lock(shared().mutex);
  if (comm->clique->aborted && comm->state == ncclSuccess) {
    comm->state = tessera::simt::refuse(ncclRemoteError, "another rank has aborted");
  }
  if (comm->polls > 0) --comm->polls;
  while (comm->state == ncclSuccess && comm->polls == 0 && !comm->steps.empty()) {
    if (!comm->steps.front()()) break;
    comm->steps.pop_front();
  }
  const bool busy = comm->state == ncclSuccess && !comm->steps.empty();
  *state = busy ? ncclInProgress : comm->state;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclSuccess        ? "no error"
         : result == ncclRemoteError  ? "remote process exited or there was a network error"
         : result == ncclInvalidUsage ? "invalid usage"
         : result == ncclInProgress   ? "NCCL operation in progress"
                                      : "invalid argument";
}
const char* ncclGetLastError(ncclComm_t) {
  return tessera::simt::last_error().c_str();
}

ncclResult_t ncclGroupStart() {
  ++tessera::simt::group().depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  tessera::simt::Group& group = tessera::simt::group();
  if (group.depth == 0) return ncclInvalidUsage;
  if (--group.depth > 0 || group.calls.empty()) return ncclSuccess;
  std::vector<tessera::simt::Step> steps;
  const ncclComm_t comm = group.calls.front().comm;  // Tessera's groups are of one
  for (tessera::simt::Call& call : group.calls) steps.push_back(std::move(call.step));
  group.calls.clear();
  const std::lock_guard lock(shared().mutex);
  return tessera::simt::give(comm, std::move(steps));
}

ncclResult_t ncclSend(const void* from, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t) {
  if (peer < 0 || peer >= comm->clique->ranks) return ncclInvalidArgument;
  const ncclResult_t result = tessera::simt::post(comm, [=] {
    tessera::simt::put(comm, peer, from, count);
    return true;
  });
  // Sends come before receives.
  auto& calls = tessera::simt::group().calls;
  if (!calls.empty()) {
    const auto first =
        std::find_if(calls.begin(), calls.end(), [](auto& call) { return call.waits; });
    if (first != calls.end()) std::rotate(first, calls.end() - 1, calls.end());
  }
  return result;
}

ncclResult_t ncclRecv(void* to, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t) {
  if (peer < 0 || peer >= comm->clique->ranks) return ncclInvalidArgument;
  const ncclResult_t result =
      tessera::simt::post(comm, [=] { return tessera::simt::take(comm, peer, to, count); });
  if (!tessera::simt::group().calls.empty()) tessera::simt::group().calls.back().waits = true;
  return result;
}

ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t,
                           ncclComm_t comm, cudaStream_t) {
  const int ranks = comm->clique->ranks;
  std::vector<tessera::simt::Step> steps{[=] {
    char* const own = static_cast<char*>(to) + static_cast<size_t>(comm->rank) * count;
    if (own != from) std::memcpy(own, from, count);
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer != comm->rank) tessera::simt::put(comm, peer, own, count);
    }
    return true;
  }};
  for (int peer = 0; peer < ranks; ++peer) {
    if (peer == comm->rank) continue;
    steps.emplace_back([=] {
      return tessera::simt::take(comm, peer,
                                 static_cast<char*>(to) + static_cast<size_t>(peer) * count, count);
    });
  }
  return tessera::simt::give(comm, std::move(steps));
}

ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t, int root,
                           ncclComm_t comm, cudaStream_t) {
  if (comm->rank != root) {
    return tessera::simt::give(comm, {[=] { return tessera::simt::take(comm, root, to, count); }});
  }
  return tessera::simt::give(comm, {[=] {
                               for (int peer = 0; peer < comm->clique->ranks; ++peer) {
                                 if (peer != root) tessera::simt::put(comm, peer, from, count);
                               }
                               return true;
                             }});
}
