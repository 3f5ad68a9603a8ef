#pragma once

#include <string>

#include "checkpoint/block_file.h"
#include "checkpoint/box.h"
#include "checkpoint/checkpoint.h"

namespace tessera {

namespace wire {
class File;
class Manifest;
class Slice;
class Tensor;
}  // namespace wire

/// Between the messages of manifest.proto and the types of this program. Apart from
/// has_known_type, what comes out of a message must have passed parse_manifest.
bool has_known_type(const wire::Tensor& tensor);
DType dtype_of(const wire::Tensor& tensor);
TensorKind kind_of(const wire::Tensor& tensor);
Shape shape_of(const wire::Tensor& tensor);
Box box_of(const wire::Slice& slice);
FileIdentity identity_of(const wire::Manifest& manifest, const wire::File& file);
FileSummary summary_of(const wire::File& file);
CheckpointFacts facts_of(const wire::Manifest& manifest);
/// "parameter embedding.weight".
std::string title_of(const wire::Tensor& tensor);

void set_type(TensorKind kind, DType dtype, const Shape& shape, wire::Tensor& tensor);
void set_box(const Box& box, wire::Slice& slice);
void set_summary(const FileSummary& summary, wire::File& file);

}  // namespace tessera
