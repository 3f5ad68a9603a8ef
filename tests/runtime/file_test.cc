#include "runtime/data/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

TEST(InputFile, ReadsAtAnyOffset) {
  const TemporaryDirectory directory;
  const InputFile file(directory.write("a", "0123456789"), ExitCode::kUsage);
  EXPECT_EQ(file.size(), 10);
  std::string out(4, ' ');
  file.read(3, std::as_writable_bytes(std::span(out)));
  EXPECT_EQ(out, "3456");
  EXPECT_EQ(file.read_some(8, std::as_writable_bytes(std::span(out))), 2);
  EXPECT_EQ(out, "8956");
  EXPECT_EQ(file.read_some(10, std::as_writable_bytes(std::span(out))), 0);
}

TEST(InputFile, CutShortAfterOpeningIsAnErrorThatNamesTheByte) {
  const TemporaryDirectory directory;
  const fs::path path = directory.write("a", std::string(100'000, 'x'));
  const InputFile file(path, ExitCode::kUsage);
  fs::resize_file(path, 50'000);
  std::string out(100, ' ');
  EXPECT_EQ(thrown_by([&] { file.read(49'950, std::as_writable_bytes(std::span(out))); }),
            "65: " + path.string() + ": ends at byte 50000, expected at least 50050 bytes");
}

TEST(InputFile, RefusesWhatIsNoFileAndNeverWaits) {
  const TemporaryDirectory directory;
  const auto open = [](const fs::path& path) {
    return thrown_by([&] { InputFile(path, ExitCode::kUsage); });
  };
  EXPECT_EQ(open(directory / "none"),
            "2: " + (directory / "none").string() + ": cannot open: No such file or directory");
  EXPECT_EQ(open(directory.path()), "2: " + directory.path().string() + " is not a regular file");
  const fs::path pipe = directory / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(open(pipe), "2: " + pipe.string() + " is not a regular file");
}

TEST(AtomicFile, AppearsOnlyWhenPublished) {
  const TemporaryDirectory directory;
  const fs::path path = directory.write("a", "old");
  const std::string text(3'000'000, 'n');
  {
    AtomicFile file(path);
    file.append("new ");
    file.append(text);
    file.seal();
    EXPECT_EQ(file_content(path), "old");
    file.publish();
  }
  EXPECT_EQ(file_content(path), "new " + text);
  EXPECT_FALSE(fs::exists(directory / "a.unfinished"));
}

TEST(AtomicFile, LeavesNothingBehindWhenGivenUp) {
  const TemporaryDirectory directory;
  const fs::path path = directory.write("a", "old");
  {
    AtomicFile file(path);
    file.append("new");
  }
  EXPECT_EQ(file_content(path), "old");
  EXPECT_FALSE(fs::exists(directory / "a.unfinished"));
}

TEST(AtomicFile, SaysWhyItCannotWrite) {
  const TemporaryDirectory directory;
  const fs::path path = directory / "none/a";
  EXPECT_EQ(thrown_by([&] { AtomicFile file(path); }),
            "2: " + path.string() + ".unfinished: cannot create: No such file or directory");
  // A device that is always full stands for a full disk.
  fs::create_symlink("/dev/full", directory / "b.unfinished");
  AtomicFile file(directory / "b");
  file.append("x");
  EXPECT_EQ(thrown_by([&] { file.seal(); }), "75: " + (directory / "b.unfinished").string() +
                                                 ": cannot write: No space left on device");
}

TEST(AtomicFile, MustBeUsedInOrder) {
  const TemporaryDirectory directory;
  AtomicFile file(directory / "a");
  EXPECT_THROW(file.publish(), Error);
  file.seal();
  EXPECT_THROW(file.append("late"), Error);
}

TEST(File, WriteReadRemove) {
  const TemporaryDirectory directory;
  const fs::path path = directory / "a";
  write_file(path, std::string_view("with\0zero", 9));
  EXPECT_EQ(read_file(path, ExitCode::kBadData), std::string("with\0zero", 9));
  remove_file(path);
  remove_file(path);
  EXPECT_FALSE(fs::exists(path));
}

}  // namespace
}  // namespace tessera
