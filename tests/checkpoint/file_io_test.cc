#include "checkpoint/file_io.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <fstream>

#include "tests/checkpoint/sample_run.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using support::TemporaryDirectory;

ExitCode code_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code();
  }
  return ExitCode::kFinished;
}

TEST(FileIo, WritesAndReadsAtOffsets) {
  const TemporaryDirectory place;
  const Directory directory(place.path());
  File file = directory.create("x");
  file.write_at(bytes_of("hello"), 3);
  file.sync();
  file.close();
  EXPECT_EQ(directory.read("x", 100), std::string("\0\0\0hello", 8));
  std::array<std::byte, 4> into{};
  EXPECT_EQ(code_of([&] { directory.open("x").read_at(into, 5); }), ExitCode::kBadData);
  EXPECT_EQ(code_of([&] { (void)directory.read("x", 7); }), ExitCode::kBadData);
}

TEST(FileIo, CreatesOnlyWhatIsNew) {
  const TemporaryDirectory place;
  const Directory directory(place.path());
  directory.write_new("x", "old");
  EXPECT_NE(code_of([&] { directory.write_new("x", "new"); }), ExitCode::kFinished);
  EXPECT_EQ(directory.read("x", 100), "old");
  directory.replace("x", "new");
  EXPECT_EQ(directory.read("x", 100), "new");
  EXPECT_EQ(directory.entries(), std::vector<std::string>{"x"});
  directory.write_new("x.tmp", "left by a process that was killed");
  directory.replace("x", "newer");
  EXPECT_EQ(directory.read("x", 100), "newer");
}

TEST(FileIo, DoesNotLeaveTheDirectory) {
  const TemporaryDirectory place;
  fs::create_directories(place.path() / "in/d");
  std::ofstream(place.path() / "secret") << "data";
  std::ofstream(place.path() / "in/d/plain") << "data";
  fs::create_symlink(place.path() / "secret", place.path() / "in/d/link");
  fs::create_directory_symlink(place.path(), place.path() / "in/up");
  ASSERT_EQ(mkfifo((place.path() / "in/pipe").c_str(), 0600), 0);
  const Directory directory(place.path() / "in");
  EXPECT_EQ(directory.read("d/plain", 100), "data");
  for (const char* name : {"../secret", "d/../../secret", "d/link", "up/secret", "", "d/none",
                           "/etc/hostname", "d/plain/x", ".", "d/./plain"}) {
    EXPECT_EQ(code_of([&] { (void)directory.read(name, 100); }), ExitCode::kBadData) << name;
  }
  EXPECT_EQ(code_of([&] { (void)directory.read(std::string("d/plain\0x", 9), 100); }),
            ExitCode::kBadData);
  EXPECT_EQ(code_of([&] { (void)directory.read("pipe", 100); }), ExitCode::kBadData);
  EXPECT_EQ(code_of([&] { (void)directory.read("d", 100); }), ExitCode::kBadData);
}

TEST(FileIo, FollowsTheDirectoryNotItsName) {
  const TemporaryDirectory place;
  fs::create_directory(place.path() / "old");
  const Directory directory(place.path() / "old");
  fs::rename(place.path() / "old", place.path() / "moved");
  fs::create_directory(place.path() / "old");
  directory.write_new("x", "data");
  EXPECT_TRUE(fs::exists(place.path() / "moved/x"));
  EXPECT_FALSE(fs::exists(place.path() / "old/x"));
}

TEST(FileIo, MakesDirectoriesAllTheWay) {
  const TemporaryDirectory place;
  make_directories(place.path() / "a/b/c");
  make_directories(place.path() / "a/b/c");
  EXPECT_TRUE(fs::is_directory(place.path() / "a/b/c"));
  std::ofstream(place.path() / "file") << "data";
  EXPECT_EQ(code_of([&] { make_directories(place.path() / "file/x"); }), ExitCode::kUsage);
}

TEST(FileIo, RemovesOnlyEmptyDirectoriesWhenAskedSo) {
  const TemporaryDirectory place;
  const Directory directory(place.path());
  fs::create_directories(place.path() / "full/x");
  fs::create_directories(place.path() / "empty");
  directory.remove_empty_directory("full");
  directory.remove_empty_directory("empty");
  directory.remove_empty_directory("none");
  EXPECT_EQ(directory.entries(), std::vector<std::string>{"full"});
  directory.remove("full");
  EXPECT_TRUE(directory.entries().empty());
}

TEST(FileIo, SaysWhatItCouldNotDo) {
  try {
    const Directory directory("/nowhere/at/all");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "cannot open directory /nowhere/at/all: No such file or directory");
  }
}

}  // namespace
}  // namespace tessera
