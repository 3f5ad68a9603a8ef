#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/core/buffer.h"
#include "parallel/mpi_communicator.h"

// The sum of f32 gradients over all ranks, next to MPI_Allreduce and to a plain copy of the same
// memory by all ranks at once. Run it under mpirun.

namespace tessera {
namespace {

/// Seconds of one call of `f`, the fastest of a few, on the slowest rank.
template <class F>
double seconds(Communicator& world, int repeats, F f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    world.barrier();
    const auto begin = std::chrono::steady_clock::now();
    f();
    world.barrier();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    best = std::min(best, spent.count());
  }
  return best;
}

void run(Communicator& world) {
  Stream stream{Device{}};
  if (world.rank() == 0) {
    std::printf("%6s %12s %14s %14s %14s %10s\n", "ranks", "bytes", "all_reduce us",
                "MPI_Allreduce", "copy us", "GB/s");
  }
  for (const int64_t elements : {16LL, 4096LL, 65536LL, 1048576LL, 33554432LL}) {
    const Buffer buffer(Device{}, elements * 4);
    const Buffer other(Device{}, elements * 4);
    const TensorView data = buffer.view(DType::kF32, {elements});
    void* copy = other.view(DType::kF32, {elements}).data();
    const int repeats = elements > 1000000 ? 5 : 200;
    const double ours =
        seconds(world, repeats, [&] { world.all_reduce(stream, data, Reduction::kSum); });
    const double theirs = seconds(world, repeats, [&] {
      MPI_Allreduce(MPI_IN_PLACE, data.data(), static_cast<int>(elements), MPI_FLOAT, MPI_SUM,
                    MPI_COMM_WORLD);
    });
    const double copied = seconds(
        world, repeats, [&] { std::memcpy(copy, data.data(), static_cast<size_t>(data.bytes())); });
    if (world.rank() != 0) continue;
    std::printf("%6d %12lld %14.1f %14.1f %14.1f %10.2f\n", world.size(),
                static_cast<long long>(data.bytes()), ours * 1e6, theirs * 1e6, copied * 1e6,
                static_cast<double>(data.bytes()) / ours * 1e-9);
  }
}

}  // namespace
}  // namespace tessera

int main() {
  tessera::MpiEnvironment mpi;
  tessera::run(mpi.world());
  return 0;
}
