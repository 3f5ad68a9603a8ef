#include "parallel/gpu_world.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>

#include "kernels/core/log.h"
#include "parallel/agreement.h"
#include "parallel/nccl_communicator.h"

namespace tessera {

namespace {

constexpr int64_t kNameBytes = 128;

std::string host_name() {
  std::array<char, kNameBytes> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

/// The names of all ranks, cut to what fits.
std::vector<std::string> gather_names(Communicator& world, const std::string& own) {
  Stream stream{Device{}};
  std::vector<char> part(kNameBytes);
  own.copy(part.data(), kNameBytes - 1);
  std::vector<char> whole(static_cast<size_t>(kNameBytes * world.size()));
  world.all_gather(stream, {part.data(), DType::kU8, {kNameBytes}, Device{}},
                   {whole.data(), DType::kU8, {kNameBytes * world.size()}, Device{}});
  std::vector<std::string> names;
  for (int r = 0; r < world.size(); ++r) names.emplace_back(whole.data() + r * kNameBytes);
  return names;
}

}  // namespace

int gpu_of_rank(std::span<const std::string> hosts, int rank, int gpus) {
  CHECK(rank >= 0 && static_cast<size_t>(rank) < hosts.size() && gpus > 0, "gpu_of_rank: rank ",
        rank, " of ", hosts.size(), " and ", gpus, " GPUs");
  const std::string& own = hosts[static_cast<size_t>(rank)];
  return static_cast<int>(std::count(hosts.begin(), hosts.begin() + rank, own)) % gpus;
}

bool shares_a_gpu(std::span<const std::string> gpus) {
  return std::set<std::string>(gpus.begin(), gpus.end()).size() < gpus.size();
}

Device choose_gpu(Communicator& world) {
  const Gpus gpus = find_gpus();
  const std::optional<Failure> failure = first_failure(world, failure_of([&] {
                                                         const std::string complaint =
                                                             gpu_complaint(gpus, 0);
                                                         if (!complaint.empty()) {
                                                           throw Error(ExitCode::kUsage, complaint);
                                                         }
                                                       }));
  if (failure) throw Error(failure->code, to_text(*failure, world));
  const std::vector<std::string> hosts = gather_names(world, host_name());
  return {DeviceKind::kGpu, gpu_of_rank(hosts, world.rank(), gpus.count)};
}

std::unique_ptr<Communicator> make_gpu_world(Communicator& world, Device device) {
  if (world.size() == 1) return nullptr;
  const std::vector<std::string> gpus =
      gather_names(world, concat(gpu_address(device.index), " of ", host_name()));
  if (!shares_a_gpu(gpus)) return make_nccl_communicator(world, device);
  if (world.rank() == 0) {
    log_line("ranks share a GPU: their tensors are exchanged through host memory, not by NCCL");
  }
  return nullptr;
}

}  // namespace tessera
