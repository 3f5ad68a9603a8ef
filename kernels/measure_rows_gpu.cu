#include <algorithm>

#include "kernels/core/device_math.cuh"
#include "kernels/core/launch.cuh"
#include "kernels/core/shared_memory.cuh"
#include "kernels/core/workspace.h"
#include "kernels/gate_measure.h"
#include "kernels/measure_rows.cuh"

// A block has a sampled row, up to eight heads of a group and a chunk of the keys before the row,
// which it reads once: a lane has a key. Its sums are partial ones; a second kernel, with one block
// per group, adds them up in order, so that nothing depends on scheduling. A sampled row costs n d
// bytes of keys per eight heads, and few rows are sampled: dozens of blocks are all that there are,
// and up to kMostChunks times that for long rows.

namespace tessera::gpu {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kMostChunks = 16;    // of a row
constexpr int kLeastChunk = 2048;  // keys
constexpr int kSums = GateFigures::kTiles;

/// Products of a key with `kRowHeads` queries in shared memory [kRowHeads, d].
template <class T>
__device__ void multiply(const SampledRows<T>& a, const T* key, const float* q,
                         float (&s)[kRowHeads]) {
  for (float& product : s) product = 0;
  constexpr int kPack = Pack<T>::kSize;
  for (int e = 0; e < a.d; e += kPack) {
    Pack<T> values;
    if (a.packs) {
      values = load_pack(key + e);
    } else {
      for (int i = 0; i < kPack; ++i) values.values[i] = key[e + i];
    }
    for (int i = 0; i < kPack; ++i) {
      const float x = to_float(values.values[i]);
      for (int h = 0; h < kRowHeads; ++h) s[h] += x * q[h * a.d + e + i];
    }
  }
}

/// Adds a warp's masses of ascending bins to its own row of bins: the last lane of a bin has the
/// sum of the bin's lanes.
__device__ void add_to_bins(float mass, int bin, float* bins) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const float before = __shfl_up_sync(kWholeWarp, mass, static_cast<unsigned>(offset));
    const int of = __shfl_up_sync(kWholeWarp, bin, static_cast<unsigned>(offset));
    if (lane >= offset && of == bin) mass += before;
  }
  const int next = __shfl_down_sync(kWholeWarp, bin, 1);
  if (lane == kWarpSize - 1 || next != bin) bins[bin] += mass;
}

/// What a block keeps in shared memory.
struct Scratch {
  float* q;     // [kRowHeads, d], scaled; 0 for heads that are not there
  float* lse;   // [kRowHeads]
  float* bins;  // [kWarps, bins]
  float* sums;  // [kWarps, 3 kRowHeads + kRowKinds]
};

/// Head h of lane 0's result: the warp's.
__device__ RowSoftmax add_over_warp(RowSoftmax full) {
  for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
    full.add({__shfl_down_sync(kWholeWarp, full.highest, static_cast<unsigned>(bits)),
              __shfl_down_sync(kWholeWarp, full.all, static_cast<unsigned>(bits)),
              __shfl_down_sync(kWholeWarp, full.kept, static_cast<unsigned>(bits))});
  }
  return full;
}

template <class T>
__device__ void load_queries(const SampledRows<T>& a, const RowPlace& row, int first_head,
                             int heads, const Scratch& scratch) {
  const int64_t all_heads = int64_t{a.kv_heads} * a.group_heads;
  const T* const q = a.q + (int64_t{row.token} * all_heads + first_head) * a.d;
  for (int i = static_cast<int>(threadIdx.x); i < kRowHeads * a.d; i += kThreads) {
    scratch.q[i] = i < heads * a.d ? a.scale * to_float(q[i]) : 0.0f;
  }
  if (threadIdx.x < kRowHeads) {
    const int h = static_cast<int>(threadIdx.x);
    scratch.lse[h] = h < heads ? a.lse[(int64_t{first_head} + h) * a.grid.tokens + row.token] : 0;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kWarps * a.parts.bins; i += kThreads) {
    scratch.bins[i] = 0;
  }
  __syncthreads();
}

