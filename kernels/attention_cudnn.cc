#include "kernels/attention_cudnn.h"

#include <cudnn_graph.h>
#include <dlfcn.h>

#include <array>
#include <deque>
#include <initializer_list>
#include <limits>
#include <utility>
#include <vector>

namespace tessera::gpu {
namespace {

/// The library's functions, looked up by name and not linked: a machine without cuDNN still starts
/// the program, and gets our own kernels.
struct Library {
  decltype(&cudnnGetVersion) version = nullptr;
  decltype(&cudnnGetErrorString) error_string = nullptr;
  decltype(&cudnnGetLastErrorString) last_error = nullptr;
  decltype(&cudnnCreate) create_handle = nullptr;
  decltype(&cudnnDestroy) destroy_handle = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy = nullptr;
  decltype(&cudnnBackendSetAttribute) set = nullptr;
  decltype(&cudnnBackendGetAttribute) get = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;
};

/// Never closed: what it has running would be gone.
Library open_library() {
  void* opened = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) opened = dlopen(CUDNN_LIBRARY_PATH, RTLD_NOW | RTLD_LOCAL);
  CHECK(opened != nullptr, "cuDNN: the library is missing: ", dlerror());
  const auto find = [opened]<class F>(const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(opened, name));
    CHECK(function != nullptr, "cuDNN: the library has no ", name);
  };
  Library found;
  find("cudnnGetVersion", found.version);
  find("cudnnGetErrorString", found.error_string);
  find("cudnnGetLastErrorString", found.last_error);
  find("cudnnCreate", found.create_handle);
  find("cudnnDestroy", found.destroy_handle);
  find("cudnnSetStream", found.set_stream);
  find("cudnnBackendCreateDescriptor", found.create);
  find("cudnnBackendDestroyDescriptor", found.destroy);
  find("cudnnBackendSetAttribute", found.set);
  find("cudnnBackendGetAttribute", found.get);
  find("cudnnBackendFinalize", found.finalize);
  find("cudnnBackendExecute", found.execute);
  // Older ones were never tried. Segments of varying lengths on the A100 came with 9.18.1.
  CHECK(found.version() >= 91400, "cuDNN: version ", found.version(), ", expected at least 91400");
  return found;
}

const Library& library() {
  static const Library opened = open_library();
  return opened;
}

std::string last_error() {
  char text[512] = "";
  library().last_error(text, sizeof(text));
  return text;
}

/// Throws Error when a call of the library fails, with the call and the library's own text.
#define CUDNN_CHECK(call, ...)                                                                  \
  do {                                                                                          \
    const cudnnStatus_t cudnn_status = library().call;                                          \
    CHECK(cudnn_status == CUDNN_STATUS_SUCCESS, "cuDNN: " #call " failed", ##__VA_ARGS__, ": ", \
          library().error_string(cudnn_status), ": ", last_error());                            \
  } while (false)

/// The type of an attribute that is given as a T.
template <class T>
constexpr cudnnBackendAttributeType_t kTypeOf = CUDNN_TYPE_INT64;
template <>
constexpr auto kTypeOf<bool> = CUDNN_TYPE_BOOLEAN;
template <>
constexpr auto kTypeOf<cudnnDataType_t> = CUDNN_TYPE_DATA_TYPE;
template <>
constexpr auto kTypeOf<cudnnPointwiseMode_t> = CUDNN_TYPE_POINTWISE_MODE;
template <>
constexpr auto kTypeOf<cudnnReduceTensorOp_t> = CUDNN_TYPE_REDUCTION_OPERATOR_TYPE;
template <>
constexpr auto kTypeOf<cudnnBackendHeurMode_t> = CUDNN_TYPE_HEUR_MODE;
template <>
constexpr auto kTypeOf<cudnnHandle_t> = CUDNN_TYPE_HANDLE;
template <>
constexpr auto kTypeOf<void*> = CUDNN_TYPE_VOID_PTR;

