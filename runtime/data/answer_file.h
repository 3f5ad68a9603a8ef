#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "runtime/data/file.h"

namespace tessera {

/// A token of a split that a model is asked for, and one that it must have read to know it. An
/// answer that needs several has several entries with the same position.
struct Answer {
  int64_t position = 0;  ///< of the answer, in tokens of the split; its predecessor has the loss
  int64_t source = 0;    ///< before it

  friend bool operator==(const Answer&, const Answer&) = default;
};

/// PREFIX.answers, beside PREFIX.bin and PREFIX.idx of a data set in which only some tokens are to
/// be predicted. Little endian, without padding:
///   offset 0    8 bytes       "TSANSWER"
///          8    uint64        version, 1
///         16    uint64        A, number of entries
///         24    int64[A][2]   position and source, ascending by position, then by source
std::filesystem::path answer_path(const std::filesystem::path& prefix);

/// Parses a whole file of a split of `tokens` tokens. Throws Error (kBadData) that starts with
/// `name` and the offset of the first wrong byte.
std::vector<Answer> parse_answers(std::span<const std::byte> bytes, int64_t tokens,
                                  const std::string& name);
/// Reads answer_path(prefix). Throws Error (kBadData).
std::vector<Answer> read_answers(const std::filesystem::path& prefix, int64_t tokens);
/// A file that is not published yet, with all bytes on disk.
void append_answers(AtomicFile& file, std::span<const Answer> answers);

}  // namespace tessera
