#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

// Runs every row of docs/bad_input.md: the document is the test. Each command runs in a fresh
// directory that has the shipped configurations and `tessera` on its path.

namespace tessera {
namespace {

namespace fs = std::filesystem;

struct Case {
  std::string id;
  std::string command;
  int exit = 0;
  std::string message;
};

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

/// A cell without the spaces and back-quotes around it, with `\|` and <br> as what they stand for.
std::string cell_text(std::string cell) {
  const auto edge = [](char c) { return c == ' ' || c == '`'; };
  cell.erase(cell.begin(), std::find_if_not(cell.begin(), cell.end(), edge));
  cell.erase(std::find_if_not(cell.rbegin(), cell.rend(), edge).base(), cell.end());
  return replaced(replaced(cell, "\\|", "|"), "`<br>`", "\n");
}

std::vector<Case> read_cases() {
  std::vector<Case> cases;
  std::istringstream lines(read_file(SOURCE_ROOT "/docs/bad_input.md"));
  const std::regex row(R"re(\| (\w+) \| (`.*`) \| (\d+) \| (`.*`) \|)re");
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (!std::regex_match(line, match, row)) continue;
    cases.push_back({match[1], cell_text(match[2]), std::stoi(match[3]), cell_text(match[4])});
  }
  return cases;
}

/// What standard error says, without the times of log lines, progress bars and the last newline.
std::string said(const fs::path& file) {
  std::string text = read_file(file);
  text = std::regex_replace(text, std::regex("(^|\n)\\d\\d:\\d\\d:\\d\\d "), "$1");
  text = std::regex_replace(text, std::regex("(^|\n)[a-z]+ \\[[= >]*\\][^\n]*\n"), "$1");
  if (text.ends_with("\n")) text.pop_back();
  return text;
}

/// Whether `text` is `pattern`, in which {any} stands for any text.
bool matches(std::string_view text, std::string_view pattern) {
  constexpr std::string_view kAny = "{any}";
  const size_t wild = pattern.find(kAny);
  if (wild == std::string_view::npos) return text == pattern;
  if (!text.starts_with(pattern.substr(0, wild))) return false;
  const std::string_view rest = pattern.substr(wild + kAny.size());
  for (size_t begin = wild; begin <= text.size(); ++begin) {
    if (matches(text.substr(begin), rest)) return true;
  }
  return false;
}

constexpr const char* kPrelude = R"(
export PATH=%PROGRAM%:$PATH
unset OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK SLURM_STEP_NUM_TASKS SLURM_PROCID SLURM_NTASKS
small_data() {
  seq 3000 > a.txt
  tessera data prepare --input a.txt --output data/tiny
} &> /dev/null
small_run() { small_data; tessera train configs/tiny.textproto; } &> /dev/null
)";

class BadInput : public testing::TestWithParam<Case> {};

TEST_P(BadInput, GetsItsMessage) {
  const Case& one = GetParam();
  const fs::path folder =
      fs::temp_directory_path() / ("tessera_bad_input_" + std::to_string(getpid()) + one.id);
  fs::create_directories(folder / "empty");
  fs::create_directory_symlink(SOURCE_ROOT "/configs", folder / "empty/configs");
  const std::string program = fs::path(TESSERA_PROGRAM).parent_path();
  std::ofstream(folder / "run.sh")
      << "cd " << folder / "empty" << replaced(kPrelude, "%PROGRAM%", program) << one.command
      << "\n";
  // A case that hangs ends with code 124.
  const std::string line = "timeout 60 bash " + (folder / "run.sh").string() + " > " +
                           (folder / "out").string() + " 2> " + (folder / "error").string();
  const int status = std::system(line.c_str());
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), one.exit);
  const std::string text = said(folder / "error");
  EXPECT_TRUE(matches(text, one.message)) << "said:     " << text << "\nexpected: " << one.message;
  fs::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(Table, BadInput, testing::ValuesIn(read_cases()),
                         [](const auto& tested) { return tested.param.id; });

TEST(BadInputTable, IsReadWhole) {
  const std::vector<Case> cases = read_cases();
  EXPECT_GE(cases.size(), 75u);
  // Every line of the table that looks like a case is one.
  std::istringstream lines(read_file(SOURCE_ROOT "/docs/bad_input.md"));
  size_t rows = 0;
  for (std::string line; std::getline(lines, line);) rows += line.starts_with("| ") ? 1 : 0;
  size_t headings = 0;
  std::istringstream again(read_file(SOURCE_ROOT "/docs/bad_input.md"));
  for (std::string line; std::getline(again, line);) headings += line.starts_with("| id |") ? 1 : 0;
  EXPECT_EQ(rows, cases.size() + headings);
}

}  // namespace
}  // namespace tessera
