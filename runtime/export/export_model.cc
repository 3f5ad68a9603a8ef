#include "runtime/export/export_model.h"

#include <array>
#include <cstdio>
#include <map>

#include "checkpoint/candidates.h"
#include "checkpoint/reader.h"
#include "checkpoint/sharded_safetensors.h"
#include "kernels/elementwise.h"
#include "runtime/config/train.pb.h"
#include "runtime/export/model_parameters.h"
#include "runtime/generate/loaded_model.h"

namespace tessera {

namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = "config.json";
constexpr const char* kPrefix = "model-";

// A tensor to write, and what it is a part of.
struct Target {
  const Parameter* parameter;
  HuggingFacePart part;

  int64_t bytes() const { return part.shape.elements() * size_of(parameter->dtype); }
};

// Gives out tensors of a checkpoint, one at a time, in the dtype of the export.
class Source {
 public:
  Source(const CheckpointReader& reader, Stream& stream) : reader_(reader), stream_(stream) {
    for (const TensorFacts& facts : reader.tensors()) {
      stored_[{facts.kind, facts.name}] = facts.dtype;
    }
  }

  // Valid until the next call.
  ConstTensorView read(const Target& target) {
    const Parameter& parameter = *target.parameter;
    const TensorKind kind = kind_of(parameter);
    const DType stored = dtype_of(kind, parameter.name);
    const Shape flat{target.part.shape.elements()};
    const TensorView data = reserve(stored_buffer_, stored, flat);
    std::vector<NamedTensor> boxes;
    int64_t at = 0;
    for (const Box& box : boxes_of_range(whole_box(parameter.shard.whole), target.part.first,
                                         target.part.first + flat[0])) {
      const int64_t elements = box.extents.elements();
      boxes.emplace_back(parameter.name, parameter.shard.whole, box,
                         data.rows(at, elements).reshape(box.extents));
      at += elements;
    }
    reader_.read(kind, boxes);
    if (stored == parameter.dtype) return data.reshape(target.part.shape);
    const TensorView converted = reserve(cast_buffer_, parameter.dtype, flat);
    cast(stream_, {.y = converted, .x = data});
    return converted.reshape(target.part.shape);
  }

 private:
  TensorKind kind_of(const Parameter& parameter) const {
    if (!parameter.trained) return TensorKind::kBuffer;
    const bool exact =
        parameter.dtype == DType::kF32 && stored_.contains({TensorKind::kMaster, parameter.name});
    return exact ? TensorKind::kMaster : TensorKind::kParameter;
  }

  DType dtype_of(TensorKind kind, const std::string& name) const {
    const auto at = stored_.find({kind, name});
    if (at != stored_.end()) return at->second;
    throw Error(ExitCode::kBadData,
                concat(reader_.directory().string(), " has no ", name_of(kind), " '", name, "'"));
  }

  static TensorView reserve(Buffer& buffer, DType dtype, const Shape& shape) {
    const int64_t bytes = shape.elements() * size_of(dtype);
    if (buffer.bytes() < bytes) buffer = Buffer(Device{}, bytes);
    return buffer.view(dtype, shape);
  }

  const CheckpointReader& reader_;
  Stream& stream_;
  std::map<std::pair<TensorKind, std::string>, DType> stored_;
  Buffer stored_buffer_;
  Buffer cast_buffer_;
};

// Files under temporary names, which get their own all together, or vanish.
class PendingFiles {
 public:
  explicit PendingFiles(const Directory& directory) : directory_(directory) {}
  ~PendingFiles() {
    for (const std::string& name : names_) remove(name + ".tmp");
    for (const std::string& name : renamed_) remove(name);
  }
  PendingFiles(const PendingFiles&) = delete;
  PendingFiles& operator=(const PendingFiles&) = delete;

  File create(const std::string& name) {
    const std::string temporary = name + ".tmp";
    if (directory_.contains(temporary)) directory_.remove(temporary);
    names_.push_back(name);
    return directory_.create(temporary);
  }

  void rename_all() {
    for (; !names_.empty(); names_.pop_back()) {
      directory_.rename(names_.back() + ".tmp", names_.back());
      renamed_.push_back(names_.back());
    }
    directory_.sync();
  }
  // From now on they stay.
  void keep() { renamed_.clear(); }

 private:
  void remove(const std::string& name) const noexcept {
    try {
      directory_.remove(name);
    } catch (const Error&) {  // the trouble that brought us here is told already
    }
  }

