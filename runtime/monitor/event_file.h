#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/monitor/append_file.h"

namespace tessera {

/// A named number of one step.
struct Scalar {
  std::string name;
  double value = 0;
};

/// How often values fell into each of some ranges.
struct Histogram {
  std::vector<double> limits;  ///< upper ends, ascending; the first range begins at `begin`
  std::vector<double> counts;  ///< as many
  double begin = 0;
};

/// A picture as a file in the PNG format.
struct Picture {
  std::string_view png;
  int64_t height = 0;
  int64_t width = 0;
};

/// RUN/tensorboard/events.out.tfevents.TIME.HOST.PROCESS: what TensorBoard shows of a run. One file
/// for each start; a start that repeats steps of an earlier one says so in its second record, and
/// TensorBoard forgets them. Format: docs/report.md. Trouble with the file is told once.
class EventFile {
 public:
  /// A start whose first step is `first_step`. Readers take the files in the order of their names,
  /// so a later start never has an earlier TIME (seconds since 1970), whatever the clock says.
  EventFile(const std::filesystem::path& directory, int64_t first_step);

  /// All of one step in one record. Values that are not finite are left out.
  void add_scalars(int64_t step, std::span<const Scalar> scalars);
  void add_histogram(int64_t step, const std::string& tag, const Histogram& histogram);
  void add_picture(int64_t step, const std::string& tag, const Picture& picture);

 private:
  AppendFile file_;
};

/// `data` as one record of a TFRecord file: length (u64), masked CRC-32C of the length (u32),
/// data, masked CRC-32C of the data (u32), all little-endian.
std::string tf_record(std::string_view data);

}  // namespace tessera
