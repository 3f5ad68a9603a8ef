#include "runtime/data/answer_file.h"

#include <cstring>
#include <string_view>

namespace tessera {

namespace {

constexpr std::string_view kMagic = "TSANSWER";
constexpr uint64_t kVersion = 1;
constexpr size_t kHeaderBytes = 24;
constexpr size_t kEntryBytes = 16;

template <class T>
T load(std::span<const std::byte> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

template <class... Parts>
[[noreturn]] void fail(const std::string& name, size_t offset, const Parts&... what) {
  throw Error(ExitCode::kBadData, concat(name, ": byte ", offset, ": ", what...,
                                         "; the file is damaged: make the data set again"));
}

}  // namespace

std::filesystem::path answer_path(const std::filesystem::path& prefix) {
  std::filesystem::path path = prefix;
  path += ".answers";
  return path;
}

std::vector<Answer> parse_answers(std::span<const std::byte> bytes, int64_t tokens,
                                  const std::string& name) {
  if (bytes.size() < kHeaderBytes) {
    fail(name, bytes.size(), "the file ends, expected a header of ", kHeaderBytes, " bytes");
  }
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    fail(name, 0, "the file does not begin with ", kMagic);
  }
  if (const auto version = load<uint64_t>(bytes, 8); version != kVersion) {
    fail(name, 8, "version is ", version, ", expected ", kVersion);
  }
  const auto count = load<uint64_t>(bytes, 16);
  if (count != (bytes.size() - kHeaderBytes) / kEntryBytes ||
      (bytes.size() - kHeaderBytes) % kEntryBytes != 0) {
    fail(name, 16, "number of answers is ", count, ", but the file has ", bytes.size(),
         " bytes, expected ", kHeaderBytes, " + ", kEntryBytes, " for each");
  }
  std::vector<Answer> answers(count);
  Answer previous{.position = 0, .source = -1};
  for (size_t i = 0; i < answers.size(); ++i) {
    const size_t offset = kHeaderBytes + i * kEntryBytes;
    const Answer answer{load<int64_t>(bytes, offset), load<int64_t>(bytes, offset + 8)};
    if (answer.position < std::max<int64_t>(1, previous.position) || answer.position >= tokens) {
      fail(name, offset, "position of entry ", i, " is ", answer.position, ", expected ",
           std::max<int64_t>(1, previous.position), " to ", tokens - 1);
    }
    const int64_t least = answer.position == previous.position ? previous.source + 1 : 0;
    if (answer.source < least || answer.source >= answer.position) {
      fail(name, offset + 8, "source of entry ", i, " is ", answer.source, ", expected ", least,
           " to ", answer.position - 1, ", before the answer");
    }
    answers[i] = previous = answer;
  }
  return answers;
}

std::vector<Answer> read_answers(const std::filesystem::path& prefix, int64_t tokens) {
  const std::filesystem::path path = answer_path(prefix);
  const std::string bytes = read_file(path, ExitCode::kBadData);
  return parse_answers(std::as_bytes(std::span(bytes)), tokens, path.string());
}

void append_answers(AtomicFile& file, std::span<const Answer> answers) {
  const auto append = [&](const auto& value) { file.append(std::as_bytes(std::span(&value, 1))); };
  file.append(kMagic);
  append(kVersion);
  append(static_cast<uint64_t>(answers.size()));
  for (const Answer& answer : answers) {
    append(answer.position);
    append(answer.source);
  }
  file.seal();
}

}  // namespace tessera
