#include "tests/simt/code_place.h"

#include <dlfcn.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>

#include "kernels/core/error.h"

namespace tessera::simt {
namespace {

/// What addr2line prints for an address of this program; two lines with `function`.
std::string look_up(const void* address, int64_t offset, const char* options) {
  Dl_info info{};
  if (address == nullptr || dladdr(address, &info) == 0) return "?";
  const int64_t at = static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase);
  const std::string command = concat("addr2line -C ", options, " -e '", info.dli_fname, "' ",
                                     std::hex, at + offset, " 2>/dev/null");
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::array<char, 1024> line{};
  if (!pipe || fgets(line.data(), line.size(), pipe.get()) == nullptr) return "?";
  const std::string text = line.data();
  return text.substr(0, text.find_first_of("\n"));
}

}  // namespace

std::string code_function(const void* address) {
  std::string name = look_up(address, 0, "-f");
  const std::string nameless = "(anonymous namespace)::";
  if (const size_t at = name.find(nameless); at != std::string::npos) {
    name.erase(at, nameless.size());
  }
  return name.substr(0, name.find('('));
}

std::string code_line(const void* return_address) {
  const std::string line = look_up(return_address, -1, "-s");
  return line.substr(0, line.find(' '));
}

}  // namespace tessera::simt
