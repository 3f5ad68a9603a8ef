#include "runtime/import/imported_state.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "checkpoint/half.h"
#include "kernels/core/device.h"
#include "parallel/process_mesh.h"
#include "runtime/config/text_writer.h"
#include "runtime/config/train.pb.h"
#include "runtime/train/train_state.h"

namespace tessera {

namespace {

constexpr int64_t kChunk = int64_t{1} << 18;  // elements that are read at a time

// `into` are elements of a tensor from number `first` on.
void read_as_f32(const ShardedSafetensors& files, const PlacedTensor& tensor, int64_t first,
                 std::span<float> into) {
  const SafetensorsEntry& entry = tensor.entry;
  const int64_t width = size_of(entry.dtype);
  std::vector<std::byte> raw(static_cast<size_t>(std::min(kChunk, std::ssize(into)) * width));
  for (int64_t done = 0; done < std::ssize(into); done += kChunk) {
    const int64_t count = std::min(kChunk, std::ssize(into) - done);
    const std::span<std::byte> bytes(raw.data(), static_cast<size_t>(count * width));
    files.read_bytes(tensor, (first + done) * width, bytes);
    float* to = into.data() + done;
    if (entry.dtype == DType::kF32) {
      std::memcpy(to, bytes.data(), bytes.size());
    } else {
      for (int64_t i = 0; i < count; ++i) {
        uint16_t bits = 0;
        std::memcpy(&bits, bytes.data() + 2 * i, sizeof bits);
        to[i] = entry.is_f16 ? half_to_float(bits) : to_float(BF16{bits});
      }
    }
    const auto odd = std::find_if(to, to + count, [](float x) { return !std::isfinite(x); });
    if (odd == to + count) continue;
    throw Error(ExitCode::kBadData, concat("tensor ", entry.name, " holds ", *odd, " at element ",
                                           first + done + (odd - to), ", expected finite numbers"));
  }
}

void add_boxes(const Parameter& parameter, int64_t begin, int64_t end, const TensorView& data,
               std::vector<NamedTensor>& tensors) {
  int64_t at = 0;
  for (const Box& box : boxes_of_range(parameter.shard, begin, end)) {
    const int64_t elements = box.extents.elements();
    tensors.emplace_back(parameter.name, parameter.shard.whole, box,
                         data.rows(at, elements).reshape(box.extents));
    at += elements;
  }
}

}  // namespace

ImportedState::ImportedState(const TrainConfig& config, const ShardedSafetensors& files,
                             std::span<const ImportedParameter> parameters, int64_t piece_elements,
                             std::string tokenizer)
    : config_(config), files_(files) {
  cut(parameters, piece_elements);
  int64_t most = 0;
  for (const std::vector<Range>& piece : pieces_) {
    int64_t elements = 0;
    for (const Range& range : piece) elements += range.end - range.begin;
    most = std::max(most, elements);
  }
  masters_ = Buffer(Device{}, most * 4);
  values_ = Buffer(Device{}, most * 2);
  zeros_ = Buffer(Device{}, most * 4);
  std::memset(zeros_.view(DType::kU8, {zeros_.bytes()}).data(), 0,
              static_cast<size_t>(zeros_.bytes()));
  for (int axis = 0; axis < kAxes; ++axis) {
    contents_.mesh.push_back({name_of(static_cast<Axis>(axis)), 1});
  }
  contents_.blobs = state_blobs({}, {}, tokenizer);
  contents_.resolved_config = to_text(config);
}

void ImportedState::cut(std::span<const ImportedParameter> parameters, int64_t piece_elements) {
  int64_t room = 0;
  for (const ImportedParameter& one : parameters) {
    const int64_t elements = one.parameter.shard.whole.elements();
    for (int64_t begin = 0; begin < elements;) {
      if (room == 0) {
        pieces_.emplace_back();
        room = piece_elements;
      }
      const int64_t end = std::min(elements, begin + room);
      pieces_.back().push_back({&one, begin, end});
      room -= end - begin;
      begin = end;
    }
  }
}

// `at`: elements of the piece before this range.
ImportedState::Views ImportedState::views(const Range& range, int64_t at) const {
  const Shape flat{range.end - range.begin};
  Views both{.value = {}, .master = masters_.view(DType::kF32, flat, at * 4)};
  both.value = range.of->parameter.dtype == DType::kF32 ? both.master
                                                        : values_.view(DType::kBF16, flat, at * 2);
  return both;
}

void ImportedState::fill(int piece) {
  int64_t at = 0;
  for (const Range& range : pieces_[static_cast<size_t>(piece)]) {
    const Views both = views(range, at);
    if (range.of->parts.empty()) {
      initialise(range, both.master);
    } else {
      fill_from_files(range, both.master);
    }
    if (both.value.dtype() == DType::kBF16) {
      const auto master = both.master.as<float>();
      std::transform(master.begin(), master.end(), both.value.as<BF16>().begin(), from_float<BF16>);
    }
    at += range.end - range.begin;
  }
}

void ImportedState::fill_from_files(const Range& range, TensorView master) const {
  for (const HuggingFacePart& part : range.of->parts) {
    const int64_t begin = std::max(range.begin, part.first);
    const int64_t end = std::min(range.end, part.first + part.shape.elements());
    if (begin >= end) continue;
    read_as_f32(files_, files_.find(part.name), begin - part.first,
                master.rows(begin - range.begin, end - begin).as<float>());
  }
}

// As a new run begins: the value in the model's dtype, and the master equal to it.
void ImportedState::initialise(const Range& range, TensorView master) const {
  ParameterStore store;
  const Parameter& parameter = store.declare(range.of->parameter);
  store.allocate(Device{}, /*gradients=*/false);
  Stream stream(Device{}, 1);
  store.initialize(stream, config_.seed());
  with_float_type(parameter.dtype, [&]<class T>() {
    const auto values = parameter.value.as<T>().subspan(static_cast<size_t>(range.begin),
                                                        static_cast<size_t>(master.elements()));
    std::transform(values.begin(), values.end(), master.as<float>().begin(),
                   [](T value) { return to_float(value); });
  });
}

const CheckpointContents& ImportedState::contents(int piece) {
  for (std::vector<NamedTensor>* tensors : {&parameters_, &buffers_, &master_tensors_, &moments_}) {
    tensors->clear();
  }
  int64_t at = 0;
  for (const Range& range : pieces_[static_cast<size_t>(piece)]) {
    const Parameter& parameter = range.of->parameter;
    const Views both = views(range, at);
    const auto add = [&](const TensorView& data, std::vector<NamedTensor>& tensors) {
      add_boxes(parameter, range.begin, range.end, data, tensors);
    };
    if (parameter.trained) {
      add(both.value, parameters_);
      if (both.value.dtype() != DType::kF32) add(both.master, master_tensors_);
      add(zeros_.view(DType::kF32, {range.end - range.begin}), moments_);
    } else {
      add(both.value, buffers_);
    }
    at += range.end - range.begin;
  }
  contents_.groups = {{TensorKind::kParameter, parameters_},
                      {TensorKind::kMaster, master_tensors_},
                      {TensorKind::kExpAvg, moments_},
                      {TensorKind::kExpAvgSq, moments_},
                      {TensorKind::kBuffer, buffers_}};
  return contents_;
}

}  // namespace tessera
