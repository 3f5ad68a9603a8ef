#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>

#include "checkpoint/candidates.h"
#include "checkpoint/file_hash.h"
#include "checkpoint/layout.h"
#include "checkpoint/manifest.h"
#include "checkpoint/manifest.pb.h"
#include "checkpoint/marker.h"
#include "checkpoint/wire_types.h"
#include "tests/checkpoint/sample_run.h"

// The worst manifests that we could think of, with a right marker beside them. Each must end in one
// sentence, with bounded memory, and in a time that does not grow with the malice: the goal is 1 s
// and 512 MiB. Processor time is allowed five times that, for slow machines and sanitizers.

namespace tessera {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr bool kMeasures = false;  // the sanitizer takes memory and time of its own
#else
constexpr bool kMeasures = true;
#endif
constexpr double kMostSeconds = 5;
constexpr int64_t kMostBytes = int64_t{512} << 20;

wire::Manifest beginning() {
  wire::Manifest manifest;
  manifest.set_format_major(kFormatMajor);
  manifest.set_run_uuid("0123456789abcdef0123456789abcdef");
  manifest.set_epoch(1);
  manifest.set_step(10);
  return manifest;
}

void add_file(wire::Manifest& manifest, const std::string& name, int64_t size) {
  wire::File& file = *manifest.add_files();
  file.set_path("d/" + name);
  file.set_size(size);
  file.set_xxh3_128(manifest.run_uuid());
  file.set_block_size(kBlockBytes);
}

// Empty messages, two bytes each on disk: tensors, which take a hundred in memory.
std::string empty_messages() {
  std::string bytes;
  for (int i = 0; i < 80'000'000; ++i) bytes += std::string("\x8A\x01\0", 3);
  return bytes;
}

// One field that is as long as it may be.
std::string one_long_field() {
  wire::Manifest manifest = beginning();
  manifest.set_git_hash(std::string(size_t{180} << 20, 'x'));
  return manifest.SerializeAsString();
}

// Tensors of four axes in as many slices as a tensor may have: the check that they cover it has
// the most corners to sort. Only the last element is missing.
std::string many_slices() {
  wire::Manifest manifest = beginning();
  add_file(manifest, "f", kHeaderBytes + 1024 * kBlockBytes);
  for (int i = 0; i < 1024; ++i) manifest.mutable_files(0)->add_block_crc32c(1);
  const Shape shape{16, 16, 16, 16};
  for (int t = 0; t < 9; ++t) {
    wire::Tensor& tensor = *manifest.add_tensors();
    tensor.set_name(concat("x", t));
    set_type(TensorKind::kParameter, DType::kU8, shape, tensor);
    for (int64_t i = 0; i < shape.elements() - (t == 8 ? 1 : 0); ++i) {
      wire::Slice& slice = *tensor.add_slices();
      set_box({{i / 4096, i / 256 % 16, i / 16 % 16, i % 16}, {1, 1, 1, 1}}, slice);
      slice.set_byte_offset(kHeaderBytes);
      slice.set_byte_length(1);
    }
  }
  return manifest.SerializeAsString();
}

std::string many_files() {
  wire::Manifest manifest = beginning();
  for (int i = 0; i < 350'000; ++i) add_file(manifest, std::to_string(i), kHeaderBytes);
  return manifest.SerializeAsString();
}

std::string many_tensors() {
  wire::Manifest manifest = beginning();
  add_file(manifest, "f", kHeaderBytes + kSegmentAlignment);
  manifest.mutable_files(0)->add_block_crc32c(1);
  for (int i = 0; i < 250'000; ++i) {
    wire::Tensor& tensor = *manifest.add_tensors();
    tensor.set_name(std::to_string(10'000'000 + i));
    set_type(TensorKind::kParameter, DType::kU8, {1}, tensor);
    wire::Slice& slice = *tensor.add_slices();
    set_box({{0}, {1}}, slice);
    slice.set_byte_offset(kHeaderBytes);
    slice.set_byte_length(1);
  }
  return manifest.SerializeAsString();
}

std::string many_block_sums() {
  wire::Manifest manifest = beginning();
  add_file(manifest, "f", int64_t{1} << 50);
  for (int i = 0; i < 40'000'000; ++i) manifest.mutable_files(0)->add_block_crc32c(1);
  return manifest.SerializeAsString();
}

// Runs `body` in a process of its own. Returns its processor time and the memory that it had.
rusage cost_of(const std::function<void()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  rusage usage{};
  wait4(child, &status, 0, &usage);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  return usage;
}

double seconds_of(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

struct HostileCase {
  const char* name;
  std::function<std::string()> manifest;
  const char* expected;  // in the sentence
};

class Hostile : public testing::TestWithParam<HostileCase> {};

TEST_P(Hostile, ManifestEndsInASentenceWithinBounds) {
  if (!kMeasures) GTEST_SKIP() << "memory is measured without sanitizers only";
  const support::TemporaryDirectory place;
  const std::filesystem::path directory = place.path() / "step-00000010";
  std::filesystem::create_directory(directory);
  cost_of([&] {
    const std::string bytes = GetParam().manifest();
    const Directory target(directory);
    target.write_new(kManifestName, bytes);
    target.write_new(kMarkerName, encode_marker({.format_major = kFormatMajor,
                                                 .step = 10,
                                                 .epoch = 1,
                                                 .manifest_bytes = std::ssize(bytes),
                                                 .manifest_hash = hash128(bytes_of(bytes))}));
  });
  const rusage cost = cost_of([&] {
    const Candidate candidate = examine_checkpoint(directory);
    if (candidate.state != CandidateState::kDamaged) _exit(2);
    const std::string said = candidate.reason.substr(directory.string().size());
    if (said.find(GetParam().expected) == std::string::npos) {
      std::printf("it says: %s\n", candidate.reason.c_str());
      std::fflush(stdout);
      _exit(3);
    }
  });
  const double seconds = seconds_of(cost.ru_utime) + seconds_of(cost.ru_stime);
  const int64_t bytes = cost.ru_maxrss * 1024;
  std::printf("%s: %.2f s, %lld MiB\n", GetParam().name, seconds,
              static_cast<long long>(bytes >> 20));
  EXPECT_LT(seconds, kMostSeconds);
  EXPECT_LT(bytes, kMostBytes);
}

INSTANTIATE_TEST_SUITE_P(
    Worst, Hostile,
    testing::Values(HostileCase{"EmptyMessages", empty_messages, "would take at least"},
                    HostileCase{"OneLongField", one_long_field, "expected at most 4096"},
                    HostileCase{"ManySlices", many_slices, "in no slice or in several"},
                    HostileCase{"ManyFiles", many_files, "/d/0 cannot be opened"},
                    HostileCase{"ManyTensors", many_tensors, "has a segment at 4096"},
                    HostileCase{"ManyBlockSums", many_block_sums, "blocks of"}),
    [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace tessera
