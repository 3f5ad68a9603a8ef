#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

// The house rules that a machine can check. What is not checked here is taste.
// A rule that makes one file worse is broken in the open: in a list below, with the reason.

namespace tessera {
namespace {

namespace fs = std::filesystem;

using Names = std::set<std::string>;

/// Which folders a folder may include, besides itself: only those below it.
const std::map<std::string, Names> kMayInclude{
    {"kernels/core", {}},
    {"kernels", {"kernels/core"}},
    {"parallel", {"kernels/core", "kernels"}},
    {"model", {"kernels/core", "kernels", "parallel"}},
    {"checkpoint", {"kernels/core", "kernels", "parallel"}},
    {"runtime", {"kernels/core", "kernels", "parallel", "model", "checkpoint"}},
    {"launcher", {"kernels/core", "kernels", "parallel", "model", "checkpoint", "runtime"}},
};

struct Door {
  std::string header;  // a regular expression for the name between <> or ""
  std::string files;   // and one for the files that may include it
};

/// Every header that is neither ours nor of the system comes in through one door.
const std::vector<Door> kDoors{
    {"mpi\\.h", "parallel/mpi_communicator\\.cc"},
    {"nvtx3/.*", "parallel/nvtx_ranges\\.cc"},
    {"nccl\\.h", "parallel/nccl_communicator\\.cc"},
    {"(oneapi/)?dnnl.*|omp\\.h", "kernels/block_matmul_cpu\\.cc"},
    {"cublas.*", "kernels/(grouped_)?matmul_gpu\\.cu"},
    {"cudnn.*", "kernels/attention_cudnn\\.cc"},
    {"cuda(_runtime|_bf16|_fp16)?\\.h|cub/.*", ".*\\.(cu|cuh)|kernels/core/cuda_check\\.h"},
    {"boost/context/.*", "tests/simt/.*"},
    {"link\\.h", "tests/simt/.*"},
    {"google/protobuf/.*|.*\\.pb\\.h", "(parallel|model|checkpoint|runtime|launcher)/.*\\.cc"},
    {"xxhash\\.h", "checkpoint/file_hash\\.cc"},
    {"nlohmann/.*", "(checkpoint|runtime|launcher)/.*\\.cc"},
    {"boost/program_options.*|boost/process.*", "launcher/.*"},
    {"boost/(beast|asio).*", "runtime/serve/.*"},
    {"sentencepiece.*", "runtime/data/tokenizer\\.cc"},
    {"png\\.h", "runtime/monitor/.*\\.cc"},
    {"gtest/gtest\\.h|gmock/gmock\\.h", "tests/.*"},
};

/// Headers of the operating system, besides those of the standard library, which have no dot.
const std::regex kSystemHeader{
    "(sys|arpa|net|netinet|linux)/.*"
    "|(dirent|dlfcn|execinfo|fcntl|ifaddrs|immintrin|netdb|nmmintrin|poll|pthread|sched|signal"
    "|spawn|stdlib|termios|unistd)\\.h"};

/// Headers without a test of the same name, and why.
const std::map<std::string, std::string> kNoTestOfItsOwn{
    {"kernels/attention_gradient.h", "attention_test and sparse_attention_test are about it"},
    {"kernels/attention_run.h", "attention_test and sparse_attention_test are about it"},
    {"kernels/core/add_chunks.h", "rms_norm_test and token_smear_test are about it"},
    {"kernels/core/build.h", "one constant"},
    {"kernels/core/cuda_check.h", "fails only with a broken GPU"},
    {"kernels/core/expect_tensor.h", "tested by the contract test of every kernel"},
    {"kernels/core/grain.h", "one constant"},
    {"kernels/core/workspace.h", "tested by every kernel that takes some"},
    {"kernels/gate_score_lanes.h", "gate_score_test is about it"},
    {"kernels/head_map.h", "sharded_attention_test is about it"},
    {"model/batch.h", "a struct"},
    {"model/kv_cache.h", "structs; decode_test is about them"},
    {"model/rank_place.h", "a struct"},
    {"model/single_rank.h", "three members"},
    {"model/sparsity_plan.h", "a struct"},
    {"model/step_context.h", "a struct"},
    {"parallel/flight_map.h", "structs; flight_recorder_test is about them"},
    {"parallel/host_communicator.h", "in builds for a GPU the tests of its implementations are"},
    {"parallel/nvtx_ranges.h", "needs a profiler of NVIDIA's to be seen"},
    // Layers: every gradient, bit and byte in transformer_test, every number in
    // end_to_end/reference_model.py, which is an independent model in float64.
    {"model/attention_layer.h", "transformer_test and score_reference_test are about it"},
    {"model/block.h", "transformer_test and score_reference_test are about it"},
    {"model/embedding.h", "transformer_test and score_reference_test are about it"},
    {"model/expert_exchange.h", "mesh_test is about it"},
    {"model/gate.h", "transformer_test and score_reference_test are about it"},
    {"model/head.h", "transformer_test and score_reference_test are about it"},
    {"model/linear.h", "transformer_test and score_reference_test are about it"},
    {"model/mlp.h", "transformer_test and score_reference_test are about it"},
    {"model/moe.h", "transformer_test and score_reference_test are about it"},
    {"model/norm.h", "transformer_test and score_reference_test are about it"},
    {"model/step_sums.h", "a buffer that transformer_test clears"},
    {"model/token_plan.h", "mesh_test is about it; its parts have tests of their own"},
    {"model/token_region.h", "mesh_test is about it"},
};

struct Source {
  std::string path;    // relative to the root
  std::string folder;  // "kernels/core", "parallel", ..., "tests"
  std::vector<std::string> lines;
  std::vector<std::string> code;  // the same lines; comments and the insides of literals are blank
};

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// `text` with comments and the insides of string and character literals turned into blanks.
std::string code_only(const std::string& text) {
  std::string code = text;
  const auto blank = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < std::min(end, code.size()); ++i) {
      if (code[i] != '\n') code[i] = ' ';
    }
  };
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 1;
    if (text.compare(i, 2, "//") == 0) {
      blank(i, end = std::min(text.find('\n', i), text.size()));
    } else if (text.compare(i, 2, "/*") == 0) {
      blank(i, end = std::min(text.find("*/", i), text.size() - 2) + 2);
    } else if (text.compare(i, 2, "R\"") == 0) {
      std::string close = ")";
      close.append(text, i + 2, text.find('(', i) - i - 2).append("\"");
      end = std::min(text.find(close, i), text.size() - close.size()) + close.size();
      blank(i + 2, end - 1);
    } else if (text[i] == '"' || (text[i] == '\'' && (i == 0 || !std::isalnum(text[i - 1])))) {
      while (end < text.size() && text[end] != text[i]) end += text[end] == '\\' ? 2 : 1;
      blank(i + 1, end);
      ++end;
    }
    i = end;
  }
  return code;
}

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Everything a person wrote: not what was built, prepared or trained.
std::vector<fs::path> files() {
  const fs::path root = SOURCE_ROOT;
  std::vector<fs::path> found;
  for (auto it = fs::recursive_directory_iterator(root); it != fs::end(it); ++it) {
    const fs::path path = fs::relative(it->path(), root);
    const Names skipped{".git", ".cache", "build", "data", "runs", "__pycache__"};
    if (it->is_directory() && skipped.contains(path.string())) it.disable_recursion_pending();
    // In a linked work tree .git is a file.
    if (it->is_regular_file() && path.string() != ".git") found.push_back(path);
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<Source> read_sources() {
  std::vector<Source> found;
  for (const fs::path& path : files()) {
    if (!Names{".h", ".cc", ".cu", ".cuh"}.contains(path.extension())) continue;
    const std::string text = read(fs::path(SOURCE_ROOT) / path);
    const bool core = path.string().starts_with("kernels/core/");
    found.push_back({path, core ? "kernels/core" : path.begin()->string(), split_lines(text),
                     split_lines(code_only(text))});
  }
  return found;
}

const std::vector<Source>& sources() {
  static const std::vector<Source> all = read_sources();
  return all;
}

/// Fails for every line of code that matches `forbidden`, except in files that match `allowed`.
void expect_nowhere(const std::string& forbidden, const std::string& allowed,
                    const std::string& rule) {
  const std::regex pattern(forbidden);
  const std::regex exception(allowed);
  for (const Source& source : sources()) {
    if (std::regex_match(source.path, exception)) continue;
    for (size_t i = 0; i < source.code.size(); ++i) {
      EXPECT_FALSE(std::regex_search(source.code[i], pattern))
          << source.path << ":" << i + 1 << ": " << rule << ": " << source.lines[i];
    }
  }
}

struct Include {
  std::string name;
  bool ours;  // written with quotes
  size_t line;
};

std::vector<Include> includes(const Source& source) {
  const std::regex include(R"re(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)re");
  std::vector<Include> found;
  for (size_t i = 0; i < source.lines.size(); ++i) {
    std::smatch match;
    if (!std::regex_match(source.lines[i], match, include)) continue;
    found.push_back({match[2], match[1] == "\"", i + 1});
  }
  return found;
}

TEST(Tidy, FoldersIncludeOnlyLowerFolders) {
  for (const Source& source : sources()) {
    for (const Include& include : includes(source)) {
      if (!include.ours || !kMayInclude.contains(source.folder)) continue;
      const fs::path name = include.name;
      const bool core = include.name.starts_with("kernels/core/");
      const std::string to = core ? "kernels/core" : name.begin()->string();
      EXPECT_TRUE(to == source.folder || kMayInclude.at(source.folder).contains(to))
          << source.path << ":" << include.line << ": " << source.folder << " may not include "
          << include.name;
    }
  }
}

TEST(Tidy, ThirdPartyHeadersComeThroughTheirDoor) {
  for (const Source& source : sources()) {
    for (const Include& include : includes(source)) {
      const auto door = std::find_if(kDoors.begin(), kDoors.end(), [&](const Door& d) {
        return std::regex_match(include.name, std::regex(d.header));
      });
      const std::string where = source.path + ":" + std::to_string(include.line) + ": ";
      if (door != kDoors.end()) {
        EXPECT_TRUE(source.folder == "tests" ||
                    std::regex_match(source.path, std::regex(door->files)))
            << where << include.name << " is only for " << door->files;
      } else if (!include.ours) {
        EXPECT_TRUE(include.name.find('.') == std::string::npos ||
                    std::regex_match(include.name, kSystemHeader))
            << where << include.name << " has no door in this test";
      } else {
        EXPECT_NE(include.name.find('/'), std::string::npos)
            << where << "include by the full path from the root";
      }
    }
  }
}

TEST(Tidy, CudaFilesSeeNoMpiProtobufOrBoost) {
  const std::regex heavy("mpi\\.h|boost/.*|google/protobuf/.*|.*\\.pb\\.h");
  for (const Source& source : sources()) {
    if (!source.path.ends_with(".cu") && !source.path.ends_with(".cuh")) continue;
    for (const Include& include : includes(source)) {
      EXPECT_FALSE(std::regex_match(include.name, heavy)) << source.path << ": " << include.name;
    }
  }
}

TEST(Tidy, OwnHeaderComesFirst) {
  for (const Source& source : sources()) {
    if (!source.path.ends_with(".cc") || source.folder == "tests") continue;
    const std::string own = fs::path(source.path).replace_extension(".h");
    if (!fs::exists(fs::path(SOURCE_ROOT) / own)) continue;
    const std::vector<Include> all = includes(source);
    EXPECT_TRUE(!all.empty() && all.front().name == own) << source.path;
  }
}

TEST(Tidy, HeadersAreGuardedAndDocumented) {
  for (const Source& source : sources()) {
    if (!source.path.ends_with(".h") && !source.path.ends_with(".cuh")) continue;
    EXPECT_EQ(source.lines.empty() ? "" : source.lines.front(), "#pragma once") << source.path;
    EXPECT_TRUE(
        std::any_of(source.lines.begin(), source.lines.end(),
                    [](const std::string& line) { return line.find("///") != std::string::npos; }))
        << source.path << " has no contract";
  }
}

/// The longest function of a file: its first line, and how many lines it has.
struct Function {
  size_t begin = 0;
  size_t lines = 0;
};

Function longest_function(const Source& source) {
  const std::regex type_or_namespace("\\b(namespace|class|struct|union|enum|extern)\\b");
  std::vector<bool> open;  // for each open brace: whether it holds declarations
  Function longest;
  std::string head;
  size_t head_line = 0;
  size_t body_depth = 0;  // 0: not in a function
  for (size_t i = 0; i < source.code.size(); ++i) {
    if (source.code[i].starts_with("#")) continue;
    for (const char c : source.code[i]) {
      if (c == '{') {
        const bool function = head.find('(') != std::string::npos;
        open.push_back(!function && std::regex_search(head, type_or_namespace));
        if (body_depth == 0 && function) body_depth = open.size();
      } else if (c == '}' && !open.empty()) {
        if (body_depth == open.size()) {
          if (i - head_line >= longest.lines) longest = {head_line + 1, i - head_line + 1};
          body_depth = 0;
        }
        open.pop_back();
      } else if (c != ';') {
        if (head.empty() && c != ' ') head_line = i;
        if (!head.empty() || c != ' ') head += c;
        continue;
      }
      if (body_depth == 0) head.clear();
    }
    if (!head.empty()) head += ' ';
  }
  return longest;
}

/// Columns on the screen: bytes that do not continue a UTF-8 character.
size_t columns(const std::string& line) {
  return static_cast<size_t>(
      std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

TEST(Tidy, FilesLinesAndFunctionsFitOnAScreen) {
  for (const Source& source : sources()) {
    EXPECT_LE(source.lines.size(), 500u) << source.path;
    for (size_t i = 0; i < source.lines.size(); ++i) {
      EXPECT_LE(columns(source.lines[i]), 100u) << source.path << ":" << i + 1;
    }
    const Function longest = longest_function(source);
    EXPECT_LE(longest.lines, 70u) << source.path << ":" << longest.begin;
  }
}

TEST(Tidy, EveryHeaderHasATestOfTheSameName) {
  for (const Source& source : sources()) {
    const fs::path path = source.path;
    const Names mirrored{"kernels", "kernels/core", "parallel", "checkpoint", "model"};
    if (path.extension() != ".h" || !mirrored.contains(path.parent_path())) continue;
    if (kNoTestOfItsOwn.contains(path)) continue;
    const fs::path test = "tests" / path.parent_path() / (path.stem().string() + "_test.cc");
    EXPECT_TRUE(fs::exists(SOURCE_ROOT / test)) << path << " has no " << test;
  }
}

TEST(Tidy, EverythingIsInTheNamespace) {
  for (const Source& source : sources()) {
    if (source.path == "launcher/main.cc") continue;
    if (source.path == "kernels/core/cuda_check.h") continue;           // one macro
    if (source.path == "tests/simt/stand_in/cuda_runtime.h") continue;  // names of CUDA
    if (source.path == "tests/simt/stand_in/cuda.h") continue;          // and of its driver
    if (source.path == "tests/simt/stand_in/nccl.h") continue;          // and of NCCL
    EXPECT_TRUE(std::any_of(source.code.begin(), source.code.end(), [](const std::string& line) {
      return line.starts_with("namespace tessera");
    })) << source.path;
  }
}

TEST(Tidy, NoEnvironmentOutsideTheLauncher) {
  expect_nowhere("\\b(secure_)?getenv\\b|\\benviron\\b", "(launcher|tests)/.*",
                 "read the environment in launcher/ and pass values down");
}

TEST(Tidy, NoMacrosButChecks) {
  expect_nowhere("^\\s*#\\s*define\\s+(?!\\w*CHECK\\b)", "tests/simt/stand_in/cuda_runtime\\.h",
                 "a macro that is not a CHECK");
}

TEST(Tidy, NoUsingNamespace) {
  expect_nowhere("\\busing\\s+namespace\\b", "", "write the namespace");
}

TEST(Tidy, MemoryHasOneOwnerType) {
  expect_nowhere("^(?!#include).*(\\bnew\\b|\\bdelete\\b(?!;))|\\b(malloc|calloc|realloc|free)\\(",
                 "kernels/core/buffer\\.cc|tests/support/device_cpu\\.cc",
                 "memory is owned by Buffer or a standard container");
}

TEST(Tidy, TestsTestSomething) {
  expect_nowhere("EXPECT_TRUE\\(true\\)|ASSERT_TRUE\\(true\\)|\\bDISABLED_|GTEST_SKIP\\(\\);",
                 "tests/tidy_test\\.cc", "a test that cannot fail, or a skip without a reason");
}

TEST(Tidy, NoDrawers) {
  const std::regex drawer("(^|.*[/_.])(utils?|misc|common|helpers?|legacy)([/_.].*|$)");
  for (const fs::path& path : files()) {
    EXPECT_FALSE(std::regex_match(path.string(), drawer)) << path << ": name it for its purpose";
  }
}

TEST(Tidy, NoPromisesAndNoPlacesOfOneMachine) {
  const std::regex promise(
      "\\b(TO"
      "DO|FIX"
      "ME|XX"
      "X)\\b");
  const std::regex place("(^|[^\\w.])/(work|root|home|tmp/build)(/|-|\\b)");
  for (const fs::path& path : files()) {
    const std::string text = read(fs::path(SOURCE_ROOT) / path);
    if (path == "tests/tidy_test.cc" || text.find('\0') != std::string::npos) continue;
    const std::vector<std::string> lines = split_lines(text);
    for (size_t i = 0; i < lines.size(); ++i) {
      EXPECT_FALSE(std::regex_search(lines[i], promise)) << path << ":" << i + 1;
      EXPECT_FALSE(std::regex_search(lines[i], place)) << path << ":" << i + 1;
    }
  }
}

TEST(Tidy, ReadmeIsShort) {
  EXPECT_LE(split_lines(read(fs::path(SOURCE_ROOT) / "README.md")).size(), 150u);
}

}  // namespace
}  // namespace tessera
