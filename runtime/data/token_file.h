#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "runtime/data/file.h"

namespace tessera {

/// Token files: PREFIX.bin holds the tokens of all documents, one after the other, and PREFIX.idx
/// says where documents begin. The layout is Megatron-LM's "indexed dataset", byte for byte, so
/// either program reads what the other wrote. Little endian, without padding:
///   idx  offset 0       9 bytes   "MMIDIDX\0\0"
///               9       uint64    version, 1
///              17       uint8     element type: 4 = int32, 8 = uint16
///              18       uint64    S, number of sequences
///              26       uint64    D, number of document indices = documents + 1
///              34       int32[S]  tokens of each sequence
///              34 + 4S  int64[S]  byte offset in .bin of each sequence
///              34 + 12S int64[D]  sequence with which document d begins; the last one is S
/// Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
enum class TokenType : uint8_t { kInt32 = 4, kUInt16 = 8 };

/// Bytes of one token.
int64_t size_of(TokenType type);
/// What Megatron chooses: uint16 below 65,500 tokens, else int32.
TokenType token_type_for(int64_t vocabulary);

/// What a .idx says.
struct TokenIndex {
  TokenType type = TokenType::kInt32;
  /// [documents + 1], ascending, in tokens: document d is [starts[d], starts[d + 1]).
  /// A document may be empty. The last entry is the number of tokens.
  std::vector<int64_t> document_starts = {0};
};

/// Parses the bytes of a whole .idx and checks everything that can be checked without the .bin.
/// Throws Error (kBadData) that starts with `name` and the offset of the first wrong byte.
TokenIndex parse_token_index(std::span<const std::byte> bytes, const std::string& name);

/// A pair of token files, open for reading. Opening checks the whole index and the size of .bin;
/// it keeps 8 bytes of memory per document. Throws Error (kBadData).
class TokenFile {
 public:
  /// Opens `prefix`.bin and `prefix`.idx.
  explicit TokenFile(const std::filesystem::path& prefix);

  int64_t tokens() const { return index_.document_starts.back(); }
  int64_t documents() const { return static_cast<int64_t>(index_.document_starts.size()) - 1; }
  /// [documents + 1], see TokenIndex.
  std::span<const int64_t> document_starts() const { return index_.document_starts; }
  TokenType type() const { return index_.type; }

  /// Fills `out` with tokens [first, first + out.size()), which must lie in [0, tokens()).
  /// A token outside [0, vocabulary) throws Error (kBadData) with file and byte offset.
  /// May be called by several threads at once; allocates nothing.
  void read(int64_t first, int64_t vocabulary, std::span<int32_t> out) const;
  /// Asks the system to read those tokens into its cache. Never waits, never fails.
  void will_need(int64_t first, int64_t count) const;

 private:
  InputFile bin_;
  TokenIndex index_;
};

/// Writes a pair of token files, one document after the other. Memory: 12 bytes per document.
/// Nothing appears under the final names before publish(); see AtomicFile.
class TokenFileWriter {
 public:
  TokenFileWriter(const std::filesystem::path& prefix, int64_t vocabulary);

  /// Tokens must be in [0, vocabulary). More than 2^31 - 1 of them become several sequences.
  void add_document(std::span<const int32_t> tokens);
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(document_indices_.size()) - 1; }
  /// Writes the index; all bytes of both files are on disk when it returns.
  void seal();
  /// After seal(): gives both files their names.
  void publish();

 private:
  void append_tokens(std::span<const int32_t> tokens);

  AtomicFile bin_;
  AtomicFile idx_;
  int64_t vocabulary_;
  TokenType type_;
  int64_t tokens_ = 0;
  std::vector<int32_t> sequence_lengths_;
  std::vector<int64_t> document_indices_ = {0};
};

}  // namespace tessera
