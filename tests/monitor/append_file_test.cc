#include "runtime/monitor/append_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <functional>
#include <iterator>

#include "tests/runtime/temporary_directory.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;

std::string content(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Does `work` on a file system that lets no file grow beyond `bytes`.
void with_little_space(rlim_t bytes, const std::function<void()>& work) {
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{bytes, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  work();
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
}

TEST(AppendFile, AppendsToWhatIsThere) {
  const TemporaryDirectory directory;
  const fs::path path = directory / "new/folder/file";
  for (const char* record : {"a\n", "b\n"}) {
    AppendFile file(path, AppendFile::Kind::kLines);
    file.append(record);
    file.append("more\n");
  }
  EXPECT_EQ(content(path), "a\nmore\nb\nmore\n");
}

TEST(AppendFile, MakesNothingBeforeTheFirstRecord) {
  const TemporaryDirectory directory;
  const AppendFile file(directory / "file", AppendFile::Kind::kLines);
  EXPECT_FALSE(fs::exists(directory / "file"));
}

TEST(AppendFile, EndsALineThatWasCutOff) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "lines") << "whole\ncut o";
  std::ofstream(directory / "binary") << "abc";
  AppendFile(directory / "lines", AppendFile::Kind::kLines).append("next\n");
  AppendFile(directory / "binary", AppendFile::Kind::kBinary).append("def");
  EXPECT_EQ(content(directory / "lines"), "whole\ncut o\nnext\n");
  EXPECT_EQ(content(directory / "binary"), "abcdef");
}

TEST(AppendFile, AFullDiskIsToldOnceAndCutsNoRecord) {
  const TemporaryDirectory directory;
  AppendFile file(directory / "file", AppendFile::Kind::kLines);
  const std::string full(4090, '.');
  file.append(full);
  testing::internal::CaptureStderr();
  with_little_space(4096, [&] {
    file.append("does not fit\n");
    file.append("nor this one\n");
    file.append("ok\n");
  });
  file.append("space again\n");
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(content(directory / "file"), full + "ok\nspace again\n");
  EXPECT_EQ(said.find("warning: cannot write "), said.rfind("warning: ")) << said;
  EXPECT_NE(said.find("is written again; 2 records are missing"), std::string::npos) << said;
}

TEST(AppendFile, OpenThrowsAndAppendDoesNot) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "file") << "not a directory";
  AppendFile file(directory / "file/metrics.jsonl", AppendFile::Kind::kLines);
  try {
    file.open();
    ADD_FAILURE() << "it was opened";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("file/metrics.jsonl for writing: "),
              std::string::npos);
  }
  testing::internal::CaptureStderr();
  file.append("a\n");
  file.append("b\n");
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(said.find("warning: "), said.rfind("warning: ")) << said;
  EXPECT_NE(said.find("training goes on"), std::string::npos) << said;
}

}  // namespace
}  // namespace tessera
