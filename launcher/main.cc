#include <chrono>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "kernels/core/cpu_features.h"
#include "kernels/core/error.h"
#include "kernels/core/log.h"
#include "launcher/dispatch.h"
#include "launcher/job_environment.h"

namespace {

using tessera::ExitCode;

// Wrong usage is told as it is, for people and editors that follow file:line:column; everything
// else goes to the log, too. What all ranks see is told by rank 0 alone: its exit ends the job
// before the others speak.
int report(const std::string& message, ExitCode code) {
  if (tessera::job_environment().rank > 0) std::this_thread::sleep_for(std::chrono::seconds(1));
  const std::string prefix = tessera::rank_prefix();
  const std::string plain = message.starts_with(prefix) ? message.substr(prefix.size()) : message;
  if (code == ExitCode::kUsage) {
    std::fputs((plain + "\n").c_str(), stderr);
  } else {
    tessera::log_line(plain);
  }
  return static_cast<int>(code);
}

}  // namespace

int main(int argc, char** argv) {
  if (const char* missing = tessera::missing_cpu_feature()) {
    std::fprintf(stderr,
                 "tessera was built for processors with %s, which this one lacks; rebuild with "
                 "cmake --preset cpu -DCPU_ARCH=x86-64-v2, or -v3, or native on this machine\n",
                 missing);
    return static_cast<int>(ExitCode::kUsage);
  }
  const tessera::JobEnvironment job = tessera::job_environment();
  tessera::set_error_rank(job.rank, job.ranks);
  try {
    return tessera::dispatch({argv + 1, argv + argc});
  } catch (const tessera::Error& error) {
    return report(error.what(), error.code());
  } catch (const std::bad_alloc&) {
    return report("out of memory; use more ranks, or a smaller batch.micro_sequences",
                  ExitCode::kError);
  } catch (const std::exception& error) {
    return report(error.what(), ExitCode::kError);
  }
}
