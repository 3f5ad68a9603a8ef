#pragma once

#include "kernels/attention_forward.cuh"
#include "kernels/core/ptx_sm90.cuh"
#include "kernels/core/tensor_map.cuh"

/// How queries, keys and values come to a block of threads of attention_forward_sm90.cuh: its
/// shared memory, its tiles, and the warp that has them copied.
namespace tessera::gpu {

template <int kD>
struct Sm90Shape {
  static constexpr int kGroups = 2;
  static constexpr int kGroupRows = 64;
  static constexpr int kRows = kGroups * kGroupRows;
  static constexpr int kPanel = 64;
  static constexpr int kStages = 4;
  static constexpr int kGroupThreads = 128;
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads;
  static constexpr int kWarps = kGroups * kGroupThreads / kWarpSize;  // that multiply
  static constexpr int kLines = kD / 64;                              // of 128 bytes, of a row
  static constexpr int kBoxBytes = kPanel * 128;
  static constexpr int kPanelBytes = kLines * kBoxBytes;
  static constexpr int kRowsBytes = kLines * kRows * 128;
  static constexpr int kAligned = 1024;
  static constexpr int kBarriers = 4 * kStages + 2;
  static constexpr int kMemory = kAligned + 2 * kRowsBytes + 2 * kStages * kPanelBytes;
  static constexpr int64_t kSharedBytes = shared_bytes_of<uint64_t>(kBarriers) + kMemory;
  /// Registers of a lane, together those that three groups start with, 168 each.
  static constexpr int kMultiplying = 232;
  static constexpr int kCopying = 40;
};

struct Sm90Maps {
  CUtensorMap q;  // boxes of a tile's heads and tokens
  CUtensorMap k;  // boxes of 64 keys of a head
  CUtensorMap v;
};

/// A tile's place in shared memory: lines of all rows, one after the other; in a line the 16 bytes
/// of pack p are at p xor the row. Panels are the same with 64 rows.
template <int kD>
struct Sm90Memory {
  using Shape = Sm90Shape<kD>;

  uint64_t* full_keys;  // [kStages] and so on
  uint64_t* full_values;
  uint64_t* empty_keys;
  uint64_t* empty_values;
  uint64_t* full_queries;
  uint64_t* empty_queries;
  unsigned char* queries;
  unsigned char* results;
  unsigned char* keys;
  unsigned char* values;

  __device__ static Sm90Memory take() {
    SharedMemory shared;
    uint64_t* const at = shared.take<uint64_t>(Shape::kBarriers);
    unsigned char* const rest = shared.take<unsigned char>(Shape::kMemory);
    const uint32_t beyond = address_in_shared(rest) % Shape::kAligned;
    unsigned char* const first = rest + (Shape::kAligned - beyond) % Shape::kAligned;
    constexpr int kStages = Shape::kStages;
    unsigned char* const panels = first + 2 * Shape::kRowsBytes;
    return {at,
            at + kStages,
            at + 2 * kStages,
            at + 3 * kStages,
            at + 4 * kStages,
            at + 4 * kStages + 1,
            first,
            first + Shape::kRowsBytes,
            panels,
            panels + kStages * Shape::kPanelBytes};
  }
  __device__ void start() const {
    for (int i = 0; i < Shape::kStages; ++i) {
      start_barrier(full_keys + i, 1);
      start_barrier(full_values + i, 1);
      start_barrier(empty_keys + i, Shape::kWarps);
      start_barrier(empty_values + i, Shape::kWarps);
    }
    start_barrier(full_queries, 1);
    start_barrier(empty_queries, Shape::kWarps);
    show_barriers();
  }
  static __device__ int stage(int step) { return step % Shape::kStages; }
  static __device__ uint32_t parity(int step) {
    return static_cast<uint32_t>(step / Shape::kStages) & 1;
  }
  __device__ unsigned char* panel_keys(int step) const {
    return keys + stage(step) * Shape::kPanelBytes;
  }
  __device__ unsigned char* panel_values(int step) const {
    return values + stage(step) * Shape::kPanelBytes;
  }
  /// Where pack `pack` of a row is, of memory with `rows` rows.
  static __device__ int offset(int row, int pack, int rows) {
    return pack / 8 * rows * 128 + row * 128 + (pack % 8 ^ row % 8) * 16;
  }
};

/// Which tiles a block of threads takes: one in as many as there are blocks.
struct TileRange {
  int tokens;  ///< tiles of a group's part
  int tiles;

