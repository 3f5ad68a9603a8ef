#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/data/data_loader.h"

namespace tessera {

/// How far a run is in its data. All that a resumed run needs to go on with the next sample.
struct DataPosition {
  int64_t samples = 0;          ///< sequences taken, of all sources
  int64_t sequence_length = 0;  ///< of the last step; 0: none yet
  /// By source: tokens of its endless sequence of windows that lie behind. A source that is not in
  /// it is at its beginning.
  std::map<std::string, int64_t> tokens = {};

  friend bool operator==(const DataPosition&, const DataPosition&) = default;
};

/// What one step takes.
struct DataDemand {
  int64_t sequences = 0;
  int64_t sequence_length = 0;       ///< divides that of the loaders
  std::vector<double> weights = {};  ///< of the sources after the first, which has the rest
  double pool = 1;                   ///< share of the windows, the easiest first, in (0, 1]
};

/// Several data sets as one endless sequence of samples, which depends on the position and what
/// each step demands, and on nothing else: not on ranks, not on how often the run was stopped.
///
/// Which source. Sample i of the run belongs to the source in whose part of [0, 1) the fraction of
/// i x 0.618... lies, the golden ratio's part in exact 64-bit arithmetic. Of any n samples in a row
/// that find the same weights, a source has its share to within a few samples, however small n is.
///
/// Which tokens. Each source goes through its windows in the order of its loader, `stripe` windows
/// at a time: with L the length of the step and r = Lmax / L, first piece 0 of each of them, then
/// piece 1, .., r - 1. So whatever the length, each token is seen once per epoch; a step of as many
/// tokens as `stripe` windows has exactly theirs. When the length changes, a stripe that was begun
/// is left.
///
/// Difficulty. With pool q < 1, of W windows the ceil(q W) easiest take the place of all, in the
/// order SampleOrder(ceil(q W), seed). A source without a ranking ignores it.
class DataMixture {
 public:
  struct Source {
    std::string name;
    const DataLoader* loader;
    std::vector<int64_t> easiest_first = {};  ///< all windows, ranked; empty: not ranked
  };
  /// Keeps pointers to the loaders, which have the same options. At least one source.
  DataMixture(std::vector<Source> sources, int64_t stripe);

  struct Taken {
    std::vector<DataWindow> windows;  ///< by row of the global batch
    DataPosition next;
  };
  /// What a step at `position` demands. A position with samples and no sources is one of a run that
  /// knew only the first source, at full length.
  Taken take(const DataPosition& position, const DataDemand& demand) const;

 private:
  DataWindow window_at(const Source& source, int64_t tokens, const DataDemand& demand) const;
  int64_t longest() const { return sources_.front().loader->sequence_length(); }

  std::vector<Source> sources_;
  int64_t stripe_;
};

/// The source of sample `sample`: 0 for the first, which has what `weights` leave.
size_t source_of(int64_t sample, const std::vector<double>& weights);

}  // namespace tessera
