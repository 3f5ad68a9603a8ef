#include "launcher/network_interfaces.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <array>
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

std::vector<NetworkInterface> network_interfaces() {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(first, &freeifaddrs);
  std::vector<NetworkInterface> found;
  for (const ifaddrs* one = first; one != nullptr; one = one->ifa_next) {
    const std::string address = text_of(one->ifa_addr);
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
    return !one.address.empty() &&
           std::find(addresses.begin(), addresses.end(), one.address) != addresses.end();
  });
}

}  // namespace tessera