/// Owns one backend descriptor. Attributes are set, and it is finalized, once.
class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) : type_(type) {
    CUDNN_CHECK(create(type, &raw_), " for descriptor type ", type);
  }
  ~Descriptor() {
    if (raw_ != nullptr) library().destroy(raw_);
  }
  Descriptor(Descriptor&& other) noexcept
      : type_(other.type_), raw_(std::exchange(other.raw_, nullptr)) {}

  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, std::initializer_list<T> values) {
    return set(name, kTypeOf<T>, values.begin(), static_cast<int64_t>(values.size()));
  }
  template <class T>
  Descriptor& set(cudnnBackendAttributeName_t name, const std::vector<T>& values) {
    return set(name, kTypeOf<T>, values.data(), static_cast<int64_t>(values.size()));
  }
  Descriptor& set(cudnnBackendAttributeName_t name, const Descriptor& value) {
    return set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &value.raw_, 1);
  }
  Descriptor& set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                  const void* values, int64_t count) {
    CUDNN_CHECK(set(raw_, name, type, count, values), " for attribute ", name);
    return *this;
  }
  void finalize() { CUDNN_CHECK(finalize(raw_), " for descriptor type ", type_); }

  /// How many of the `most` values at `values` the attribute has filled.
  int64_t get(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most,
              void* values) const {
    int64_t count = 0;
    CUDNN_CHECK(get(raw_, name, type, most, &count, values), " for attribute ", name);
    return count;
  }
  cudnnBackendDescriptor_t raw() const { return raw_; }

 private:
  cudnnBackendDescriptorType_t type_;
  cudnnBackendDescriptor_t raw_ = nullptr;
};

/// Tensors that a plan is given, by number. Everything from kInside on exists inside of it only.
// clang-format off
enum Uid : int64_t {
  kQ = 1, kK, kV, kO, kStats, kLengthsQ, kLengthsK,
  kOffsetsQ, kOffsetsK, kOffsetsV, kOffsetsO, kOffsetsStats,
  kScale, kHiddenByPadding, kHiddenByOrder, kHiddenByWindow, kWindow, kInside = 100
};
// clang-format on

/// The graph of attention forward.
class ForwardGraph {
 public:
  explicit ForwardGraph(const AttentionPlanShape& shape)
      : shape_(shape),
        scores_{shape.segments, shape.heads, shape.tokens, shape.tokens},
        rows_{shape.segments, shape.heads, shape.tokens, 1} {
    build();
  }
  std::vector<cudnnBackendDescriptor_t> operations() const {
    std::vector<cudnnBackendDescriptor_t> raw;
    for (const Descriptor& operation : operations_) raw.push_back(operation.raw());
    return raw;
  }

 private:
  using Extents = std::vector<int64_t>;
  enum class Place : uint8_t { kDevice, kHost, kInside };

