#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "checkpoint/crc32c.h"
#include "checkpoint/file_io.h"
#include "runtime/monitor/event.pb.h"

namespace tessera {

/// The files of a directory, by name, which is the order in which TensorBoard reads them.
inline std::vector<std::filesystem::path> event_files(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// The events of a file. Every length and CRC of the TFRecord format is checked, by the portable
/// CRC.
inline std::vector<tensorboard::Event> events_in(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string file(std::istreambuf_iterator<char>(in), {});
  const auto u32 = [&](size_t at) {
    uint32_t value = 0;
    std::memcpy(&value, file.data() + at, sizeof value);
    return value;
  };
  const auto masked = [&](size_t at, size_t bytes) {
    const uint32_t crc = crc32c_portable(bytes_of(std::string_view(file).substr(at, bytes)));
    return static_cast<uint32_t>(((crc >> 15) | (crc << 17)) + 0xA282EAD8u);
  };
  std::vector<tensorboard::Event> events;
  for (size_t at = 0; at < file.size();) {
    uint64_t bytes = 0;
    std::memcpy(&bytes, file.data() + at, sizeof bytes);
    EXPECT_EQ(u32(at + 8), masked(at, 8)) << "length of record " << events.size();
    EXPECT_LE(at + 16 + bytes, file.size());
    EXPECT_EQ(u32(at + 12 + bytes), masked(at + 12, bytes)) << "record " << events.size();
    EXPECT_TRUE(events.emplace_back().ParseFromString(file.substr(at + 12, bytes)));
    at += 16 + bytes;
  }
  return events;
}

}  // namespace tessera
