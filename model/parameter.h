#pragma once

#include <deque>
#include <string>
#include <vector>

#include "kernels/core/buffer.h"
#include "kernels/int4_weights.h"
#include "parallel/bucket.h"
#include "parallel/shard.h"

namespace tessera {

enum class Initializer : uint8_t { kConstant, kNormal };

/// A tensor of the model: this rank's shard of its value, and of its gradient when it is trained.
struct Parameter {
  /// E.g. "layers.3.moe.router.weight". Several declarations may have one name when they are
  /// different parts of one parameter.
  std::string name;
  Shard shard;
  Placement placement = Placement::kReplicated;
  DType dtype = DType::kF32;  ///< of the value
  Initializer initializer = Initializer::kNormal;
  double init = 0.02;        ///< standard deviation of kNormal, value of kConstant
  bool decay = true;         ///< subject to weight decay
  bool trained = true;       ///< false: no gradient, no optimizer state (the balance bias)
  bool in_products = false;  ///< used as the W of y = x W^T alone, which may have 4 bits
  TensorView value = {};     ///< shape shard.local(); empty where there are codes
  TensorView codes = {};     ///< Int4Weights of a matrix, or of as many as its first axis has
  TensorView scales = {};
  TensorView grad = {};  ///< f32, shape shard.local(); backward adds to it; empty when not trained
  size_t bucket = 0;     ///< number of the bucket that holds it, when trained
  int64_t begin = 0;     ///< number of its first element there

  Int4Weights int4() const { return {codes, scales}; }
};

/// Declares all parameters, then allocates them in one buffer of values and one of gradients.
/// Trained parameters lie in buckets: each is the next in line of its placement and dtype, in the
/// order of declaration. Parameters never move, so layers keep references.
class ParameterStore {
 public:
  Parameter& declare(Parameter parameter);
  /// Call once, after the last declaration. With `gradients` false only values: for inference.
  /// `places` say which part of each bucket this rank owns.
  void allocate(Device device, bool gradients = true, const GroupPlaces& places = {});
  /// Instead of allocate(), for inference: bf16 parameters that are `in_products` get 4 bits in
  /// place of a value where their rows are multiples of Int4Weights::kRun; the others values.
  void allocate_int4(Device device);
  /// Every value as a function of (seed, name, global index) alone, whatever the mesh.
  void initialize(Stream& stream, uint64_t seed);
  /// Sets all gradients to 0.
  void zero_gradients(Stream& stream);

  std::deque<Parameter>& all() { return parameters_; }
  const std::deque<Parameter>& all() const { return parameters_; }
  /// Sorted by their first parameter.
  const std::vector<Bucket>& buckets() const { return buckets_; }
  /// Throws when there is none of that name.
  Parameter& find(const std::string& name);
  /// All gradients as one flat tensor [elements], bucket by bucket with gaps of zeros.
  TensorView gradients() const { return gradients_.view(DType::kF32, {gradients_.bytes() / 4}); }
  int64_t elements() const;  ///< of all trained parameters, on this rank
  int64_t value_bytes() const { return values_.bytes(); }
  int64_t gradient_bytes() const { return gradients_.bytes(); }

 private:
  std::vector<int64_t> fill_buckets(const GroupPlaces& places);

  std::deque<Parameter> parameters_;
  std::vector<Bucket> buckets_;
  Buffer values_;
  Buffer gradients_;
};

}  // namespace tessera
