#include "runtime/data/token_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <string_view>

namespace tessera {

namespace {

static_assert(std::endian::native == std::endian::little, "token files are little endian");

constexpr std::string_view kMagic{"MMIDIDX\0\0", 9};
constexpr uint64_t kVersion = 1;
constexpr int64_t kHeaderBytes = 34;
constexpr int64_t kMaxSequence = std::numeric_limits<int32_t>::max();
constexpr size_t kWriteTokens = 16384;

std::filesystem::path with_ending(const std::filesystem::path& prefix, const char* ending) {
  std::filesystem::path path = prefix;
  return path += ending;
}

/// Little-endian numbers at any offset of the index, with its name for messages.
class IndexBytes {
 public:
  IndexBytes(std::span<const std::byte> bytes, const std::string& name)
      : bytes_(bytes), name_(name) {}

  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  const std::byte* at(int64_t offset) const { return bytes_.data() + offset; }

  template <class T>
  T load(int64_t offset) const {
    T value;
    std::memcpy(&value, at(offset), sizeof(T));
    return value;
  }

  template <class... Parts>
  [[noreturn]] void fail(int64_t offset, const Parts&... parts) const {
    throw Error(ExitCode::kBadData, concat(name_, ": byte ", offset, ": ", parts...));
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& name_;
};

TokenType parse_type(const IndexBytes& index) {
  const auto code = index.load<uint8_t>(17);
  if (code != static_cast<uint8_t>(TokenType::kInt32) &&
      code != static_cast<uint8_t>(TokenType::kUInt16)) {
    index.fail(17, "element type is ", int{code}, ", expected 4 (int32) or 8 (uint16)");
  }
  return static_cast<TokenType>(code);
}

void check_header(const IndexBytes& index) {
  if (index.size() < kHeaderBytes) {
    index.fail(index.size(), "the file ends here, expected at least ", kHeaderBytes, " bytes");
  }
  if (std::memcmp(index.at(0), kMagic.data(), kMagic.size()) != 0) {
    index.fail(0, "the file does not begin with MMIDIDX, so it is not the index of a token file");
  }
  if (const auto version = index.load<uint64_t>(9); version != kVersion) {
    index.fail(9, "version is ", version, ", expected ", kVersion);
  }
}

void check_size(const IndexBytes& index, uint64_t sequences, uint64_t indices) {
  const uint64_t room = static_cast<uint64_t>(index.size() - kHeaderBytes);
  if (sequences > room / 12) {
    index.fail(18, "number of sequences is ", sequences, ", but the file has room for ", room / 12);
  }
  const uint64_t left = room - 12 * sequences;
  if (indices < 1 || indices > left / 8) {
    index.fail(26, "number of document indices is ", indices, ", expected 1 to ", left / 8,
               ", for which the file has room");
  }
  if (left != 8 * indices) {
    index.fail(kHeaderBytes + static_cast<int64_t>(12 * sequences + 8 * indices),
               "the index ends here, but ", left - 8 * indices, " more bytes follow");
  }
}

/// Sequences must follow each other without a gap. Returns the number of tokens.
int64_t check_sequences(const IndexBytes& index, int64_t sequences, int64_t width) {
  const int64_t pointers_at = kHeaderBytes + 4 * sequences;
  int64_t tokens = 0;
  for (int64_t i = 0; i < sequences; ++i) {
    const auto length = index.load<int32_t>(kHeaderBytes + 4 * i);
    if (length < 0) {
      index.fail(kHeaderBytes + 4 * i, "length of sequence ", i, " is ", length,
                 ", expected at least 0");
    }
    if (const auto pointer = index.load<int64_t>(pointers_at + 8 * i); pointer != tokens * width) {
      index.fail(pointers_at + 8 * i, "sequence ", i, " begins at byte ", pointer,
                 " of the .bin, expected ", tokens * width, ", the end of the sequence before");
    }
    tokens += length;
  }
  return tokens;
}

}  // namespace

int64_t size_of(TokenType type) {
  return type == TokenType::kUInt16 ? 2 : 4;
}

TokenType token_type_for(int64_t vocabulary) {
  return vocabulary < 65500 ? TokenType::kUInt16 : TokenType::kInt32;
}

TokenIndex parse_token_index(std::span<const std::byte> bytes, const std::string& name) {
  const IndexBytes index(bytes, name);
  check_header(index);
  TokenIndex parsed{.type = parse_type(index), .document_starts = {}};
  const int64_t width = size_of(parsed.type);
  check_size(index, index.load<uint64_t>(18), index.load<uint64_t>(26));
  const auto sequences = index.load<int64_t>(18);
  const auto indices = index.load<int64_t>(26);
  const int64_t pointers_at = kHeaderBytes + 4 * sequences;
  const int64_t indices_at = pointers_at + 8 * sequences;
  const int64_t tokens = check_sequences(index, sequences, width);

  parsed.document_starts.reserve(static_cast<size_t>(indices));
  int64_t previous = 0;
  for (int64_t i = 0; i < indices; ++i) {
    const int64_t offset = indices_at + 8 * i;
    const auto sequence = index.load<int64_t>(offset);
    const int64_t least = i == indices - 1 ? sequences : previous;
    const int64_t most = i == 0 ? 0 : sequences;
    if (sequence < least || sequence > most) {
      index.fail(offset, "document index ", i, " of ", indices, " is ", sequence, ", expected ",
                 least, " to ", most);
    }
    const bool end = sequence == sequences;
    parsed.document_starts.push_back(end ? tokens
                                         : index.load<int64_t>(pointers_at + 8 * sequence) / width);
    previous = sequence;
  }
  return parsed;
}

TokenFile::TokenFile(const std::filesystem::path& prefix)
    : bin_(with_ending(prefix, ".bin"), ExitCode::kBadData) {
  const std::filesystem::path idx = with_ending(prefix, ".idx");
  const std::string bytes = read_file(idx, ExitCode::kBadData);
  index_ = parse_token_index(std::as_bytes(std::span(bytes)), idx.string());
  const int64_t expected = tokens() * size_of(type());
  if (bin_.size() != expected) {
    throw Error(ExitCode::kBadData,
                concat(bin_.path().string(), ": byte ", std::min(bin_.size(), expected),
                       ": the file has ", bin_.size(), " bytes, expected ", expected, " as ",
                       idx.filename().string(), " says; make the data set again"));
  }
}

void TokenFile::read(int64_t first, int64_t vocabulary, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  CHECK(first >= 0 && first <= tokens() - count, "token_file: tokens are [", first, ", ",
        first + count, "), expected to lie in [0, ", tokens(), ")");
  const int64_t width = size_of(type());
  // Narrow tokens are read into the back of `out` and widened from the front: the write to
  // element i never passes the reads of elements above i.
  const auto bytes = std::as_writable_bytes(out).last(static_cast<size_t>(count * width));
  bin_.read(first * width, bytes);
  int64_t wrong = -1;
  for (int64_t i = 0; i < count; ++i) {
    int32_t token = 0;
    std::memcpy(&token, bytes.data() + i * width, static_cast<size_t>(width));
    out[static_cast<size_t>(i)] = token;
    if ((token < 0 || token >= vocabulary) && wrong < 0) wrong = i;
  }
  if (wrong < 0) return;
  throw Error(ExitCode::kBadData,
              concat(bin_.path().string(), ": byte ", (first + wrong) * width, ": token is ",
                     out[static_cast<size_t>(wrong)], ", expected 0 to ", vocabulary - 1,
                     "; the file is damaged or was made with another tokenizer"));
}

void TokenFile::will_need(int64_t first, int64_t count) const {
  bin_.will_need(first * size_of(type()), count * size_of(type()));
}

TokenFileWriter::TokenFileWriter(const std::filesystem::path& prefix, int64_t vocabulary)
    : bin_(with_ending(prefix, ".bin")),
      idx_(with_ending(prefix, ".idx")),
      vocabulary_(vocabulary),
      type_(token_type_for(vocabulary)) {
  CHECK(vocabulary > 0 && vocabulary <= kMaxSequence, "token_file: vocabulary is ", vocabulary,
        ", expected 1 to ", kMaxSequence);
}

void TokenFileWriter::add_document(std::span<const int32_t> tokens) {
  for (std::span<const int32_t> rest = tokens; !rest.empty();) {
    const size_t count = std::min(rest.size(), static_cast<size_t>(kMaxSequence));
    append_tokens(rest.first(count));
    sequence_lengths_.push_back(static_cast<int32_t>(count));
    rest = rest.subspan(count);
  }
  document_indices_.push_back(static_cast<int64_t>(sequence_lengths_.size()));
}

void TokenFileWriter::append_tokens(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    CHECK(token >= 0 && token < vocabulary_, "token_file: token is ", token, ", expected 0 to ",
          vocabulary_ - 1);
  }
  tokens_ += static_cast<int64_t>(tokens.size());
  if (type_ == TokenType::kInt32) return bin_.append(std::as_bytes(tokens));
  std::array<uint16_t, kWriteTokens> narrow;
  while (!tokens.empty()) {
    const size_t count = std::min(tokens.size(), narrow.size());
    for (size_t i = 0; i < count; ++i) narrow[i] = static_cast<uint16_t>(tokens[i]);
    bin_.append(std::as_bytes(std::span(narrow).first(count)));
    tokens = tokens.subspan(count);
  }
}

void TokenFileWriter::seal() {
  const auto append = [this](const auto& value) {
    idx_.append(std::as_bytes(std::span(&value, 1)));
  };
  idx_.append(kMagic);
  append(kVersion);
  append(static_cast<uint8_t>(type_));
  append(static_cast<uint64_t>(sequence_lengths_.size()));
  append(static_cast<uint64_t>(document_indices_.size()));
  idx_.append(std::as_bytes(std::span(sequence_lengths_)));
  int64_t pointer = 0;
  for (const int32_t length : sequence_lengths_) {
    append(pointer);
    pointer += length * size_of(type_);
  }
  idx_.append(std::as_bytes(std::span(document_indices_)));
  bin_.seal();
  idx_.seal();
}

void TokenFileWriter::publish() {
  bin_.publish();
  idx_.publish();
}

}  // namespace tessera
