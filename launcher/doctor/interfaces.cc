#include "launcher/doctor/interfaces.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <functional>
#include <map>

#include "kernels/core/error.h"
#include "launcher/doctor/words.h"

namespace tessera {

namespace {

using Bits = std::vector<unsigned char>;

// The bytes of an address in text; empty when it is none.
Bits bits_of(const std::string& text) {
  Bits bytes(16);
  if (inet_pton(AF_INET6, text.c_str(), bytes.data()) == 1) return bytes;
  bytes.resize(4);
  if (inet_pton(AF_INET, text.c_str(), bytes.data()) == 1) return bytes;
  return {};
}

// Whether `address` is in `network`, as "10.0.0.0/8".
bool in_network(const std::string& address, const std::string& network) {
  const size_t slash = network.find('/');
  const Bits one = bits_of(address);
  const Bits other = bits_of(network.substr(0, slash));
  if (slash == std::string::npos || one.empty() || one.size() != other.size()) return false;
  const double prefix = number_in(network.substr(slash + 1)).value_or(-1);
  if (prefix < 0 || prefix > 8.0 * static_cast<double>(one.size())) return false;
  for (size_t bit = 0; bit < static_cast<size_t>(prefix); ++bit) {
    const int mask = 0x80 >> (bit % 8);
    if ((one[bit / 8] & mask) != (other[bit / 8] & mask)) return false;
  }
  return true;
}

// Whether a part of a list of Open MPI means this interface.
bool means(const std::string& part, const Interface& interface) {
  if (part == interface.name) return true;
  return std::any_of(interface.addresses.begin(), interface.addresses.end(),
                     [&](const InterfaceAddress& one) { return in_network(one.address, part); });
}

std::vector<Interface> only(const std::vector<Interface>& all,
                            const std::function<bool(const Interface&)>& wanted) {
  std::vector<Interface> chosen;
  std::copy_if(all.begin(), all.end(), std::back_inserter(chosen), wanted);
  return chosen;
}

bool begins_with_one(const std::string& name, const std::vector<std::string>& parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](const std::string& part) { return name.starts_with(part); });
}

bool has_address(const Interface& interface) {
  return interface.up && !interface.addresses.empty();
}

}  // namespace

bool Interface::inner() const {
  static const std::vector<std::string> kNames{
      "docker", "virbr", "br-",  "veth",   "cni", "flannel", "cali",      "podman", "lxc", "lxd",
      "vmnet",  "vbox",  "kube", "cilium", "tun", "tap",     "tailscale", "wg",     "zt"};
  return begins_with_one(name, kNames);
}

std::vector<Interface> interfaces_of(const Machine& machine) {
  std::map<std::string, Interface> found;
  for (const std::string& name : machine.names("/sys/class/net")) {
    const std::string folder = "/sys/class/net/" + name;
    if (!machine.file(folder + "/mtu")) continue;  // bonding_masters is no interface
    Interface& one = found[name];
    // Loopback and tunnels say "unknown" when they are up.
    const std::string state = trimmed(machine.file(folder + "/operstate").value_or("unknown"));
    one.up = state == "up" || state == "unknown";
    one.mtu = whole(number_in(machine.file(folder + "/mtu").value_or("")).value_or(0));
    const auto speed = number_in(machine.file(folder + "/speed").value_or(""));
    if (speed && *speed > 0) one.speed = speed;
  }
  for (const InterfaceAddress& address : machine.addresses()) {
    // Every card gives itself one of these, and nobody uses them for messages.
    if (address.address.starts_with("fe80:")) continue;
    const bool known = found.contains(address.interface);
    Interface& one = found[address.interface];
    if (!known) one.up = true;  // without /sys
    one.addresses.push_back(address);
  }
  std::vector<Interface> interfaces;
  for (auto& [name, one] : found) {
    one.name = name;
    one.loopback = name == "lo";
    interfaces.push_back(std::move(one));
  }
  return interfaces;
}

std::string to_string(const Interface& interface) {
  std::string text = interface.name;
  if (!interface.addresses.empty()) {  // the first is enough to know it by
    text += concat(" ", interface.addresses[0].address, "/", interface.addresses[0].prefix);
  }
  if (!interface.up) text += ", down";
  if (interface.speed) {
    text += *interface.speed >= 1000 ? concat(", ", *interface.speed / 1000, " Gbit/s")
                                     : concat(", ", *interface.speed, " Mbit/s");
  }
  if (interface.mtu > 0) text += concat(", MTU ", interface.mtu);
  return text;
}

std::vector<Interface> mpi_interfaces(const std::vector<Interface>& all, const std::string& include,
                                      const std::string& exclude) {
  const std::vector<std::string> parts = words_of(include.empty() ? exclude : include, ", ");
  return only(all, [&](const Interface& one) {
    const bool named = std::any_of(parts.begin(), parts.end(),
                                   [&](const std::string& part) { return means(part, one); });
    return has_address(one) && named == !include.empty();
  });
}

std::vector<Interface> nccl_interfaces(const std::vector<Interface>& all,
                                       const std::string& choice) {
  if (!choice.empty()) {
    const bool excludes = choice.front() == '^';
    const size_t begin = excludes ? 1 : 0;
    const bool exact = choice.substr(begin).starts_with('=');
    const std::vector<std::string> parts = words_of(choice.substr(begin + (exact ? 1 : 0)), ", ");
    return only(all, [&](const Interface& one) {
      const bool named = exact ? std::find(parts.begin(), parts.end(), one.name) != parts.end()
                               : begins_with_one(one.name, parts);
      return has_address(one) && named != excludes;
    });
  }
  const auto named = [&](const std::vector<std::string>& parts, bool wanted) {
    return only(all, [&](const Interface& one) {
      return has_address(one) && begins_with_one(one.name, parts) == wanted;
    });
  };
  std::vector<Interface> chosen = named({"ib"}, true);
  if (chosen.empty()) chosen = named({"docker", "lo"}, false);
  if (chosen.empty()) chosen = named({"docker"}, true);
  if (chosen.empty()) chosen = named({"lo"}, true);
  return chosen;
}

std::vector<FabricPort> fabric_ports(const Machine& machine) {
  std::vector<FabricPort> ports;
  const std::string root = "/sys/class/infiniband";
  for (const std::string& device : machine.names(root)) {
    for (const std::string& port : machine.names(concat(root, "/", device, "/ports"))) {
      const std::string folder = concat(root, "/", device, "/ports/", port);
      const auto said = [&](const char* name) {
        return trimmed(machine.file(concat(folder, "/", name)).value_or(""));
      };
      ports.push_back({.name = concat(device, ":", port),
                       .active = said("state").find("ACTIVE") != std::string::npos,
                       .rate = said("rate"),
                       .link = said("link_layer")});
    }
  }
  return ports;
}

}  // namespace tessera
