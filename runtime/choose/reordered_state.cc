#include "runtime/choose/reordered_state.h"

#include <algorithm>
#include <cstring>

#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"
#include "runtime/export/hugging_face.h"
#include "runtime/export/model_parameters.h"
#include "runtime/train/model_options.h"

namespace tessera {

namespace {

constexpr int64_t kAlignment = 64;

/// The first rows of a gate are the old ones, as far as they go.
void resize_gate(const TensorFacts& facts, ConstTensorView from, const Parameter& first,
                 TensorView to) {
  const int64_t kept = std::min(from.shape()[0], to.shape()[0]);
  const int64_t added = to.shape()[0] - kept;
  std::memcpy(to.data(), from.data(), static_cast<size_t>(to.rows(0, kept).bytes()));
  if (added == 0) return;
  const TensorView rest = to.rows(kept, added);
  const ConstTensorView begin = ConstTensorView(first.value).rows(kept, added);
  if (facts.kind == TensorKind::kExpAvg || facts.kind == TensorKind::kExpAvgSq) {
    std::memset(rest.data(), 0, static_cast<size_t>(rest.bytes()));
  } else if (facts.kind == TensorKind::kParameter) {
    std::memcpy(rest.data(), begin.data(), static_cast<size_t>(rest.bytes()));
  } else {
    CHECK(facts.kind == TensorKind::kMaster, "group order: a gate has a ", name_of(facts.kind));
    with_float_type(begin.dtype(), [&]<class T>() {
      std::ranges::transform(begin.as<T>(), rest.as<float>().begin(),
                             [](T value) { return to_float(value); });
    });
  }
}

}  // namespace

ReorderedState::ReorderedState(const CheckpointReader& reader, std::vector<GroupOrder> orders,
                               const TrainConfig& config, int64_t piece_bytes)
    : reader_(reader), orders_(std::move(orders)) {
  declare_gates(config);
  const std::vector<TensorFacts>& all = reader.tensors();
  int64_t most = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (pieces_.empty() || pieces_.back().bytes + room_for(all[i]) > piece_bytes) {
      pieces_.push_back({.begin = i, .end = i});
    }
    pieces_.back().end = i + 1;
    pieces_.back().bytes += room_for(all[i]);
    most = std::max(most, pieces_.back().bytes);
  }
  read_ = Buffer(Device{}, most);
  reordered_ = Buffer(Device{}, most);
  const CheckpointFacts& facts = reader.facts();
  contents_.step = facts.id.step;
  contents_.consumed_tokens = facts.consumed_tokens;
  contents_.consumed_samples = facts.consumed_samples;
  contents_.mesh = facts.mesh;
  contents_.determinism_flags = facts.determinism_flags;
  for (const std::string& name : reader.blob_names()) {
    if (name != kConfigBlob) contents_.blobs[name] = reader.read_blob(name);
  }
  contents_.resolved_config = to_text(config);
}

void ReorderedState::declare_gates(const TrainConfig& config) {
  for (const Parameter& parameter : model_parameters(config.model(), value_dtype(config))) {
    if (is_gate_parameter(parameter.name)) gates_.declare(parameter);
  }
  gates_.allocate(Device{}, /*gradients=*/false);
  Stream stream(Device{}, 1);
  gates_.initialize(stream, config.seed());
}

const Parameter* ReorderedState::gate_of(const std::string& parameter) const {
  const auto at = std::ranges::find(gates_.all(), parameter, &Parameter::name);
  return at == gates_.all().end() ? nullptr : &*at;
}

Shape ReorderedState::new_shape(const TensorFacts& facts) const {
  const Parameter* gate = gate_of(facts.name);
  return gate != nullptr ? gate->shard.whole : facts.shape;
}

int64_t ReorderedState::room_for(const TensorFacts& facts) const {
  const int64_t bytes = std::max(facts.bytes, new_shape(facts).elements() * size_of(facts.dtype));
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

TensorView ReorderedState::target(const TensorFacts& facts, int64_t at) const {
  return reordered_.view(facts.dtype, new_shape(facts), at);
}

void ReorderedState::fill(int piece) {
  const Piece& of = pieces_[static_cast<size_t>(piece)];
  int64_t at = 0;
  for (size_t i = of.begin; i < of.end; ++i) {
    const TensorFacts& facts = reader_.tensors()[i];
    const NamedTensor into(facts.name, Shard::replicated(facts.shape),
                           read_.view(facts.dtype, facts.shape, at));
    const TensorView to = target(facts, at);
    reader_.read(facts.kind, {&into, 1});
    if (const std::optional<GroupAxis> groups = group_axis(facts.name)) {
      reorder_groups(into.data, groups->axis, orders_.at(static_cast<size_t>(groups->layer)), to);
    } else if (const Parameter* gate = gate_of(facts.name)) {
      resize_gate(facts, into.data, *gate, to);
    } else {
      std::memcpy(to.data(), into.data.data(), static_cast<size_t>(facts.bytes));
    }
    at += room_for(facts);
  }
}

const CheckpointContents& ReorderedState::contents(int piece) {
  const Piece& of = pieces_[static_cast<size_t>(piece)];
  contents_.groups.clear();
  tensors_.clear();
  int64_t at = 0;
  for (size_t i = of.begin; i < of.end; ++i) {
    const TensorFacts& facts = reader_.tensors()[i];
    if (contents_.groups.empty() || contents_.groups.back().kind != facts.kind) {
      tensors_.emplace_back();
      contents_.groups.push_back({.kind = facts.kind, .tensors = {}});
    }
    tensors_.back().emplace_back(facts.name, Shard::replicated(new_shape(facts)),
                                 target(facts, at));
    at += room_for(facts);
  }
  for (size_t kind = 0; kind < tensors_.size(); ++kind) {
    contents_.groups[kind].tensors = tensors_[kind];
  }
  return contents_;
}

}  // namespace tessera