  static Extents packed(const Extents& extents) {
    Extents strides(extents.size(), 1);
    for (size_t i = extents.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * extents[i];
    return strides;
  }

  const Descriptor& tensor(int64_t uid, cudnnDataType_t type, const Extents& extents,
                           const Extents& strides, Place place,
                           const Descriptor* offsets = nullptr) {
    Descriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, {uid})
        .set(CUDNN_ATTR_TENSOR_DATA_TYPE, {type})
        .set(CUDNN_ATTR_TENSOR_DIMENSIONS, extents)
        .set(CUDNN_ATTR_TENSOR_STRIDES, strides)
        .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, {int64_t{16}})
        .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, {place == Place::kInside})
        .set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, {place == Place::kHost});
    if (offsets != nullptr) tensor.set(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, *offsets);
    tensor.finalize();
    return tensors_.emplace_back(std::move(tensor));
  }
  const Descriptor& inside(cudnnDataType_t type, const Extents& extents) {
    return tensor(next_++, type, extents, packed(extents), Place::kInside);
  }
  const Descriptor& number(Uid uid) {
    return tensor(uid, CUDNN_DATA_FLOAT, {1, 1, 1, 1}, {1, 1, 1, 1}, Place::kHost);
  }
  /// i32 per segment, and one more for offsets.
  const Descriptor& per_segment(Uid uid, int64_t count) {
    return tensor(uid, CUDNN_DATA_INT32, {count, 1, 1, 1}, {1, 1, 1, 1}, Place::kDevice);
  }
  const Descriptor* offsets(Uid uid) {
    return several() ? &per_segment(uid, shape_.segments + 1) : nullptr;
  }
  /// [segments, heads, tokens, d] of rows that hold `row_heads` heads.
  const Descriptor& rows_of_heads(Uid uid, int64_t heads, int64_t row_heads, Uid offsets_uid) {
    const int64_t row = row_heads * shape_.d;
    return tensor(uid, CUDNN_DATA_BFLOAT16, {shape_.segments, heads, shape_.tokens, shape_.d},
                  {shape_.tokens * row, shape_.d, row, 1}, Place::kDevice, offsets(offsets_uid));
  }

  /// y = mode(x, b) or, with `t`, t ? x : b.
  const Descriptor& pointwise(cudnnPointwiseMode_t mode, const Descriptor& x, const Descriptor* b,
                              const Descriptor& y, cudnnDataType_t math = CUDNN_DATA_FLOAT,
                              int64_t axis = -1, const Descriptor* t = nullptr) {
    Descriptor kind(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    kind.set(CUDNN_ATTR_POINTWISE_MODE, {mode}).set(CUDNN_ATTR_POINTWISE_MATH_PREC, {math});
    if (axis >= 0) kind.set(CUDNN_ATTR_POINTWISE_AXIS, {axis});
    kind.finalize();
    Descriptor operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind)
        .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b != nullptr) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, *b);
    if (t != nullptr) operation.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, *t);
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add(std::move(operation));
    return y;
  }
  const Descriptor& index(int64_t axis, cudnnDataType_t math = CUDNN_DATA_FLOAT) {
    return pointwise(CUDNN_POINTWISE_GEN_INDEX, *masked_, nullptr,
                     inside(CUDNN_DATA_INT32, scores_), math, axis);
  }
  const Descriptor& compare(cudnnPointwiseMode_t mode, const Descriptor& x, const Descriptor& b) {
    return pointwise(mode, x, &b, inside(CUDNN_DATA_BOOLEAN, scores_), CUDNN_DATA_BOOLEAN);
  }
  void keep_where(const Descriptor& seen, Uid hidden) {
    masked_ = &pointwise(CUDNN_POINTWISE_BINARY_SELECT, *masked_, &number(hidden),
                         inside(CUDNN_DATA_FLOAT, scores_), CUDNN_DATA_FLOAT, -1, &seen);
  }
  const Descriptor& reduce(cudnnReduceTensorOp_t how, const Descriptor& x) {
    const Descriptor& y = inside(CUDNN_DATA_FLOAT, rows_);
    Descriptor kind(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    kind.set(CUDNN_ATTR_REDUCTION_OPERATOR, {how})
        .set(CUDNN_ATTR_REDUCTION_COMP_TYPE, {CUDNN_DATA_FLOAT})
        .finalize();
    Descriptor operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind)
        .set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x)
        .set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    add(std::move(operation));
    return y;
  }
  /// c = a b, of [m, k] and [k, n]; `inner` says which of n and k is as long as a segment.
  void multiply(const Descriptor& a, const Descriptor& b, const Descriptor& c,
                cudnnBackendAttributeName_t inner) {
    Descriptor kind(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    kind.set(CUDNN_ATTR_MATMUL_COMP_TYPE, {CUDNN_DATA_FLOAT}).finalize();
    Descriptor operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, kind)
        .set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a)
        .set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b)
        .set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    if (several()) {
      operation.set(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, *lengths_q_)
          .set(inner, *lengths_k_);
    }
    add(std::move(operation));
  }
  void add(Descriptor operation) {
    operation.finalize();
    operations_.push_back(std::move(operation));
  }
  bool several() const { return shape_.segments > 1; }

  void build();
  const Descriptor& scaled_scores();
  void mask();

  AttentionPlanShape shape_;
  Extents scores_;  // [segments, heads, tokens, tokens]
  Extents rows_;    // [segments, heads, tokens, 1]
  int64_t next_ = kInside;
  const Descriptor* masked_ = nullptr;  // scores, of which ever fewer are left
  const Descriptor* lengths_q_ = nullptr;
  const Descriptor* lengths_k_ = nullptr;
  std::deque<Descriptor> tensors_;  // they stay where they are
  std::vector<Descriptor> operations_;
};

