#include "model/whole_parameters.h"

#include <cstring>
#include <map>

#include "kernels/core/copy.h"

namespace tessera {

namespace {

void copy_part(const Shard& shard, ConstTensorView part, TensorView whole) {
  const int64_t width = size_of(part.dtype());
  const char* from = static_cast<const char*>(part.data());
  char* to = static_cast<char*>(whole.data());
  for_each_run(shard, [&](const ShardRun& run) {
    std::memcpy(to + run.whole * width, from + run.local * width,
                static_cast<size_t>(run.count * width));
  });
}

}  // namespace

WholeParameters::WholeParameters(Stream& stream, const ParameterStore& store, Of what) {
  struct Open {
    TensorView whole;
    int64_t missing;
  };
  std::map<std::string, Open> open;
  for (const Parameter& parameter : store.all()) {
    const ConstTensorView part = what == Of::kValues ? parameter.value : parameter.grad;
    if (part.empty()) continue;
    const Shape& whole = parameter.shard.whole;
    if (part.shape() == whole) {
      all_.push_back({parameter.name, on_host(stream, part, buffers_.emplace_back())});
      continue;
    }
    const auto [at, is_new] =
        open.try_emplace(parameter.name, Open{TensorView{}, whole.elements()});
    if (is_new) {
      buffers_.emplace_back(Device{}, whole.elements() * size_of(part.dtype()));
      at->second.whole = buffers_.back().view(part.dtype(), whole);
      all_.push_back({parameter.name, at->second.whole});
    }
    Buffer memory;
    copy_part(parameter.shard, on_host(stream, part, memory), at->second.whole);
    at->second.missing -= part.elements();
  }
  for (const auto& [name, parameter] : open) {
    CHECK(parameter.missing == 0, "parameter '", name, "': ", parameter.missing,
          " elements are on other ranks, expected all of them here");
  }
}

ConstTensorView WholeParameters::find(const std::string& name) const {
  for (const Entry& entry : all_) {
    if (entry.name == name) return entry.data;
  }
  throw Error(ExitCode::kBadData, concat("the model has no parameter '", name, "'"));
}

}  // namespace tessera
