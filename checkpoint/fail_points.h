#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>

namespace tessera {

/// The stages of a save, in the order in which rank 0 reaches them; the other ranks reach those of
/// their own part. "tensor written" comes once for every tensor, the last two for every checkpoint
/// that retention lets go.
constexpr std::array<const char*, 19> kSaveStages{
    "snapshot taken",  "directory made",    "shard header written", "tensor written",
    "shard written",   "shard synced",      "part written",         "part synced",
    "before the vote", "after the vote",    "parts merged",         "manifest renamed",
    "parts removed",   "fence checked",     "marker renamed",       "committed",
    "latest renamed",  "before a deletion", "trash renamed"};

/// Faults on demand: at chosen stages of a save, or before an exchange, a rank kills itself, stops,
/// fails or waits. Armed
/// by a text, which the launcher takes from the environment variable TESSERA_FAILPOINT:
///
///   points := point { "," point }          ckpt.shard_synced:kill@rank3#2,ckpt.committed:delay=500
///   point  := stage ":" action [ "@any" | "@rank" R ] [ "#" N [ "+" ] ]
///   stage  := "ckpt." and the name of a stage, "_" in place of every space
///           | "comm.exchange"       before each exchange with other ranks
///   action := "kill"                SIGKILL to this process
///           | "stop"                SIGSTOP to this process
///           | "error"               throws Error(kTryAgain), as trouble of the storage does
///           | "delay=" MILLISECONDS
///           | "exit=" CODE          ends the process at once, without cleaning up
///           | "skip"                of comm.exchange: this rank leaves it out
///
/// A point acts at the N-th time that a rank reaches the stage (the first, when not given), and
/// with "+" at every time after it too. Every rank counts for itself; "@any", which may be left
/// out, is each of them. Points that act at the same moment do so in the order of the text.
///
/// Safe to use from several threads. Copies share their counts. Without points it does nothing.
class FailPoints {
 public:
  FailPoints() = default;
  /// Throws kUsage, naming the word that is wrong and what would be right. "" arms nothing.
  explicit FailPoints(const std::string& text);

  bool armed() const { return points_ != nullptr; }
  /// Says that `rank` has reached `stage`.
  void reach(const char* stage, int rank) const;
  /// Says that `rank` is before an exchange; false: it is to leave it out.
  bool passes_exchange(int rank) const;
  /// reach() for one rank. May outlive this object.
  std::function<void(const char* stage)> observer(int rank) const;

 private:
  bool act_at(const char* stage, int rank) const;

  struct Points;
  std::shared_ptr<Points> points_;
};

}  // namespace tessera
