#pragma once

#include <filesystem>
#include <string>

namespace tessera::faults {

/// A file system of its own that can lose its power: ext4 or XFS on a loop device, in memory. Its
/// mount lives in a mount namespace of this process, its device clears itself, its image has no
/// name: when this process ends, in whatever way, nothing of it is left.
class LostDisk {
 public:
  /// Why this machine cannot do it, or "": it takes root, loop devices and mkfs.
  static std::string obstacle(const std::string& type);

  /// `type`: "ext4" or "xfs". Makes the file system and mounts it.
  explicit LostDisk(const std::string& type);
  ~LostDisk();
  LostDisk(const LostDisk&) = delete;
  LostDisk& operator=(const LostDisk&) = delete;

  const std::filesystem::path& path() const { return path_; }
  /// As when the power fails: from now on nothing reaches the disk, not even the journal, and every
  /// access fails with EIO. What was not durable is lost.
  void cut_power() const;
  /// The power is back: mounts what the disk has, without anything that the memory had, which
  /// replays the journal. Nobody may have a file open here.
  void restore_power();

 private:
  void mount() const;
  void unmount() const;

  std::string type_;
  std::filesystem::path path_;
  int image_;  ///< what is on the disk
  std::string device_;
  int device_descriptor_ = -1;
};

/// A small file system in memory, to be filled up. In the mount namespace of this process.
class SmallDisk {
 public:
  static std::string obstacle();

  explicit SmallDisk(int64_t bytes);
  ~SmallDisk();
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

  const std::filesystem::path& path() const { return path_; }
  int64_t free_bytes() const;
  /// Takes all space but `left` bytes, in a file of its own; -1 gives it back.
  void fill(int64_t left) const;

 private:
  std::filesystem::path path_;
};

}  // namespace tessera::faults