  template <class T>
  __device__ QueryTile find(const ForwardOperands<T>& a, int index) const {
    return find_query_tile(a.grid, a.cut, a.groups, a.map, tokens, index);
  }
  /// Calls body(tile) for the tiles of this block that have rows.
  template <class T, class Body>
  __device__ __forceinline__ void visit(const ForwardOperands<T>& a, const Body& body) const {
    for (int i = static_cast<int>(blockIdx.x); i < tiles; i += static_cast<int>(gridDim.x)) {
      const QueryTile tile = find(a, i);
      if (tile.rows() > 0) body(tile);
    }
  }
};

/// What the copying warp does: all of it walks, its first lane has boxes copied.
template <int kD, class Walk>
struct Sm90Copier {
  using Shape = Sm90Shape<kD>;
  using Memory = Sm90Memory<kD>;

  const ForwardOperands<BF16>& a;
  const Memory& memory;
  const Sm90Maps& maps;
  int lane;
  int step = 0;
  uint32_t turn = 0;  // of the queries

  __device__ void copy_tile(const QueryTile& tile, const typename Walk::Arguments& arguments) {
    const LaneRows rows(tile, 0);
    Walk walk(arguments, a.grid, tile, rows);
    wait_for_phase_or_stop(memory.empty_queries, turn ^ 1);
    if (lane == 0) {
      const int box = a.cut.tokens * a.cut.heads * 128;
      arrive_and_expect(memory.full_queries, static_cast<uint32_t>(Shape::kLines * box));
      for (int i = 0; i < Shape::kLines; ++i) {
        copy_box(memory.queries + i * Shape::kRows * 128, &maps.q, memory.full_queries, 64 * i,
                 tile.first_head, tile.origin + tile.first);
      }
    }
    turn ^= 1;
    for (Panel panel{}; walk.next(panel); ++step) {
      copy_panel(panel, tile.kv_head, walk.keys_of_run());
    }
  }

 private:
  __device__ void copy_panel(const Panel& panel, int kv_head, int keys_of_run) {
    const int stage = Memory::stage(step);
    const uint32_t before = Memory::parity(step) ^ 1;
    wait_for_phase_or_stop(memory.empty_keys + stage, before);
    copy_boxes(maps.k, memory.panel_keys(step), memory.full_keys + stage, panel.row, kv_head);
    wait_for_phase_or_stop(memory.empty_values + stage, before);
    if (keys_of_run >= Shape::kPanel) {
      copy_boxes(maps.v, memory.panel_values(step), memory.full_values + stage, panel.row, kv_head);
    } else {
      copy_values(memory.panel_values(step), panel.row, kv_head, keys_of_run);
      __syncwarp();
      if (lane == 0) arrive(memory.full_values + stage);
    }
  }
  __device__ void copy_boxes(const CUtensorMap& map, unsigned char* to, uint64_t* full, int row,
                             int kv_head) const {
    if (lane != 0) return;
    arrive_and_expect(full, static_cast<uint32_t>(Shape::kPanelBytes));
    for (int i = 0; i < Shape::kLines; ++i) {
      copy_box(to + i * Shape::kBoxBytes, &map, full, 64 * i, kv_head, row);
    }
  }
  /// The last values of a run by loads and stores: zeros behind them, as weights of 0 do not hide a
  /// NaN of rows that are nobody's.
  __device__ void copy_values(unsigned char* to, int row, int kv_head, int count) const {
    constexpr int kPacks = kD / Pack<BF16>::kSize;
    const int64_t stride = int64_t{a.kv_heads} * kD;
    const BF16* const first = a.v + row * stride + int64_t{kv_head} * kD;
    for (int i = lane; i < Shape::kPanel * kPacks; i += kWarpSize) {
      const int key = i / kPacks;
      const int pack = i % kPacks;
      Pack<BF16> values{};
      if (key < count) values = load_pack(first + key * stride + pack * Pack<BF16>::kSize);
      store_pack(reinterpret_cast<BF16*>(to + Memory::offset(key, pack, Shape::kPanel)), values);
    }
    show_to_units();
  }
};

}  // namespace tessera::gpu