  const Directory& directory_;
  std::vector<std::string> names_;
  std::vector<std::string> renamed_;
};

std::string shard_name(size_t number, size_t count) {
  if (count == 1) return kOneFileName;
  std::array<char, 64> name{};
  std::snprintf(name.data(), name.size(), "%s%05zu-of-%05zu.safetensors", kPrefix, number, count);
  return name.data();
}

std::vector<Target> targets_of(const ModelConfig& model, const std::vector<Parameter>& parameters,
                               bool gates) {
  std::vector<Target> targets;
  for (const Parameter& parameter : parameters) {
    if (!gates && is_gate_parameter(parameter.name)) continue;
    for (HuggingFacePart& part : hugging_face_parts(model, parameter.name, parameter.shard.whole)) {
      targets.push_back({&parameter, std::move(part)});
    }
  }
  return targets;
}

void check_free(const Directory& directory, int64_t bytes) {
  std::string taken;
  for (const std::string& name : directory.entries()) {
    const bool ours = name == kConfig || name == kOneFileName || name == kWeightIndexName ||
                      (name.starts_with(kPrefix) && name.ends_with(".safetensors"));
    if (ours && (taken.empty() || taken == kConfig)) taken = name;
  }
  if (!taken.empty()) {
    throw Error(ExitCode::kUsage, concat(directory.path().string(), " already has ", taken,
                                         ": give another directory or remove it"));
  }
  const int64_t free = directory.free_bytes();
  if (free < bytes) {
    throw Error(ExitCode::kTryAgain,
                concat("the file system of ", directory.path().string(), " has ", free,
                       " bytes free, expected ", bytes, ": make room or give another directory"));
  }
}

void write_file(File file, std::span<const Target> targets, Source& source) {
  std::map<std::string_view, const Target*> of_name;
  std::vector<SafetensorsEntry> entries;
  for (const Target& target : targets) {
    of_name[target.part.name] = &target;
    entries.push_back(
        {.name = target.part.name, .dtype = target.parameter->dtype, .shape = target.part.shape});
  }
  // transformers refuses a file that does not say "pt"; the layout is the same for all.
  SafetensorsWriter writer(std::move(file), std::move(entries), {{"format", "pt"}});
  for (const SafetensorsEntry& entry : writer.tensors()) {
    writer.append(source.read(*of_name.at(entry.name)));
  }
  writer.finish();
}

std::string remarks_of(const TrainConfig& config, const std::vector<Parameter>& parameters,
                       int64_t step, bool gates) {
  std::string text;
  const std::string obstacle = hugging_face_obstacle(config.model());
  if (!obstacle.empty()) {
    text += concat("No architecture of transformers computes this model, because ", obstacle,
                   ": it is written as ", class_name(HuggingFaceArchitecture::kTessera),
                   ", with further tensors.\n");
  }
  int64_t tensors = 0;
  int64_t elements = 0;
  for (const Parameter& parameter : parameters) {
    if (!is_gate_parameter(parameter.name)) continue;
    ++tensors;
    elements += parameter.shard.whole.elements();
  }
  if (!gates && tensors > 0) {
    text += concat(tensors, " tensors of sparsity gates with ", elements,
                   " parameters are left out; --gates writes them, too.\n");
  }
  if (step > config.sparsity().dense_steps()) {
    text +=
        concat("The model has attended sparsely since step ", config.sparsity().dense_steps() + 1,
               "; transformers attends to every token, so its logits differ.\n");
  }
  return text;
}

}  // namespace

std::vector<int64_t> cut_into_shards(const std::vector<int64_t>& bytes, int64_t shard_bytes) {
  std::vector<int64_t> counts;
  int64_t filled = 0;
  for (const int64_t tensor : bytes) {
    if (counts.empty() || tensor > shard_bytes - filled) {
      counts.push_back(0);
      filled = 0;
    }
    ++counts.back();
    filled += tensor;
  }
  return counts;
}

ExportReport export_model(const fs::path& checkpoint, const fs::path& output,
                          const ExportOptions& options) {
  const CheckpointReader reader(find_checkpoint(checkpoint));
  const TrainConfig config = stored_config(reader);
  const ModelConfig& model = config.model();
  const std::string obstacle = hugging_face_obstacle(model);
  if (options.strict && !obstacle.empty()) {
    throw Error(ExitCode::kUsage,
                concat("no architecture of transformers computes this model, because ", obstacle,
                       ": export it without --strict"));
  }
  ExportReport report{.architecture = hugging_face_architecture(model),
                      .step = reader.facts().id.step,
                      .dtype = chosen_dtype(options.precision, config)};
  const std::vector<Parameter> parameters = model_parameters(model, report.dtype);
  const std::vector<Target> targets = targets_of(model, parameters, options.gates);
  std::vector<int64_t> bytes;
  for (const Target& target : targets) {
    bytes.push_back(target.bytes());
    report.bytes += target.bytes();
  }
  report.tensors = std::ssize(targets);
  report.remarks = remarks_of(config, parameters, report.step, options.gates);
  make_directories(output);
  const Directory directory(output);
  check_free(directory, report.bytes);

  Stream stream(Device{}, 1);
  Source source(reader, stream);
  PendingFiles pending(directory);
  WeightMap files;
  const std::vector<int64_t> counts = cut_into_shards(bytes, options.shard_bytes);
  report.files = std::ssize(counts);
  std::span<const Target> left = targets;
  for (size_t i = 0; i < counts.size(); ++i) {
    const auto inside = left.first(static_cast<size_t>(counts[i]));
    const std::string name = shard_name(i + 1, counts.size());
    for (const Target& target : inside) files[target.part.name] = name;
    write_file(pending.create(name), inside, source);
    left = left.subspan(inside.size());
  }
  if (counts.size() > 1) {
    File index = pending.create(kWeightIndexName);
    index.write_at(bytes_of(weight_index_text(files, report.bytes)), 0);
    index.sync();
    index.close();
  }
  pending.rename_all();
  // Last: a directory with a configuration is whole.
  directory.replace(kConfig, hugging_face_config(config, report.dtype));
  pending.keep();
  return report;
}

}  // namespace tessera
