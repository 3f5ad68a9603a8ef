#include "runtime/watch/watch_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>

#include "kernels/core/error.h"

namespace tessera {

namespace {

constexpr size_t kMostUnsent = 8 << 20;

bool later() {
  return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ENOTCONN;
}

Descriptor stream_socket(int family) {
  return Descriptor(socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

bool listens(const Descriptor& made, const sockaddr* address, socklen_t bytes) {
  return made.open() && bind(made.number(), address, bytes) == 0 &&
         listen(made.number(), SOMAXCONN) == 0;
}

}  // namespace

Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

void Descriptor::reset() {
  if (open()) ::close(number_);
  number_ = -1;
}

WatchSocket::WatchSocket(Descriptor descriptor) : descriptor_(std::move(descriptor)) {
  const int on = 1;
  setsockopt(descriptor_.number(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

void WatchSocket::send(const std::string& frame) {
  if (!open()) return;
  unsent_ += frame;
  flush();
  if (unsent_.size() > kMostUnsent) close();
}

void WatchSocket::flush() {
  while (open() && !unsent_.empty()) {
    const ssize_t sent = ::send(descriptor(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
    if (sent < 0) {
      if (!later()) close();
      return;
    }
    unsent_.erase(0, static_cast<size_t>(sent));
  }
}

std::vector<Frame> WatchSocket::receive() {
  std::array<char, 65536> bytes;
  while (open()) {
    const ssize_t got = recv(descriptor(), bytes.data(), bytes.size(), 0);
    if (got < 0 && later()) break;
    if (got <= 0) {
      close();
      break;
    }
    reader_.add({bytes.data(), static_cast<size_t>(got)});
  }
  std::vector<Frame> frames;
  try {
    while (auto frame = reader_.next()) frames.push_back(std::move(*frame));
  } catch (const std::exception&) {
    // Somebody else's connection: it is no matter of this job.
    close();
  }
  return frames;
}

Descriptor listen_anywhere() {
  sockaddr_in6 any6{};
  any6.sin6_family = AF_INET6;
  any6.sin6_addr = in6addr_any;
  Descriptor made = stream_socket(AF_INET6);
  const int both = 0;
  if (made.open()) setsockopt(made.number(), IPPROTO_IPV6, IPV6_V6ONLY, &both, sizeof both);
  if (listens(made, reinterpret_cast<const sockaddr*>(&any6), sizeof any6)) return made;
  sockaddr_in any{};
  any.sin_family = AF_INET;
  made = stream_socket(AF_INET);
  if (listens(made, reinterpret_cast<const sockaddr*>(&any), sizeof any)) return made;
  throw Error(ExitCode::kTryAgain,
              concat("the watcher of rank 0 cannot listen on any network interface: ",
                     std::strerror(errno), "; free some ports, or set watch.enabled to false"));
}

int port_of(const Descriptor& listening) {
  sockaddr_storage address{};
  socklen_t bytes = sizeof address;
  getsockname(listening.number(), reinterpret_cast<sockaddr*>(&address), &bytes);
  return address.ss_family == AF_INET6
             ? ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port)
             : ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

Descriptor accept_from(const Descriptor& listening) {
  return Descriptor(accept4(listening.number(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

Descriptor connect_to(const std::string& address, int port) {
  sockaddr_in v4{};
  sockaddr_in6 v6{};
  v4.sin_family = AF_INET;
  v6.sin6_family = AF_INET6;
  v4.sin_port = v6.sin6_port = htons(static_cast<uint16_t>(port));
  const bool is4 = inet_pton(AF_INET, address.c_str(), &v4.sin_addr) == 1;
  if (!is4 && inet_pton(AF_INET6, address.c_str(), &v6.sin6_addr) != 1) return Descriptor();
  Descriptor made = stream_socket(is4 ? AF_INET : AF_INET6);
  const auto* to =
      is4 ? reinterpret_cast<const sockaddr*>(&v4) : reinterpret_cast<const sockaddr*>(&v6);
  const socklen_t bytes = is4 ? sizeof v4 : sizeof v6;
  if (made.open() && connect(made.number(), to, bytes) != 0 && errno != EINPROGRESS) made.reset();
  return made;
}

std::vector<std::string> own_addresses(const std::string& interface) {
  std::vector<std::string> found;
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return found;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    const bool loopback = (one->ifa_flags & IFF_LOOPBACK) != 0;
    if (one->ifa_addr == nullptr || (one->ifa_flags & IFF_UP) == 0) continue;
    if (interface.empty() ? loopback : interface != one->ifa_name) continue;
    std::array<char, INET6_ADDRSTRLEN> text{};
    const void* digits = nullptr;
    if (one->ifa_addr->sa_family == AF_INET) {
      digits = &reinterpret_cast<const sockaddr_in*>(one->ifa_addr)->sin_addr;
    } else if (one->ifa_addr->sa_family == AF_INET6) {
      const in6_addr& v6 = reinterpret_cast<const sockaddr_in6*>(one->ifa_addr)->sin6_addr;
      if (!IN6_IS_ADDR_LINKLOCAL(&v6)) digits = &v6;
    }
    if (digits == nullptr) continue;
    found.emplace_back(inet_ntop(one->ifa_addr->sa_family, digits, text.data(), text.size()));
  }
  freeifaddrs(all);
  return found;
}

}  // namespace tessera
