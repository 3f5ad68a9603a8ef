#include "runtime/watch/order_signal.h"

#include <execinfo.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <string>
#include <system_error>
#include <thread>

#include "kernels/core/error.h"
#include "runtime/watch/process_state.h"

namespace tessera {

namespace {

int order_signal() {
  return SIGRTMAX - 2;
}

// The value that comes with the signal: a descriptor to write the stack to, or this.
constexpr int kExit = -1;
constexpr char kLastLine[] = "end\n";
constexpr int kThreads = 64;

void obey(int /*number*/, siginfo_t* order, void* /*context*/) {
  const int descriptor = order->si_value.sival_int;
  if (order->si_code != SI_QUEUE) return;
  if (descriptor == kExit) _exit(static_cast<int>(ExitCode::kTryAgain));
  const int trouble = errno;
  std::array<void*, 64> frames;
  const int count = backtrace(frames.data(), static_cast<int>(frames.size()));
  backtrace_symbols_fd(frames.data(), count, descriptor);
  (void)!write(descriptor, kLastLine, sizeof kLastLine - 1);
  errno = trouble;
}

void send(pid_t process, pid_t thread, int value) {
  siginfo_t order{};
  order.si_signo = order_signal();
  order.si_code = SI_QUEUE;
  order.si_pid = getpid();
  order.si_uid = getuid();
  order.si_value.sival_int = value;
  syscall(SYS_rt_tgsigqueueinfo, process, thread, order.si_signo, &order);
}

std::string name_of_thread(pid_t process, pid_t thread) {
  std::ifstream in(concat("/proc/", process, "/task/", thread, "/comm"));
  std::string name;
  std::getline(in, name);
  return name;
}

bool ends_with_last_line(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  in.seekg(-static_cast<std::streamoff>(sizeof kLastLine - 1), std::ios::end);
  std::string tail(sizeof kLastLine - 1, 0);
  in.read(tail.data(), static_cast<std::streamsize>(tail.size()));
  return in && tail == kLastLine;
}

}  // namespace

void obey_watcher() {
  // The first call may allocate: not later, in the handler.
  std::array<void*, 4> frames;
  backtrace(frames.data(), static_cast<int>(frames.size()));
  struct sigaction action {};
  action.sa_sigaction = obey;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(order_signal(), &action, nullptr);
}

void ask_for_stacks(pid_t process, const std::filesystem::path& stacks, int descriptor) {
  const std::vector<pid_t> threads = threads_of(process);
  for (size_t i = 0; i < std::min<size_t>(threads.size(), kThreads); ++i) {
    const pid_t thread = threads[i];
    std::ofstream(stacks, std::ios::app)
        << "thread " << thread << " " << name_of_thread(process, thread) << "\n";
    send(process, thread, descriptor);
    for (int wait = 0; wait < 20 && !ends_with_last_line(stacks); ++wait) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
}

void order_exit(pid_t process) {
  send(process, process, kExit);
  ::kill(process, SIGCONT);
}

}  // namespace tessera
