#include "runtime/train/expert_load.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

namespace tessera {

namespace {

double most_by_mean(std::span<const int64_t> tokens) {
  const int64_t sum = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  if (sum == 0) return 0;
  const int64_t most = *std::max_element(tokens.begin(), tokens.end());
  return static_cast<double>(most) * static_cast<double>(tokens.size()) / static_cast<double>(sum);
}

}  // namespace

ExpertLoad expert_load(ConstTensorView counts, int expert_ranks) {
  ExpertLoad load;
  if (counts.empty()) return load;
  const int64_t experts = counts.shape()[1];
  const auto ranks = static_cast<size_t>(expert_ranks);
  load.rank_tokens.assign(ranks, 0);
  for (int64_t layer = 0; layer < counts.shape()[0]; ++layer) {
    std::vector<int64_t> tokens;
    for (const float count : counts.rows(layer, 1).as<float>()) {
      tokens.push_back(std::llround(count));
    }
    std::vector<int64_t> of_rank(ranks, 0);
    for (size_t e = 0; e < tokens.size(); ++e) {
      of_rank[e * ranks / static_cast<size_t>(experts)] += tokens[e];
    }
    for (size_t r = 0; r < ranks; ++r) load.rank_tokens[r] += of_rank[r];
    load.ranks = std::max(load.ranks, most_by_mean(of_rank));
    const double worst = most_by_mean(tokens);
    load.layer_tokens.push_back(std::move(tokens));
    if (worst <= load.experts) continue;
    load.experts = worst;
    load.layer = layer;
    load.expert_tokens = load.layer_tokens.back();
  }
  return load;
}

}  // namespace tessera
