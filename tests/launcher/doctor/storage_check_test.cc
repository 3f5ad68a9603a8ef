#include "launcher/doctor/storage_check.h"

#include <gtest/gtest.h>

#include <fstream>

#include "launcher/doctor/storage_probe.h"
#include "tests/checkpoint/sample_run.h"
#include "tests/launcher/doctor/text_machine.h"

namespace tessera {
namespace {

using support::about;
using support::TextMachine;

constexpr const char* kGood =
    "storage: path /data/runs\n"
    "storage: space 1000000000000 500000000000 1000000 900000\n"
    "storage: syncs 812.4\n"
    "storage: rate 1.2e+09\n"
    "storage: done 1\n";

Findings judged(const std::string& mount, const std::string& told = kGood) {
  TextMachine machine;
  machine.files["/proc/self/mounts"] =
      "/dev/sda1 / ext4 rw,relatime 0 0\n" + mount + "\nproc /proc proc rw 0 0\n";
  return check_storage(machine, "/data/runs", {.output = told, .errors = "", .trouble = ""});
}

TEST(StorageCheck, Good) {
  const Findings findings = judged("server:/data /data nfs4 rw,relatime,vers=4.2,hard 0 0");
  EXPECT_EQ(about(findings, "storage"), "ok /data/runs is on nfs4 (server:/data at /data)");
  EXPECT_EQ(about(findings, "space"), "ok 500 GB of 1000 GB are free");
  EXPECT_EQ(about(findings, "fsync"),
            "ok 812 syncs a second, 1.2 GB/s written and synced by one process");
  EXPECT_EQ(about(judged(""), "storage"), "ok /data/runs is on ext4 (/dev/sda1 at /)");
}

TEST(StorageCheck, FileSystemsThatDoNotKeepPromises) {
  const auto type = [](const std::string& mount) { return about(judged(mount), "storage"); };
  EXPECT_NE(type("s:/d /data nfs rw,soft 0 0").find("warn"), std::string::npos);
  EXPECT_NE(type("s:/d /data nfs rw,hard,async 0 0").find("mounted async"), std::string::npos);
  EXPECT_NE(type("x /data tmpfs rw 0 0").find("in memory"), std::string::npos);
  EXPECT_NE(type("x /data overlay rw 0 0").find("container"), std::string::npos);
  EXPECT_NE(type("x /data fuse.sshfs rw 0 0").find("promises"), std::string::npos);
  EXPECT_NE(type("x /data lustre rw 0 0").find("lfs setstripe"), std::string::npos);
  EXPECT_TRUE(type("x /data ext4 ro,relatime 0 0").starts_with("fail"));
  EXPECT_TRUE(type("x /data/other ext4 ro 0 0").starts_with("ok")) << "another mount";
  EXPECT_TRUE(type("x /dat ext4 ro 0 0").starts_with("ok")) << "a shorter name";
}

TEST(StorageCheck, MountsAreFoundByTheLongestAndLast) {
  const std::string mounts =
      "a / ext4 rw 0 0\nb /data xfs rw 0 0\nc /my\\040disk/x nfs rw 0 0\nd /data nfs4 rw 0 "
      "0\nbad\n";
  EXPECT_EQ(mount_of(mounts, "/data/runs").type, "nfs4");
  EXPECT_EQ(mount_of(mounts, "/my disk/x").source, "c");
  EXPECT_EQ(mount_of(mounts, "/my disk").source, "a");
  EXPECT_EQ(mount_of("", "/data").type, "");
}

TEST(StorageCheck, SpaceAndSpeed) {
  const auto told = [](const std::string& space, const std::string& syncs) {
    return judged("", "storage: path /data\nstorage: space " + space + "\nstorage: syncs " + syncs +
                          "\nstorage: done 1\n");
  };
  EXPECT_TRUE(about(told("1000000000000 5000000000 0 0", "100"), "space").starts_with("warn 5 GB"));
  EXPECT_TRUE(about(told("1000000000000 500000 0 0", "100"), "space").starts_with("fail 0 GB"));
  EXPECT_TRUE(about(told("1000000000000 500000000000 1000 3", "100"), "space").starts_with("fail"));
  EXPECT_TRUE(about(told("1 1 1 1", "3"), "fsync").starts_with("warn 3 syncs a second ->"));
  EXPECT_NE(about(told("1 1 1 1", "900000"), "fsync").find("too many to be true"),
            std::string::npos);
}

TEST(StorageCheck, WhatIsNotThereWrongOrSilent) {
  EXPECT_NE(about(judged("", std::string("storage: missing 1\n") + kGood), "storage")
                .find("/data/runs is not there yet"),
            std::string::npos);
  EXPECT_TRUE(about(judged("", std::string("storage: marker 0\n") + kGood), "shared")
                  .starts_with("fail /data/runs is another directory here"));
  EXPECT_EQ(about(judged("", std::string("storage: marker 1\n") + kGood), "shared"), "");
  EXPECT_TRUE(about(judged("", "storage: error cannot create x: Permission denied\n"), "fsync")
                  .starts_with("fail cannot create x: Permission denied -> "));
  const CapturedCommand silent{.exit_code = 143,
                               .timed_out = true,
                               .output = "storage: path /data\n",
                               .errors = "",
                               .trouble = "it did not end within 8 s"};
  EXPECT_TRUE(about(check_storage(TextMachine(), "/data", silent), "fsync")
                  .starts_with("fail /data cannot be tried: it does not answer"));
}

std::string probed(const std::filesystem::path& directory, const std::string& marker = "") {
  std::string text;
  probe_storage(directory, marker, [&](const std::string& line) { text += line + "\n"; });
  return text;
}

TEST(StorageProbe, TriesAndLeavesNothing) {
  const support::TemporaryDirectory place;
  std::ofstream(place.path() / "marker") << "x";
  const std::string text = probed(place.path(), "marker");
  EXPECT_EQ(value_of(text, "storage: path"), std::filesystem::canonical(place.path()).string());
  EXPECT_EQ(value_of(text, "storage: marker"), "1");
  EXPECT_EQ(value_of(text, "storage: done"), "1") << text;
  EXPECT_GT(number_in(value_of(text, "storage: syncs").value_or("")).value_or(0), 0);
  EXPECT_EQ(ThisMachine().names(place.path()), std::vector<std::string>{"marker"});
  EXPECT_EQ(value_of(probed(place.path(), "other"), "storage: marker"), "0");
}

TEST(StorageProbe, GoesUpToWhatIsThere) {
  const support::TemporaryDirectory place;
  const std::string text = probed(place.path() / "a" / "b");
  EXPECT_EQ(value_of(text, "storage: missing"), "1");
  EXPECT_EQ(value_of(text, "storage: path"), std::filesystem::canonical(place.path()).string());
  EXPECT_EQ(ThisMachine().names(place.path()), std::vector<std::string>{});
}

TEST(StorageProbe, AFileIsNoDirectory) {
  const support::TemporaryDirectory place;
  std::ofstream(place.path() / "file") << "x";
  const std::string error = value_of(probed(place.path() / "file"), "storage: error").value_or("");
  EXPECT_TRUE(error.ends_with("file is a file, expected a directory")) << error;
}

}  // namespace
}  // namespace tessera
