#pragma once

#include "kernels/core/device.h"

namespace tessera::gpu {

class Workspace;

/// Numbers with the places they came from.
struct SortedKeys {
  int32_t* keys;    ///< [count], ascending
  int32_t* places;  ///< [count]; ascending among equal keys
};

/// Sorts keys [count] from 0 to at most `largest`, which it overwrites; the result is in the
/// workspace. Stable and without a choice left to scheduling. Takes 13 bytes of workspace per key
/// and goes over 8 bits of the keys at a time.
SortedKeys sort_keys(Stream& stream, Workspace& workspace, int32_t* keys, int64_t count,
                     int64_t largest);

}  // namespace tessera::gpu