void ForwardGraph::build() {
  if (several()) {
    lengths_q_ = &per_segment(kLengthsQ, shape_.segments);
    lengths_k_ = &per_segment(kLengthsK, shape_.segments);
  }
  masked_ = &scaled_scores();
  mask();
  const Descriptor& scores = *masked_;
  // softmax: largest, exp(s - largest), sum, L = largest + log(sum), p = exp / sum
  const Descriptor& largest = reduce(CUDNN_REDUCE_TENSOR_MAX, scores);
  const Descriptor& below =
      pointwise(CUDNN_POINTWISE_SUB, scores, &largest, inside(CUDNN_DATA_FLOAT, scores_));
  const Descriptor& weights =
      pointwise(CUDNN_POINTWISE_EXP, below, nullptr, inside(CUDNN_DATA_FLOAT, scores_));
  const Descriptor& sum = reduce(CUDNN_REDUCE_TENSOR_ADD, weights);
  const Descriptor& log_sum =
      pointwise(CUDNN_POINTWISE_LOG, sum, nullptr, inside(CUDNN_DATA_FLOAT, rows_));
  const Extents by_token{shape_.heads * shape_.tokens, 1, shape_.heads, 1};  // as offsets go
  const Descriptor& stats =
      tensor(kStats, CUDNN_DATA_FLOAT, rows_, several() ? by_token : packed(rows_), Place::kDevice,
             offsets(kOffsetsStats));
  pointwise(CUDNN_POINTWISE_ADD, largest, &log_sum, stats);
  const Descriptor& p =
      pointwise(CUDNN_POINTWISE_DIV, weights, &sum, inside(CUDNN_DATA_BFLOAT16, scores_));
  // o = p v
  const Descriptor& v = rows_of_heads(kV, shape_.kv_heads, shape_.row_kv_heads, kOffsetsV);
  const Descriptor& o = rows_of_heads(kO, shape_.heads, shape_.row_heads, kOffsetsO);
  multiply(p, v, o, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC);
}

/// scale q k^T. The keys are described as their transpose, [d, tokens].
const Descriptor& ForwardGraph::scaled_scores() {
  const Descriptor& q = rows_of_heads(kQ, shape_.heads, shape_.row_heads, kOffsetsQ);
  const int64_t row = shape_.row_kv_heads * shape_.d;
  const Descriptor& k =
      tensor(kK, CUDNN_DATA_BFLOAT16, {shape_.segments, shape_.kv_heads, shape_.d, shape_.tokens},
             {shape_.tokens * row, shape_.d, 1, row}, Place::kDevice, offsets(kOffsetsK));
  const Descriptor& products = inside(CUDNN_DATA_FLOAT, scores_);
  multiply(q, k, products, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC);
  return pointwise(CUDNN_POINTWISE_MUL, products, &number(kScale),
                   inside(CUDNN_DATA_FLOAT, scores_));
}

/// -inf for what a query does not see: rows and keys behind the end of a segment, later keys, and
/// keys that the window has passed.
void ForwardGraph::mask() {
  if (several()) {
    const Descriptor& token = index(2, CUDNN_DATA_INT32);
    const Descriptor& other = index(3, CUDNN_DATA_INT32);
    const Descriptor& row_is_there = compare(CUDNN_POINTWISE_CMP_LT, token, *lengths_q_);
    const Descriptor& key_is_there = compare(CUDNN_POINTWISE_CMP_LT, other, *lengths_k_);
    keep_where(compare(CUDNN_POINTWISE_LOGICAL_AND, row_is_there, key_is_there), kHiddenByPadding);
  }
  const Descriptor& row = index(2);
  const Descriptor& key = index(3);
  keep_where(compare(CUDNN_POINTWISE_CMP_GE, row, key), kHiddenByOrder);
  if (shape_.window == 0) return;
  const Descriptor& window_row = index(2);
  const Descriptor& window_key = index(3);
  const Descriptor& reach = pointwise(CUDNN_POINTWISE_ADD, window_key, &number(kWindow),
                                      inside(CUDNN_DATA_FLOAT, scores_), CUDNN_DATA_FLOAT, 3);
  keep_where(compare(CUDNN_POINTWISE_CMP_GT, reach, window_row), kHiddenByWindow);
}

/// The library's handle, for the device that is current.
class Handle {
 public:
  Handle() { CUDNN_CHECK(create_handle(&raw_)); }
  ~Handle() { library().destroy_handle(raw_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  cudnnHandle_t raw() const { return raw_; }

 private:
  cudnnHandle_t raw_ = nullptr;
};

/// Without a handle: for looking at, not for plans.
Descriptor operation_graph(cudnnHandle_t handle, const ForwardGraph& graph) {
  const std::vector<cudnnBackendDescriptor_t> operations = graph.operations();
  Descriptor described(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  if (handle != nullptr) described.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, {handle});
  described
      .set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, operations.data(),
           static_cast<int64_t>(operations.size()))
      .finalize();
  return described;
}

/// What the library would run, the best first.
std::vector<Descriptor> engine_configurations(const Descriptor& graph) {
  Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, {CUDNN_HEUR_MODE_A})
      .finalize();
  const int64_t most =
      heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, nullptr);
  std::vector<Descriptor> found;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (int64_t i = 0; i < most; ++i) {
    raw.push_back(found.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).raw());
  }
  const int64_t count = heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                       most, raw.data());
  while (static_cast<int64_t>(found.size()) > count) found.pop_back();
  return found;
}

