#include "runtime/score/task_scores.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "kernels/core/copy.h"
#include "model/single_rank.h"
#include "model/step_sums.h"
#include "runtime/config/train.pb.h"
#include "runtime/data/data_loader.h"
#include "runtime/generate/loaded_model.h"
#include "runtime/score/pass_memory.h"
#include "runtime/train/global_batch.h"

namespace tessera {

namespace {

constexpr int64_t kTokens = 8192;  // of a pass

/// Which blocks a layer's global groups chose in one pass, [groups, tokens, slots].
struct Choices {
  std::vector<int32_t> blocks;
  Shape shape;

  /// By the token in all groups.
  int64_t chosen(int64_t token) const {
    int64_t count = 0;
    for (int64_t group = 0; group < shape[0]; ++group) {
      const auto begin = blocks.begin() + (group * shape[1] + token) * shape[2];
      count += std::count_if(begin, begin + shape[2] - 1, [](int32_t block) { return block >= 0; });
    }
    return count;
  }
  bool contains(int64_t token, int32_t block) const {
    const int64_t slots = shape[2];
    for (int64_t group = 0; group < shape[0]; ++group) {
      const auto begin = blocks.begin() + (group * shape[1] + token) * slots;
      // The last slot is the runner-up, which is not seen.
      if (std::find(begin, begin + slots - 1, block) != begin + slots - 1) return true;
    }
    return false;
  }
};

class TaskPass {
 public:
  TaskPass(Stream& stream, const TaskScoreOptions& options);
  TaskScores run();

 private:
  void run_samples(int64_t first, int64_t count);
  void count_answer(int64_t row, int64_t position, std::span<const Answer> sources);
  void count_visits(int64_t token, int64_t asking);
  bool is_forced(int64_t asking, int64_t block) const;
  bool is_hit(int64_t token) const;

