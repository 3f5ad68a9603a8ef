#include "launcher/doctor/machine.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>

namespace tessera {

namespace {

// Files of /proc and /sys are short; what is longer is not one of those.
constexpr size_t kLongestFile = 4U << 20;

// The leading ones of a mask.
int prefix_of(const unsigned char* mask, size_t bytes) {
  int bits = 0;
  for (size_t i = 0; i < bytes; ++i) bits += std::popcount(mask[i]);
  return bits;
}

// Nothing for what is no IP address.
std::optional<InterfaceAddress> address_of(const ifaddrs& one) {
  if (one.ifa_addr == nullptr || one.ifa_name == nullptr) return {};
  const int family = one.ifa_addr->sa_family;
  if (family != AF_INET && family != AF_INET6) return {};
  const size_t offset =
      family == AF_INET ? offsetof(sockaddr_in, sin_addr) : offsetof(sockaddr_in6, sin6_addr);
  const size_t bytes = family == AF_INET ? sizeof(in_addr) : sizeof(in6_addr);
  const auto at = [&](const sockaddr* address) {
    return reinterpret_cast<const unsigned char*>(address) + offset;
  };
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (inet_ntop(family, at(one.ifa_addr), text.data(), text.size()) == nullptr) return {};
  return InterfaceAddress{
      .interface = one.ifa_name,
      .address = text.data(),
      .prefix = one.ifa_netmask == nullptr ? 0 : prefix_of(at(one.ifa_netmask), bytes)};
}

}  // namespace

std::optional<std::string> ThisMachine::file(const std::string& path) const {
  std::ifstream in(path, std::ios::binary);
  std::string text;
  std::array<char, 4096> block{};
  while (text.size() < kLongestFile && (in.read(block.data(), block.size()) || in.gcount() > 0)) {
    text.append(block.data(), static_cast<size_t>(in.gcount()));
  }
  // Some files of /sys can be opened, but not read.
  if (in.bad() || (text.empty() && !in.eof())) return {};
  return text;
}

std::vector<std::string> ThisMachine::names(const std::string& folder) const {
  std::vector<std::string> found;
  std::error_code error;
  auto entry = std::filesystem::directory_iterator(folder, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    found.push_back(entry->path().filename().string());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::string ThisMachine::variable(const std::string& name) const {
  const char* text = std::getenv(name.c_str());
  return text == nullptr ? "" : text;
}

std::vector<std::string> ThisMachine::variables(const std::string& prefix) const {
  std::vector<std::string> found;
  for (char** one = environ; *one != nullptr; ++one) {
    if (std::strncmp(*one, prefix.c_str(), prefix.size()) == 0) found.emplace_back(*one);
  }
  return found;
}

CapturedCommand ThisMachine::ask(const std::vector<std::string>& command, double seconds) const {
  return capture_command(command, {.seconds = seconds});
}

std::vector<InterfaceAddress> ThisMachine::addresses() const {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(first, &freeifaddrs);
  std::vector<InterfaceAddress> found;
  for (const ifaddrs* one = first; one != nullptr; one = one->ifa_next) {
    if (auto address = address_of(*one)) found.push_back(std::move(*address));
  }
  return found;
}

std::optional<Space> ThisMachine::space(const std::string& path) const {
  struct statvfs said {};
  if (statvfs(path.c_str(), &said) != 0) return {};
  return Space{.total = said.f_blocks * said.f_frsize,
               .free = said.f_bavail * said.f_frsize,
               .free_files = said.f_favail,
               .files = said.f_files};
}

}  // namespace tessera
