#include "kernels/core/error.h"
#include "launcher/doctor/checks.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

// Seconds. Without persistence mode every call starts the driver anew, GPU by GPU.
constexpr double kPatience = 8;
constexpr double kOthersMemory = 1000;  // MiB in use before we start: someone else is there

struct Gpu {
  std::string index;
  std::string name;
  std::string driver;
  std::optional<double> total;  // MiB
  std::optional<double> used;
  std::optional<double> uncorrected;  // memory errors since the driver was started
};

// Lines of "0, NVIDIA H100 80GB HBM3, 535.104.05, 81559, 3, 0".
std::vector<Gpu> parse_gpus(const std::string& text) {
  std::vector<Gpu> gpus;
  for (const std::string& line : lines_in(text)) {
    std::vector<std::string> parts = words_of(line, ",");
    if (parts.size() < 6 || !number_in(parts[0])) continue;
    gpus.push_back({trimmed(parts[0]), trimmed(parts[1]), trimmed(parts[2]), number_in(parts[3]),
                    number_in(parts[4]), number_in(parts[5])});
  }
  return gpus;
}

Findings judge_gpus(const std::vector<Gpu>& gpus) {
  Findings findings;
  const Gpu& first = gpus.front();
  std::string found = concat(gpus.size(), " x ", first.name, ", driver ", first.driver);
  if (first.total) found += concat(", ", bytes_text(*first.total * 1048576), " each");
  bool mixed = false;
  for (const Gpu& gpu : gpus) {
    mixed |= gpu.name != first.name;
    if (gpu.uncorrected.value_or(0) > 0) {
      findings.push_back({Verdict::kFail, "gpu",
                          concat("GPU ", gpu.index, " has had ", *gpu.uncorrected,
                                 " memory errors that could not be corrected"),
                          "do not train on it; the administrator may reset or replace it"});
    }
    if (gpu.used.value_or(0) > kOthersMemory) {
      findings.push_back(
          {Verdict::kWarn, "gpu",
           concat("GPU ", gpu.index, " has ", bytes_text(*gpu.used * 1048576), " in use already"),
           "nvidia-smi shows by whom: end it, or take other GPUs "
           "(CUDA_VISIBLE_DEVICES)"});
    }
  }
  if (mixed) {
    findings.insert(findings.begin(), {Verdict::kWarn, "gpu", concat(found, ", and others"),
                                       "every step waits for the slowest kind"});
  } else {
    findings.insert(findings.begin(), {Verdict::kOk, "gpu", found});
  }
  return findings;
}

// The table of `nvidia-smi topo -p2p r`: a row "GPU0 X OK OK" per GPU.
Finding judge_peers(const std::string& table, size_t gpus) {
  std::vector<std::string> apart;
  size_t rows = 0;
  for (const std::string& line : lines_in(table)) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() != gpus + 1 || !words[0].starts_with("GPU") || words[1].starts_with("GPU")) {
      continue;
    }
    for (size_t other = rows + 1; other < gpus; ++other) {
      if (words[other + 1] != "OK") apart.push_back(concat(rows, "-", other));
    }
    ++rows;
  }
  if (rows != gpus) {
    return {Verdict::kOk, "peers", "nvidia-smi topo does not tell who reaches whose memory"};
  }
  if (apart.empty()) {
    return {Verdict::kOk, "peers",
            concat("each of the ", gpus, " GPUs reaches the others' memory")};
  }
  const size_t pairs = apart.size();
  apart.resize(std::min<size_t>(pairs, 3));
  return {Verdict::kWarn, "peers",
          concat(pairs, " pairs of GPUs do not reach each other's memory, as ", listed(apart)),
          "NCCL then goes through the host, which is slow: with Slurm use --gpus-per-node=N "
          "--gpu-bind=none, not --gpus-per-task; in virtual machines look at IOMMU and ACS"};
}

// NVIDIA forbids these for communicators that are made again after an abort.
bool is_known_bad(const std::string& nccl) {
  return compare_versions(nccl, "2.28.3") >= 0 && compare_versions(nccl, "2.28.9") < 0;
}

Finding judge_nccl(const Program& program) {
  if (program.nccl.empty()) {
    if (!program.cuda) return {Verdict::kOk, "nccl", "not installed, and not used by this build"};
    return {Verdict::kWarn, "nccl", "libnccl.so.2 was not found",
            "install libnccl2, or put its folder into LD_LIBRARY_PATH"};
  }
  if (is_known_bad(program.nccl)) {
    return {Verdict::kWarn, "nccl",
            concat("NCCL ", program.nccl, " may crash when a communicator is ended"),
            "use 2.28.9 or newer"};
  }
  return {Verdict::kOk, "nccl", "NCCL " + program.nccl};
}

Findings without_driver(const Machine& machine, const Program& program,
                        const CapturedCommand& said) {
  const bool kernel = machine.file("/proc/driver/nvidia/version").has_value();
  if (kernel || (said.exit_code != 127 && said.timed_out)) {
    return {{Verdict::kFail, "gpu", concat("there is an NVIDIA driver, but ", said.trouble),
             "try nvidia-smi by hand; after an update of the driver the machine must be restarted; "
             "nvidia-persistenced makes it quick"}};
  }
  if (program.cuda) {
    return {{Verdict::kWarn, "gpu", "no NVIDIA driver: runtime.device=GPU cannot work here",
             "install the driver, or train with runtime.device=CPU"}};
  }
  return {{Verdict::kOk, "gpu", "no NVIDIA driver, and the program was built without CUDA"}};
}

}  // namespace

Findings check_gpus(const Machine& machine, const Program& program) {
  const CapturedCommand said =
      machine.ask({"nvidia-smi",
                   "--query-gpu=index,name,driver_version,memory.total,memory.used,"
                   "ecc.errors.uncorrected.volatile.total",
                   "--format=csv,noheader,nounits"},
                  kPatience);
  if (!said.ok()) {
    Findings findings = without_driver(machine, program, said);
    findings.push_back(judge_nccl(program));
    return findings;
  }
  const std::vector<Gpu> gpus = parse_gpus(said.output);
  if (gpus.empty()) {
    return {{Verdict::kWarn, "gpu", "the NVIDIA driver sees no GPU",
             "is one given to this job or container (--gpus)?"},
            judge_nccl(program)};
  }
  Findings findings = judge_gpus(gpus);
  if (!program.cuda) {
    findings.push_back({Verdict::kWarn, "gpu",
                        "the program was built without CUDA and leaves the "
                        "GPUs alone",
                        "build it with cmake --preset cuda"});
  }
  if (gpus.size() > 1) {
    findings.push_back(judge_peers(
        machine.ask({"nvidia-smi", "topo", "-p2p", "r"}, kPatience).output, gpus.size()));
  }
  findings.push_back(judge_nccl(program));
  return findings;
}

}  // namespace tessera