/// Writes the sums of the block's warps, whose own are in `scratch.sums`.
template <class T>
__device__ void write_parts(const SampledRows<T>& a, const Scratch& scratch, float* to) {
  __syncthreads();
  constexpr int kOfWarp = 3 * kRowHeads + kRowKinds;
  for (int i = static_cast<int>(threadIdx.x); i < kRowHeads; i += kThreads) {
    RowSoftmax full;
    for (int warp = 0; warp < kWarps; ++warp) {
      const float* const from = scratch.sums + warp * kOfWarp + 3 * i;
      full.add({from[0], from[1], from[2]});
    }
    to[3 * i] = full.highest;
    to[3 * i + 1] = full.all;
    to[3 * i + 2] = full.kept;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kRowKinds + a.parts.bins; i += kThreads) {
    const bool kind = i < kRowKinds;
    float sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      sum += kind ? scratch.sums[warp * kOfWarp + 3 * kRowHeads + i]
                  : scratch.bins[warp * a.parts.bins + i - kRowKinds];
    }
    to[3 * kRowHeads + i] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) measure_keys(SampledRows<T> a) {
  SharedMemory shared;
  const Scratch scratch{shared.take<float>(kRowHeads * a.d), shared.take<float>(kRowHeads),
                        shared.take<float>(kWarps * a.parts.bins),
                        shared.take<float>(kWarps * (3 * kRowHeads + kRowKinds))};
  const int sample = static_cast<int>(blockIdx.x);
  const int place = static_cast<int>(blockIdx.y) / a.parts.parts;
  const int part = static_cast<int>(blockIdx.y) % a.parts.parts;
  const int chunk = static_cast<int>(blockIdx.z);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const RowPlace row = find_place(a, sample);
  const int key_origin = find_key_origin(a, row);
  const int kv_head = a.groups.at[place];
  const int left = a.group_heads - part * kRowHeads;
  const int heads = left < kRowHeads ? left : kRowHeads;
  load_queries(a, row, kv_head * a.group_heads + part * kRowHeads, heads, scratch);
  const RowChoice choice(a, place, row);
  const int begin = chunk * a.parts.chunk;
  const int end = std::min(begin + a.parts.chunk, row.at + 1);
  const int first_bin = bin_of(a, row.shift, begin);
  RowSoftmax full[kRowHeads];
  float kinds[kRowKinds] = {};
  for (int first = begin; first < end; first += kThreads) {
    const int key = first + static_cast<int>(threadIdx.x);
    float mass = 0;
    if (key < end) {
      float s[kRowHeads];
      multiply(a, a.k + (int64_t{key_origin + key} * a.kv_heads + kv_head) * a.d, scratch.q, s);
      const RowBlock use = choice.use(key / a.grid.block);
      for (int h = 0; h < kRowHeads; ++h) {
        if (h >= heads) continue;
        full[h].add({s[h], 1, use.attended ? 1.0f : 0.0f});
        if (use.attended) mass += expf(s[h] + use.log_gate - scratch.lse[h]);
      }
      mass /= static_cast<float>(a.group_heads);
      for (int kind = 0; kind < kRowKinds; ++kind) kinds[kind] += use.kind == kind ? mass : 0.0f;
    }
    add_to_bins(mass, bin_of(a, row.shift, std::min(key, row.at)) - first_bin,
                scratch.bins + warp * a.parts.bins);
  }
  float* const sums = scratch.sums + warp * (3 * kRowHeads + kRowKinds);
  for (int h = 0; h < kRowHeads; ++h) {
    const RowSoftmax of_warp = add_over_warp(full[h]);
    if (lane != 0) continue;
    sums[3 * h] = of_warp.highest;
    sums[3 * h + 1] = of_warp.all;
    sums[3 * h + 2] = of_warp.kept;
  }
  for (int kind = 0; kind < kRowKinds; ++kind) {
    const float sum = warp_sum(kinds[kind]);
    if (lane == 0) sums[3 * kRowHeads + kind] = sum;
  }
  write_parts(a, scratch, a.parts.at(sample, place, a.places, part, chunk));
}

/// Kept mass and attended masses of a sampled row, from the parts, into `sums` of every lane.
template <class T>
__device__ void add_masses(const SampledRows<T>& a, int sample, int place, double (&sums)[kSums]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float kept = 0;
  for (int head = lane; head < a.group_heads; head += kWarpSize) {
    RowSoftmax full;
    if (a.sink_logits != nullptr) {
      full.add({a.sink_logits[a.groups.at[place] * a.group_heads + head], 1, 1});
    }
    for (int chunk = 0; chunk < a.parts.chunks; ++chunk) {
      const float* const from =
          a.parts.at(sample, place, a.places, head / kRowHeads, chunk) + head % kRowHeads * 3;
      full.add({from[0], from[1], from[2]});
    }
    kept += full.kept / full.all;
  }
  sums[GateFigures::kKept] += static_cast<double>(warp_sum(kept)) / a.group_heads;
  constexpr int kPlaces[kRowKinds] = {GateFigures::kSink, GateFigures::kWindow,
                                      GateFigures::kSelected};
  for (int kind = 0; kind < kRowKinds; ++kind) {
    float mass = 0;
    for (int i = lane; i < a.parts.parts * a.parts.chunks; i += kWarpSize) {
      mass += a.parts.at(sample, place, a.places, i / a.parts.chunks,
                         i % a.parts.chunks)[3 * kRowHeads + kind];
    }
    sums[kPlaces[kind]] += static_cast<double>(warp_sum(mass));
  }
  sums[GateFigures::kRows] += 1;
}

