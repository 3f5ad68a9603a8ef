#include "kernels/gate_tree.h"

#include "kernels/core/build.h"
#include "kernels/core/expect_tensor.h"

namespace tessera {

void check_tree(const TreeSearch& tree, int64_t gate_keys, const char* who) {
  if (!tree.enabled()) return;
  CHECK(tree.radix == 4 || tree.radix == 8 || tree.radix == 16, who, ": the tree has radix ",
        tree.radix, ", expected 4, 8 or 16");
  CHECK(gate_keys == 1, who, ": gate_keys is ", gate_keys,
        ", expected 1 with a tree; set its beam to 0 to score every block");
}

void insert_pages(Stream& stream, const InsertPages& a) {
  CHECK(a.tree.enabled(), "insert_pages: the tree has beam 0, expected at least 1");
  check_tree(a.tree, 1, "insert_pages");
  CHECK(a.kt.shape().rank() == 4, "insert_pages: kt is ", a.kt.shape(),
        ", expected [groups, sequences, pages, gate_dim]");
  const int64_t groups = a.kt.shape()[0];
  const int64_t sequences = a.kt.shape()[1];
  const int64_t pages = a.kt.shape()[2];
  const int64_t gate_dim = a.kt.shape()[3];
  expect_tensor(a.kt, DType::kF32, a.kt.shape(), "insert_pages: kt",
                "[groups, sequences, pages, gate_dim]");
  expect_tensor(a.nodes, DType::kF32, {groups, sequences, tree_rows(pages), gate_dim},
                "insert_pages: nodes", "[groups, sequences, tree_rows(pages), gate_dim]");
  const int64_t inserted = a.numbers.elements();
  expect_tensor(a.numbers, DType::kI32, {inserted}, "insert_pages: numbers", "[new pages]");
  expect_tensor(a.places, DType::kI32, {inserted}, "insert_pages: places", "[new pages]");
  CHECK(a.sink_blocks >= 0, "insert_pages: sink_blocks is ", a.sink_blocks, ", expected >= 0");
  if (stream.on(DeviceKind::kCpu)) cpu::insert_pages(stream.threads(), a);
  if constexpr (kCudaBuilt) {
    if (stream.on(DeviceKind::kGpu)) gpu::insert_pages(stream, a);
  }
}

}  // namespace tessera
