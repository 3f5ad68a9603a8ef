#include "launcher/network_interfaces.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstdint>
#include <memory>

namespace tessera {

namespace {

// "10.0.0.1"; empty for anything but an IPv4 address.
std::string text_of(const sockaddr* address) {
  if (address == nullptr || address->sa_family != AF_INET) return "";
  std::array<char, INET_ADDRSTRLEN> text{};
  inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text.data(),
            text.size());
  return text.data();
}

// "10.0.0.1/24".
std::string with_network(const ifaddrs& one) {
  const std::string address = text_of(one.ifa_addr);
  if (address.empty() || one.ifa_netmask == nullptr) return address;
  const uint32_t mask = reinterpret_cast<const sockaddr_in*>(one.ifa_netmask)->sin_addr.s_addr;
  return address + "/" + std::to_string(std::popcount(mask));
}

std::vector<std::string> addresses_of(const std::string& host) {
  addrinfo wanted{};
  wanted.ai_family = AF_INET;
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), nullptr, &wanted, &found) != 0) return {};
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  std::vector<std::string> addresses;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    addresses.push_back(text_of(one->ai_addr));
  }
  return addresses;
}

}  // namespace

std::string network_of(const std::string& address) {
  const size_t slash = address.find('/');
  in_addr bits{};
  int prefix = -1;
  const char* end = address.data() + address.size();
  if (slash == std::string::npos ||
      inet_pton(AF_INET, address.substr(0, slash).c_str(), &bits) != 1 ||
      std::from_chars(address.data() + slash + 1, end, prefix).ptr != end || prefix < 0 ||
      prefix > 32) {
    return "";
  }
  bits.s_addr &= htonl(prefix == 0 ? 0 : ~uint32_t{0} << (32 - prefix));
  std::array<char, INET_ADDRSTRLEN> text{};
  inet_ntop(AF_INET, &bits, text.data(), text.size());
  return std::string(text.data()) + address.substr(slash);
}

std::vector<NetworkInterface> network_interfaces() {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(first, &freeifaddrs);
  std::vector<NetworkInterface> found;
  for (const ifaddrs* one = first; one != nullptr; one = one->ifa_next) {
    const std::string address = with_network(*one);
    const auto known = std::find_if(found.begin(), found.end(), [&](const NetworkInterface& other) {
      return other.name == one->ifa_name;
    });
    if (known == found.end()) {
      found.push_back({one->ifa_name, address, (one->ifa_flags & IFF_UP) != 0});
    } else if (known->address.empty()) {
      known->address = address;
    }
  }
  return found;
}

bool is_this_host(const std::string& host) {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  const std::string own = name.data();
  if (host == own || host == own.substr(0, own.find('.')) || host == "localhost") return true;
  const std::vector<NetworkInterface> interfaces = network_interfaces();
  const std::vector<std::string> addresses = addresses_of(host);
  return std::any_of(interfaces.begin(), interfaces.end(), [&](const NetworkInterface& one) {
    const std::string address = one.address.substr(0, one.address.find('/'));
    return !address.empty() &&
           std::find(addresses.begin(), addresses.end(), address) != addresses.end();
  });
}

}  // namespace tessera
