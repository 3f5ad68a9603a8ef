#include "kernels/core/error.h"

#include <string_view>

namespace tessera {

namespace {

struct World {
  int rank = 0;
  int size = 1;
};

// Threads that play ranks in tests each have their own.
World& world() {
  thread_local World place;
  return place;
}

// "/somewhere/kernels/matmul.cc" is "kernels/matmul.cc" to a reader, on every machine.
std::string_view from_root(std::string_view file) {
  for (const std::string_view folder : {"/kernels/", "/parallel/", "/model/", "/checkpoint/",
                                        "/runtime/", "/launcher/", "/tests/"}) {
    const size_t at = file.rfind(folder);
    if (at != std::string_view::npos) return file.substr(at + 1);
  }
  return file;
}

}  // namespace

void set_error_rank(int rank, int size) {
  world() = {rank, size};
}

std::string rank_prefix() {
  if (world().size == 1) return {};
  return concat("[rank ", world().rank, "/", world().size, "] ");
}

Error::Error(const char* file, int line, const std::string& message)
    : std::runtime_error(concat(rank_prefix(), message, " (", from_root(file), ":", line, ")")) {}

Error::Error(ExitCode code, const std::string& message)
    : std::runtime_error(rank_prefix() + message), code_(code) {}

}  // namespace tessera
