#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/single_rank.h"
#include "model/step_sums.h"
#include "runtime/generate/loaded_model.h"
#include "runtime/generate/sampler.h"
#include "runtime/train/step_graph.h"

namespace tessera {

/// A text to be continued.
struct GenerateRequest {
  std::vector<int32_t> prompt;  ///< at least one token
  int64_t tokens;               ///< to draw at most, >= 1
  SamplerOptions sampler;
};

/// What a prompt was continued with.
struct GeneratedText {
  std::vector<int32_t> tokens;
  bool ended = false;  ///< at the end of a document, which is not among the tokens
};

/// Continues texts with a cached model, a token of each per step. Steps have a fixed number of
/// places; when a text ends, the next one that waits takes its place: the whole blocks of its
/// prompt are read in one forward, what is left of it a token per step. A text does not depend on
/// those beside it, but for the rounding of matrix products, whose order of additions may be
/// another one for another number of rows. On a GPU a step is a graph.
class Generator {
 public:
  /// Room for size.sequences texts at a time, of size.tokens tokens each, prompt included.
  /// Attention is as in step `step` of the model's run; 0: as in its last one. The model is one
  /// that was loaded without capacities. All references must outlive this.
  Generator(const LoadedModel& loaded, Stream& stream, const CacheSize& size, int64_t step = 0);

  /// Calls on_text(i, text) as soon as request i has ended: not in the order of requests.
  /// Throws Error(kUsage) before anything is computed when a request does not fit, or a token is
  /// not of the vocabulary.
  void run(std::span<const GenerateRequest> requests, int32_t end_of_document,
           const std::function<void(size_t, const GeneratedText&)>& on_text);

 private:
  struct Place {
    const GenerateRequest* request = nullptr;  ///< nullptr: free
    size_t number = 0;
    int64_t position = 0;  ///< of the next token to be read
    GeneratedText text = {};

    int32_t token(int64_t at) const;
    /// Takes the model's word for what follows. Returns whether the text is at its end.
    bool draw(std::span<const float> logits, int32_t end_of_document);
  };

  void check(std::span<const GenerateRequest> requests) const;
  /// Tokens of a prompt that are read in one forward: not the last, whose logits are wanted.
  int64_t prefilled(const GenerateRequest& request) const;
  void make_room(std::span<const GenerateRequest> requests);
  void prefill(size_t number, Place& place);
  Transformer::Run what_to_run();
  void decode(std::span<const Place> places);

  const LoadedModel& loaded_;
  Stream& stream_;
  CacheSize size_;
  SparsityPlan plan_;
  std::vector<int64_t> kept_of_layers_;
  std::vector<AttentionCache> caches_;
  StepSumsBuffer sums_;
  SingleRank alone_;
  std::unique_ptr<Arena> arena_;
  int64_t longest_prefill_ = 0;  ///< that the arena has room for
  StepGraph graph_;
  Buffer memory_;
  TensorView logits_;  ///< [sequences, vocabulary], f32
};

}  // namespace tessera
