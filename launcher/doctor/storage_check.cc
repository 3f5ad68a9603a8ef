#include "launcher/doctor/storage_check.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/error.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

constexpr double kLeastFree = 1e9;    // bytes
constexpr double kLittleFree = 20e9;  // a few checkpoints of a small model
constexpr double kFewSyncs = 20;      // per second
constexpr double kManySyncs = 50000;  // more than any storage that keeps its promise
constexpr double kSlowRate = 50e6;    // bytes per second

// In /proc/self/mounts a blank is \040, and so on.
std::string unescaped(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool octal = text[i] == '\\' && i + 3 < text.size() &&
                       std::all_of(text.begin() + static_cast<std::ptrdiff_t>(i) + 1,
                                   text.begin() + static_cast<std::ptrdiff_t>(i) + 4,
                                   [](char c) { return c >= '0' && c <= '7'; });
    if (octal) {
      plain += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                 (text[i + 3] - '0'));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

bool lies_in(const std::string& path, const std::string& point) {
  if (point == "/") return true;
  return path.starts_with(point) && (path.size() == point.size() || path[point.size()] == '/');
}

bool has_option(const Mount& mount, const std::string& option) {
  const std::vector<std::string> all = words_of(mount.options, ",");
  return std::find(all.begin(), all.end(), option) != all.end();
}

bool begins_with_one(const std::string& text, std::initializer_list<const char*> beginnings) {
  return std::any_of(beginnings.begin(), beginnings.end(),
                     [&](const char* one) { return text.starts_with(one); });
}

Findings judge_type(const Mount& mount, const std::string& path) {
  const std::string found = concat(path, " is on ", mount.type.empty() ? "?" : mount.type, " (",
                                   mount.source, " at ", mount.point, ")");
  const auto warn = [&](const std::string& why, const std::string& advice) {
    return Finding{Verdict::kWarn, "storage", concat(found, ": ", why), advice};
  };
  Findings findings;
  if (mount.type.empty()) {
    return {{Verdict::kOk, "storage", concat("the kernel does not tell what ", path, " is on")}};
  }
  if (has_option(mount, "ro")) {
    return {{Verdict::kFail, "storage", concat(found, ", mounted read-only"),
             "choose another run_dir, or mount it read-write"}};
  }
  if (begins_with_one(mount.type, {"tmpfs", "ramfs"})) {
    return {warn("in memory, gone after a power failure", "set run_dir to a disk")};
  }
  if (begins_with_one(mount.type, {"overlay", "aufs"})) {
    return {warn("the layer of a container, gone with it",
                 "mount a directory of the host there (docker -v, singularity --bind)")};
  }
  if (begins_with_one(mount.type, {"nfs"})) {
    if (has_option(mount, "soft")) {
      findings.push_back(warn("mounted soft: when the server is slow, writes fail",
                              "mount it hard; tessera waits, and never loses a checkpoint"));
    }
    if (has_option(mount, "async")) {
      findings.push_back(
          warn("mounted async: what is synced may still be lost", "mount it without"));
    }
  }
  if (begins_with_one(mount.type, {"fuse.sshfs", "9p", "vboxsf", "drvfs", "fuse.s3fs",
                                   "fuse.gcsfuse", "vfat", "exfat", "fuse.mount-s3"})) {
    findings.push_back(warn("such file systems do not keep the promises of rename and sync",
                            "set run_dir to ext4, XFS, NFS, Lustre, GPFS or BeeGFS"));
  }
  if (!findings.empty()) return findings;
  std::string hint;
  if (mount.type == "lustre") hint = "; stripe it for large files: lfs setstripe -c 4 -S 16M";
  return {{Verdict::kOk, "storage", found + hint}};
}

Finding judge_space(const std::vector<std::string>& words) {
  const auto number = [&](size_t i) {
    return i < words.size() ? number_in(words[i]).value_or(0) : 0.0;
  };
  const double free = number(1);
  // As round as can be: hosts that share it, and write to it, should say the same.
  const auto round = [](double bytes) { return std::round(bytes / 1e9); };
  const std::string found = concat(round(free), " GB of ", round(number(0)), " GB are free");
  if (number(2) > 0 && number(3) < 1000) {
    return {Verdict::kFail, "space", concat(found, ", but only ", number(3), " inodes"),
            "remove files: many small ones have used them up"};
  }
  if (free < kLittleFree) {
    return {free < kLeastFree ? Verdict::kFail : Verdict::kWarn, "space", found,
            "make room: `tessera train --dry-run` tells what a checkpoint takes, and "
            "checkpoint.keep_last of them are kept"};
  }
  return {Verdict::kOk, "space", found};
}

Finding judge_speed(const std::string& told, const Mount& mount) {
  const double syncs = number_in(value_of(told, "storage: syncs").value_or("")).value_or(0);
  const auto rate = number_in(value_of(told, "storage: rate").value_or(""));
  const std::string found =
      concat(digits_text(syncs), " syncs a second",
             rate ? concat(", ", bytes_text(*rate), "/s written and synced by one process") : "");
  if (syncs < kFewSyncs || (rate && *rate < kSlowRate)) {
    return {Verdict::kWarn, "fsync", found,
            "a checkpoint takes long here; training goes on meanwhile, but look for faster storage "
            "or a server that is overloaded"};
  }
  const bool memory = begins_with_one(mount.type, {"tmpfs", "ramfs"});
  if (syncs > kManySyncs && !memory) {
    return {Verdict::kWarn, "fsync", concat(found, ": too many to be true"),
            "syncs seem to do nothing here (eatmydata, a virtual disk with cache=unsafe, "
            "barrier=0): a power failure may cost the checkpoints"};
  }
  return {Verdict::kOk, "fsync", found};
}

}  // namespace

Mount mount_of(const std::string& mounts, const std::string& path) {
  Mount found;
  for (const std::string& line : lines_in(mounts)) {
    const std::vector<std::string> words = words_of(line, " ");
    if (words.size() < 4) continue;
    const std::string point = unescaped(words[1]);
    if (!lies_in(path, point) || point.size() < found.point.size()) continue;
    found = {.point = point, .type = words[2], .options = words[3], .source = unescaped(words[0])};
  }
  return found;
}

Findings check_storage(const Machine& machine, const std::string& directory,
                       const CapturedCommand& said) {
  const std::string& told = said.output;
  const std::string path = value_of(told, "storage: path").value_or(directory);
  const Mount mount = mount_of(machine.file("/proc/self/mounts").value_or(""), path);
  Findings findings = judge_type(mount, path);
  if (value_of(told, "storage: missing")) {
    findings.back().found += concat("; ", directory, " is not there yet");
  }
  if (value_of(told, "storage: marker") == "0") {
    findings.push_back({Verdict::kFail, "shared",
                        concat(directory,
                               " is another directory here: what the first host has "
                               "written is not in it"),
                        "set run_dir to a file system that all hosts have mounted at one place"});
  }
  if (const auto space = value_of(told, "storage: space")) {
    findings.push_back(judge_space(words_of(*space)));
  }
  if (const auto error = value_of(told, "storage: error")) {
    findings.push_back({Verdict::kFail, "fsync", *error,
                        "give the user that trains the right to write there, or set run_dir to "
                        "another directory"});
  } else if (!value_of(told, "storage: done")) {
    findings.push_back(
        {Verdict::kFail, "fsync",
         concat(path, " cannot be tried: ", said.timed_out ? "it does not answer" : said.trouble),
         "look at the file server, or at the disk (dmesg)"});
  } else {
    findings.push_back(judge_speed(told, mount));
  }
  return findings;
}

}  // namespace tessera
