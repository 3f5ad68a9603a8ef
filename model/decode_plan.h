#pragma once

#include <span>

#include "kernels/decode_attention.h"
#include "model/token_plan.h"

namespace tessera {

/// What plans of decoding must know of the model and of its caches.
struct DecodeOptions {
  int64_t block;  ///< tokens per page
  int64_t gate_keys;
  int64_t smear_tokens;
  WindowCache window;
};

/// One new token of each of several sequences, which are at positions of their own: what the layers
/// ask of them while decoding. All of it is on the device.
struct DecodePlan {
  TokenPlan tokens;               ///< a sequence of one token each
  ConstTensorView places;         ///< [sequences], i32: 0, 1, ...
  ConstTensorView window_rows;    ///< [sequences], i32: where WindowCache keeps the tokens
  ConstTensorView window_spans;   ///< [1, sequences, 3, 2], i32: CacheSpan
  ConstTensorView window_counts;  ///< [1, sequences], i32
  ConstTensorView all_spans;      ///< [1, sequences, 1, 2], i32: of caches that keep all
  ConstTensorView all_counts;     ///< [1, sequences], i32
  /// [sequences], i32: the part of a page that the token completes, by its number in the sequence;
  /// -1: none. There are gate_keys parts to a page.
  ConstTensorView completed_parts;
};

/// What decoding is told of the new tokens, both in host memory.
struct DecodeInput {
  /// [sequences, 1 + smear tokens], i32: ids of the new token of each sequence and, behind it, of
  /// those 1, 2, ... places before; -1 where the sequence has none.
  ConstTensorView ids;
  std::span<const int32_t> positions;  ///< [sequences], >= 0
};

/// Tensors are in the arena. Throws where shapes do not fit.
DecodePlan plan_decoding(Stream& stream, Arena& arena, const DecodeInput& input,
                         const DecodeOptions& options);

/// Where the caches of one sequence keep the tokens of a prompt, which are whole pages. All of it
/// is on the device.
struct PrefillPlan {
  int64_t place = 0;             ///< of the sequence
  int64_t pages = 0;             ///< of the prompt
  ConstTensorView places;        ///< [tokens], i32: `place`
  ConstTensorView rows;          ///< [tokens], i32: 0, 1, ...
  ConstTensorView window_rows;   ///< [tokens], i32; -1: has left the window
  ConstTensorView page_numbers;  ///< [pages], i32: 0, 1, ...
};

/// Tensors are in the arena. Throws where the tokens are no whole pages.
PrefillPlan plan_prefill(Stream& stream, Arena& arena, int64_t place, int64_t tokens,
                         const DecodeOptions& options);

}  // namespace tessera