/// exp(x - highest) sums to `total` over a row.
struct Softmax {
  float highest;
  float total;
};
__device__ Softmax softmax(const float* x, int count, int lane) {
  float highest = x[0];
  for (int s = lane; s < count; s += kWarpSize) highest = fmaxf(highest, x[s]);
  highest = warp_max(highest);
  float total = 0;
  for (int s = lane; s < count; s += kWarpSize) total += expf(x[s] - highest);
  return {highest, warp_sum(total)};
}

/// Entropy and KL of a row that chose at least two blocks; `heads` is the warp's, [g].
template <class T>
__device__ void compare_with_attention(const SampledRows<T>& a, const RowChoice& choice,
                                       int64_t row, Softmax* heads, double (&sums)[kSums]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const float* const block_lse = a.chosen.block_lse + row * a.group_heads * a.chosen.kept;
  for (int h = 0; h < a.group_heads; ++h) {
    const Softmax of_head = softmax(block_lse + int64_t{h} * a.chosen.kept, choice.count(), lane);
    if (lane == 0) heads[h] = of_head;
  }
  __syncwarp();
  const Softmax gate = softmax(choice.scores(), choice.count(), lane);
  const float lse = gate.highest + logf(gate.total);
  float entropy = 0;
  float kl = 0;
  for (int s = lane; s < choice.count(); s += kWarpSize) {
    float target = 0;
    for (int h = 0; h < a.group_heads; ++h) {
      const float x = block_lse[int64_t{h} * a.chosen.kept + s];
      target += expf(x - heads[h].highest) / heads[h].total;
    }
    target /= static_cast<float>(a.group_heads);
    const float log_p = choice.scores()[s] - lse;
    entropy -= expf(log_p) * log_p;
    if (target >= 1e-37f) kl += target * (logf(target) - log_p);
  }
  __syncwarp();
  sums[GateFigures::kEntropy] += static_cast<double>(warp_sum(entropy));
  sums[GateFigures::kKl] += static_cast<double>(warp_sum(kl));
  sums[GateFigures::kChoosing] += 1;
}

template <class T>
__device__ void add_choice(const SampledRows<T>& a, int place, const RowPlace& row, Softmax* heads,
                           double (&sums)[kSums]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const RowChoice choice(a, place, row);
  if (choice.resting()) return;
  if (choice.count() >= 2) {
    compare_with_attention(a, choice, int64_t{place} * a.grid.tokens + row.token, heads, sums);
  }
  if (!choice.dropped()) return;
  float least = -kLowest;
  float ramped = 0;
  for (int s = lane; s < choice.count(); s += kWarpSize) {
    least = fminf(least, choice.scores()[s]);
    ramped += choice.openness(s) < 1 ? 1.0f : 0.0f;
  }
  sums[GateFigures::kDropping] += 1;
  sums[GateFigures::kMargin] += static_cast<double>(-warp_max(-least) - choice.tau());
  sums[GateFigures::kRamped] += static_cast<double>(warp_sum(ramped)) / choice.count();
}