  Stream& stream_;
  LoadedModel loaded_;
  TokenDataset data_;
  DataLoader loader_;
  int64_t length_;
  int64_t samples_;
  int64_t per_pass_;
  StepPlan plan_;
  MicroBatch batch_;
  std::vector<float> logits_;
  std::vector<Choices> layers_;
  std::vector<int64_t> seen_;  // sources whose block is seen, by layer
  int64_t sources_ = 0;
  double visited_ = 0;  // share of visible blocks that asking tokens visit, summed
  int64_t visitors_ = 0;
  int64_t hits_ = 0;
  int64_t far_hits_ = 0;
  TaskScores scores_;
};

/// The samples of a task data set have one length.
int64_t sample_length(const std::filesystem::path& data) {
  const DatasetDescription content = read_description(data);
  if (content.task) return content.task->length;
  throw Error(ExitCode::kUsage, concat("--data ", data.string(),
                                       " has no answers; make a data set with tessera data task"));
}

TaskPass::TaskPass(Stream& stream, const TaskScoreOptions& options)
    : stream_(stream),
      loaded_(load_model(stream, options.checkpoint, {.precision = options.precision})),
      data_(options.data, kValidationSplit, loaded_.config->model().vocabulary()),
      loader_(data_, {.sequence_length = sample_length(options.data),
                      .document_boundaries = false,
                      .shuffle = false}),
      length_(sample_length(options.data)),
      samples_(options.samples > 0 ? options.samples : loader_.windows()),
      per_pass_(std::clamp<int64_t>(kTokens / length_, 1, samples_)) {
  if (samples_ > loader_.windows()) {
    throw Error(ExitCode::kUsage, concat("--samples is ", samples_, ", but ", data_.name(), " has ",
                                         loader_.windows()));
  }
  plan_ = plan_of(loaded_, options.step, length_);
  scores_ = {.kind = data_.description().task->kind,
             .length = length_,
             .samples = samples_,
             .window = plan_.window,
             .kept_blocks = plan_.kept_blocks};
}

TaskScores TaskPass::run() {
  const ModelConfig& model = loaded_.config->model();
  const SparsityPlan sparsity = sparsity_plan(plan_, 0);
  Arena arena(stream_.device(), pass_memory(model, {.dtype = loaded_.dtype,
                                                    .sequences = per_pass_,
                                                    .length = length_,
                                                    .segments = per_pass_,
                                                    .sparsity = sparsity,
                                                    .kept_of_layers = plan_.kept_of_layers}));
  StepSumsBuffer sums(stream_.device(), *loaded_.model);
  SingleRank alone(*loaded_.model);
  Transformer::Run pass = alone.run(stream_, arena, sparsity, sums.views());
  pass.kept_of_layers = plan_.kept_of_layers;
  pass.on_selection = [this](const BlockSelection& chosen) {
    layers_.push_back({to_vector<int32_t>(stream_, chosen.blocks), chosen.blocks.shape()});
  };
  for (int64_t first = 0; first < samples_; first += per_pass_) {
    const int64_t count = std::min(per_pass_, samples_ - first);
    loader_.fill(first, count, batch_);
    const Shape shape{count * length_, model.vocabulary()};
    const Buffer logits(stream_.device(), shape.elements() * 4);
    layers_.clear();
    loaded_.model->logits(pass,
                          {.tokens = host_view(batch_.tokens),
                           .targets = host_view(batch_.targets),
                           .starts = host_view(batch_.starts),
                           .sequences = count},
                          logits.view(DType::kF32, shape));
    logits_ = to_vector<float>(stream_, logits.view(DType::kF32, shape));
    run_samples(first, count);
  }
  const auto share = [](int64_t part, int64_t all) {
    return static_cast<double>(part) / static_cast<double>(std::max<int64_t>(1, all));
  };
  scores_.accuracy = share(hits_, scores_.answers);
  scores_.far_accuracy = share(far_hits_, scores_.far_answers);
  for (const int64_t seen : seen_) scores_.block_recall.push_back(share(seen, sources_));
  const auto stats = sums.read(stream_).gate_stats.as<float>();
  if (visitors_ > 0) scores_.asking_kept_share = visited_ / static_cast<double>(visitors_);
  if (stats[0] > 0) scores_.kept_share = 1 - double{stats[1]} / double{stats[0]};
  return scores_;
}

/// Counts the answers of samples that have just gone through the model.
void TaskPass::run_samples(int64_t first, int64_t count) {
  seen_.resize(layers_.size());
  const std::span<const Answer> answers = data_.answers();
  for (int64_t row = 0; row < count; ++row) {
    const int64_t begin = (first + row) * length_;
    auto answer = std::ranges::lower_bound(answers, begin, {}, &Answer::position);
    while (answer != answers.end() && answer->position < begin + length_) {
      auto next = answer;
      while (next != answers.end() && next->position == answer->position) ++next;
      count_answer(row, begin, {answer, next});
      answer = next;
    }
  }
}

void TaskPass::count_answer(int64_t row, int64_t begin, std::span<const Answer> sources) {
  const int64_t asking = sources[0].position - 1 - begin;  // in the sample
  const int64_t token = row * length_ + asking;            // in the pass
  const AttentionConfig& attention = loaded_.config->model().attention();
  bool far = false;
  for (const Answer& answer : sources) {
    const int64_t source = answer.source - begin;
    far = far || (asking - source >= attention.window() && source >= attention.sink_tokens());
    ++sources_;
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      const auto block = static_cast<int32_t>(source / attention.block());
      if (is_forced(asking, block) || layers_[layer].contains(token, block)) ++seen_[layer];
    }
  }
  count_visits(token, asking);
  const bool hit = is_hit(token);
  ++scores_.answers;
  hits_ += hit ? 1 : 0;
  scores_.far_answers += far ? 1 : 0;
  far_hits_ += far && hit ? 1 : 0;
}

void TaskPass::count_visits(int64_t token, int64_t asking) {
  const int64_t visible = asking / loaded_.config->model().attention().block() + 1;
  int64_t forced = 0;
  for (int64_t block = 0; block < visible; ++block) forced += is_forced(asking, block) ? 1 : 0;
  for (const Choices& layer : layers_) {
    const int64_t groups = layer.shape[0];
    visited_ +=
        static_cast<double>(forced * groups + layer.chosen(token)) / static_cast<double>(visible);
    visitors_ += groups;
  }
}

bool TaskPass::is_forced(int64_t asking, int64_t block) const {
  const AttentionConfig& attention = loaded_.config->model().attention();
  const int64_t own = asking / attention.block();
  return block < attention.sink_blocks() || block > own - attention.window_blocks();
}

bool TaskPass::is_hit(int64_t token) const {
  const int64_t vocabulary = loaded_.config->model().vocabulary();
  const auto row = std::span(logits_).subspan(static_cast<size_t>(token * vocabulary),
                                              static_cast<size_t>(vocabulary));
  const float target = row[static_cast<size_t>(batch_.targets[static_cast<size_t>(token)])];
  return std::ranges::all_of(row, [=](float logit) { return logit <= target; });
}

}  // namespace

TaskScores task_scores(Stream& stream, const TaskScoreOptions& options) {
  return TaskPass(stream, options).run();
}

std::string to_json(const TaskScores& scores) {
  return nlohmann::ordered_json{{"task", scores.kind},
                                {"length", scores.length},
                                {"samples", scores.samples},
                                {"answers", scores.answers},
                                {"accuracy", scores.accuracy},
                                {"window", scores.window},
                                {"far_answers", scores.far_answers},
                                {"far_accuracy", scores.far_accuracy},
                                {"kept_blocks", scores.kept_blocks},
                                {"kept_share", scores.kept_share},
                                {"asking_kept_share", scores.asking_kept_share},
                                {"block_recall", scores.block_recall}}
      .dump();
}

}  // namespace tessera
