#include "runtime/choose/reordered_state.h"

#include <algorithm>
#include <cstring>

namespace tessera {

namespace {

constexpr int64_t kAlignment = 64;

int64_t room_for(const TensorFacts& facts) {
  return (facts.bytes + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

ReorderedState::ReorderedState(const CheckpointReader& reader, std::vector<GroupOrder> orders,
                               std::string config, int64_t piece_bytes)
    : reader_(reader), orders_(std::move(orders)) {
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
  contents_.resolved_config = std::move(config);
}

NamedTensor ReorderedState::named(const TensorFacts& facts, const Buffer& memory,
                                  int64_t at) const {
  return {facts.name, Shard::replicated(facts.shape), memory.view(facts.dtype, facts.shape, at)};
}

void ReorderedState::fill(int piece) {
  const Piece& of = pieces_[static_cast<size_t>(piece)];
  int64_t at = 0;
  for (size_t i = of.begin; i < of.end; ++i) {
    const TensorFacts& facts = reader_.tensors()[i];
    const NamedTensor into = named(facts, read_, at);
    const TensorView target = reordered_.view(facts.dtype, facts.shape, at);
    reader_.read(facts.kind, {&into, 1});
    if (const std::optional<GroupAxis> groups = group_axis(facts.name)) {
      reorder_groups(into.data, groups->axis, orders_.at(static_cast<size_t>(groups->layer)),
                     target);
    } else {
      std::memcpy(target.data(), into.data.data(), static_cast<size_t>(facts.bytes));
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
    tensors_.back().push_back(named(facts, reordered_, at));
    at += room_for(facts);
  }
  for (size_t kind = 0; kind < tensors_.size(); ++kind) {
    contents_.groups[kind].tensors = tensors_[kind];
  }
  return contents_;
}

}  // namespace tessera