/// A lane per column of the map; rows one after another.
template <class T>
__device__ void add_map(const SampledRows<T>& a, float* map, int samples, int place) {
  const int bin = static_cast<int>(threadIdx.x);
  if (bin > kMapColumns) return;
  for (int sample = 0; sample < samples; ++sample) {
    const RowPlace row = find_place(a, sample);
    float* const to =
        map + (int64_t{place} * kMapColumns + bin_of(a, row.shift, row.at)) * (kMapColumns + 1);
    if (bin == kMapColumns) {
      to[bin] += 1;
      continue;
    }
    float mass = 0;
    for (int chunk = 0; chunk < a.parts.chunks; ++chunk) {
      const int column = bin - bin_of(a, row.shift, chunk * a.parts.chunk);
      if (column < 0 || column >= a.parts.bins) continue;
      for (int part = 0; part < a.parts.parts; ++part) {
        mass +=
            a.parts.at(sample, place, a.places, part, chunk)[3 * kRowHeads + kRowKinds + column];
      }
    }
    to[bin] += mass;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_samples(float* figures, float* map, SampledRows<T> a, int samples) {
  SharedMemory shared;
  auto* const of_warps = shared.take<double>(kWarps * kSums);
  auto* const heads = shared.take<Softmax>(kWarps * a.group_heads);
  const int place = static_cast<int>(blockIdx.x);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  double sums[kSums] = {};
  for (int sample = warp; sample < samples; sample += kWarps) {
    add_masses(a, sample, place, sums);
    add_choice(a, place, find_place(a, sample), heads + warp * a.group_heads, sums);
  }
  if (threadIdx.x % kWarpSize == 0) {
    for (int i = 0; i < kSums; ++i) of_warps[warp * kSums + i] = sums[i];
  }
  __syncthreads();
  const int figure = static_cast<int>(threadIdx.x);
  if (figure < kSums) {
    double sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += of_warps[i * kSums + figure];
    figures[int64_t{place} * GateFigures::kSize + figure] += static_cast<float>(sum);
  }
  if (map != nullptr) add_map(a, map, samples, place);
}

/// How a row of at most `keys` keys is cut, for `heads` heads of a group.
RowParts cut(int64_t keys, int64_t heads, int64_t sequence_length) {
  const int64_t chunk = std::max<int64_t>(kLeastChunk, (keys + kMostChunks - 1) / kMostChunks);
  RowParts parts{};
  parts.chunk = static_cast<int>((chunk + kThreads - 1) / kThreads * kThreads);
  parts.chunks = static_cast<int>((keys + parts.chunk - 1) / parts.chunk);
  parts.parts = static_cast<int>((heads + kRowHeads - 1) / kRowHeads);
  // A chunk that begins in the middle of a bin reaches into one more.
  parts.bins = static_cast<int>(std::min<int64_t>(
      kMapColumns,
      (int64_t{parts.chunk} * kMapColumns + sequence_length - 1) / sequence_length + 1));
  parts.size = 3 * kRowHeads + kRowKinds + parts.bins;
  return parts;
}

RowsChosen chosen_of(const MeasureGateRows& a) {
  if (a.selection.blocks.empty()) return {};
  return {.blocks = a.selection.blocks.as<int32_t>().data(),
          .scores = a.selection.scores.as<float>().data(),
          .counts = a.selection.counts.as<int32_t>().data(),
          .widths = a.ramp.widths.as<float>().data(),
          .block_lse = a.block_lse.as<float>().data(),
          .strength = a.ramp.strength,
          .kept = static_cast<int>(a.selection.kept())};
}

template <class T>
void measure(Stream& stream, const MeasureGateRows& a) {
  const auto groups = static_cast<int64_t>(a.groups.size());
  const int64_t samples = a.samples.shape()[0];
  const int64_t kv_heads = a.k.shape()[1];
  const int64_t group_heads = a.q.shape()[1] / kv_heads;
  const T* const k = a.k.as<T>().data();
  // A row sees no more keys than its sequence has, nor than there are.
  RowParts parts = cut(std::min(a.sequence_length, a.grid.keys()), group_heads, a.sequence_length);
  parts.sums = Workspace(stream, "measure_gate_rows")
                   .take<float>(samples * groups * parts.parts * parts.chunks * parts.size);
  const SampledRows<T> rows{
      .samples = a.samples.as<int32_t>().data(),
      .positions = a.grid.positions.as<int32_t>().data(),
      .q = a.q.as<T>().data(),
      .k = k,
      .lse = a.lse.as<float>().data(),
      .sink_logits = a.sink_logits.empty() ? nullptr : a.sink_logits.as<float>().data(),
      .grid = view_of(a.grid),
      .groups = group_list(a.groups, "measure_gate_rows"),
      .chosen = chosen_of(a),
      .parts = parts,
      .places = static_cast<int>(groups),
      .sequence_length = static_cast<int>(a.sequence_length),
      .group_heads = static_cast<int>(group_heads),
      .kv_heads = static_cast<int>(kv_heads),
      .d = static_cast<int>(a.q.shape()[2]),
      .sink_blocks = static_cast<int>(a.rule.sink_blocks),
      .window_blocks = static_cast<int>(a.rule.window_blocks),
      .scale = a.scale,
      .packs = in_packs(k, a.k.shape()[2])};
  const int64_t shared = shared_bytes_of<float>(kRowHeads * rows.d) +
                         shared_bytes_of<float>(kRowHeads) +
                         shared_bytes_of<float>(kWarps * parts.bins) +
                         shared_bytes_of<float>(kWarps * (3 * kRowHeads + kRowKinds));
  launch(stream, measure_keys<T>,
         dim3(static_cast<unsigned>(samples), static_cast<unsigned>(groups * parts.parts),
              static_cast<unsigned>(parts.chunks)),
         kThreads, shared, rows);
  launch(stream, add_samples<T>, dim3(static_cast<unsigned>(groups)), kThreads,
         shared_bytes_of<double>(kWarps * kSums) + shared_bytes_of<Softmax>(kWarps * group_heads),
         a.figures.as<float>().data(), a.map.empty() ? nullptr : a.map.as<float>().data(), rows,
         static_cast<int>(samples));
}

}  // namespace

void measure_gate_rows(Stream& stream, const MeasureGateRows& a) {
  with_float_type(a.q.dtype(), [&]<class T>() { measure<T>(stream, a); });
}

}  // namespace tessera::gpu