bool is_deterministic(const Descriptor& configuration) {
  const Descriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  cudnnBackendDescriptor_t raw = engine.raw();
  configuration.get(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw);
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT> notes{};
  const int64_t count = engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                   CUDNN_NUMERICAL_NOTE_TYPE_COUNT, notes.data());
  for (int64_t i = 0; i < count; ++i) {
    if (notes[static_cast<size_t>(i)] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) return false;
  }
  return true;
}

class ForwardPlan final : public AttentionPlan {
 public:
  ForwardPlan(const AttentionPlanShape& shape, int64_t most_bytes)
      : shape_(shape), graph_(operation_graph(handle_.raw(), ForwardGraph(shape))) {
    std::string refusals;
    for (const Descriptor& configuration : engine_configurations(graph_)) {
      try {
        if (is_deterministic(configuration) && take(configuration, most_bytes)) return;
      } catch (const Error& e) {
        refusals = e.what();
      }
    }
    CHECK(false, "cuDNN: no engine takes ", shape, " with ", most_bytes, " bytes of workspace",
          refusals.empty() ? "" : "; the last one said: ", refusals);
  }
  int64_t workspace_bytes() const override { return workspace_bytes_; }
  void run(Stream& stream, const AttentionPlanTensors& tensors) override;

 private:
  bool take(const Descriptor& configuration, int64_t most_bytes) {
    Descriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, {handle_.raw()})
        .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration)
        .finalize();
    plan.get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &workspace_bytes_);
    if (workspace_bytes_ > most_bytes) return false;
    plan_.emplace(std::move(plan));
    return true;
  }

  AttentionPlanShape shape_;
  Handle handle_;
  Descriptor graph_;
  std::optional<Descriptor> plan_;
  int64_t workspace_bytes_ = 0;
};

void ForwardPlan::run(Stream& stream, const AttentionPlanTensors& tensors) {
  CUDNN_CHECK(set_stream(handle_.raw(), static_cast<cudaStream_t>(stream.handle())));
  float scale = tensors.scale;
  float hidden = -std::numeric_limits<float>::infinity();
  auto window = static_cast<float>(shape_.window);
  std::vector<int64_t> uids;
  std::vector<void*> data;
  const auto give = [&](Uid uid, const void* at) {
    uids.push_back(uid);
    data.push_back(const_cast<void*>(at));
  };
  give(kQ, tensors.q);
  give(kK, tensors.k);
  give(kV, tensors.v);
  give(kO, tensors.o);
  give(kStats, tensors.lse);
  give(kScale, &scale);
  give(kHiddenByOrder, &hidden);
  if (shape_.segments > 1) {
    give(kHiddenByPadding, &hidden);
    for (const Uid uid : {kLengthsQ, kLengthsK}) give(uid, tensors.lengths);
    for (const Uid uid : {kOffsetsQ, kOffsetsO}) give(uid, tensors.q_offsets);
    for (const Uid uid : {kOffsetsK, kOffsetsV}) give(uid, tensors.k_offsets);
    give(kOffsetsStats, tensors.lse_offsets);
  }
  if (shape_.window > 0) {
    give(kHiddenByWindow, &hidden);
    give(kWindow, &window);
  }
  Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, uids)
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, data)
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, {tensors.workspace})
      .finalize();
  CUDNN_CHECK(execute(handle_.raw(), plan_->raw(), pack.raw()));
}

}  // namespace

bool cudnn_is_built() {
  return true;
}

std::unique_ptr<AttentionPlan> make_cudnn_attention_plan(const AttentionPlanShape& shape,
                                                         int64_t most_bytes) {
  return std::make_unique<ForwardPlan>(shape, most_bytes);
}

int64_t describe_cudnn_attention(const AttentionPlanShape& shape) {
  const ForwardGraph graph(shape);
  operation_graph(nullptr, graph);
  return static_cast<int64_t>(graph.operations().size());
}

}  // namespace tessera::gpu
