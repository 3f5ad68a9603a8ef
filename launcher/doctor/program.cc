#include "launcher/doctor/program.h"

#include <dlfcn.h>
#include <sys/auxv.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <span>

#include "checkpoint/file_hash.h"
#include "kernels/core/build.h"
#include "kernels/core/error.h"
#include "launcher/doctor/words.h"
#include "launcher/version.h"
#include "parallel/mpi_communicator.h"

namespace tessera {

namespace {

// A function of a library that may not be there. The library stays loaded.
template <class Function>
Function* function_of(const char* library, const char* name) {
  void* handle = dlopen(library, RTLD_LAZY | RTLD_LOCAL);
  return handle == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(handle, name));
}

std::string pmix_text() {
  auto* version = function_of<const char*()>("libpmix.so.2", "PMIx_Get_version");
  const char* text = version == nullptr ? nullptr : version();
  return text == nullptr ? "" : text;
}

std::string nccl_text() {
  auto* version = function_of<int(int*)>("libnccl.so.2", "ncclGetVersion");
  int code = 0;
  return version != nullptr && version(&code) == 0 ? nccl_version(code) : "";
}

std::string digest_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  Hash128 hash;
  std::array<char, 1 << 16> block{};
  while (in.read(block.data(), block.size()) || in.gcount() > 0) {
    hash.update(std::as_bytes(std::span(block.data(), static_cast<size_t>(in.gcount()))));
  }
  return in.eof() ? hash.hex() : "";
}

// Where the kernel has loaded it from. Without /proc: what it was started as.
std::string own_path() {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) return path;
  const auto* name = reinterpret_cast<const char*>(getauxval(AT_EXECFN));
  return name == nullptr ? "" : std::filesystem::absolute(name, error).string();
}

}  // namespace

std::string loaded_file(const std::string& maps, const std::string& name) {
  for (const std::string& line : lines_in(maps)) {
    const size_t path = line.find('/');
    if (path == std::string::npos) continue;
    if (std::filesystem::path(line.substr(path)).filename().string().starts_with(name)) {
      return line.substr(path);
    }
  }
  return "";
}

std::string nccl_version(int code) {
  // Up to 2.8 the major version counted thousands, since then ten thousands.
  const int major = code >= 10000 ? 10000 : 1000;
  return concat(code / major, ".", code % major / 100, ".", code % 100);
}

Program this_program(const Machine& machine) {
  const std::string path = own_path();
  return {.version = version_text(),
          .path = path,
          .digest = digest_of(path),
          .cuda = kCudaBuilt,
          .mpi = MpiEnvironment::library(),
          .mpi_file = loaded_file(machine.file("/proc/self/maps").value_or(""), "libmpi.so"),
          .pmix = pmix_text(),
          .nccl = nccl_text()};
}

}  // namespace tessera
