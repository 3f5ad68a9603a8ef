#include "parallel/bucket.h"

namespace tessera {

int64_t padded_for(int64_t elements, int ranks) {
  const int64_t unit = Bucket::kUnit * ranks;
  return (elements + unit - 1) / unit * unit;
}

}  // namespace tessera
