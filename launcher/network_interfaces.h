#pragma once

#include <string>
#include <vector>

namespace tessera {

/// A network interface of this host.
struct NetworkInterface {
  std::string name;
  std::string address;  ///< IPv4, the first, with its network: "10.0.0.1/24"; empty: none
  bool up = false;
};

/// "10.0.0.0/24" of "10.0.0.1/24"; empty when that is no address with its network.
std::string network_of(const std::string& address);

/// All of them, in the order of the system.
std::vector<NetworkInterface> network_interfaces();

/// Whether `host` is this one: by its name, or by an address of one of its interfaces.
bool is_this_host(const std::string& host);

}  // namespace tessera
