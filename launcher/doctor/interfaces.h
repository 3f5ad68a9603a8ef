#pragma once

#include "launcher/doctor/machine.h"

namespace tessera {

/// A network interface.
struct Interface {
  std::string name;
  bool up = false;
  bool loopback = false;
  int mtu = 0;                                   ///< 0: not told
  std::optional<double> speed = {};              ///< Mbit/s; virtual ones have none
  std::vector<InterfaceAddress> addresses = {};  ///< but for link-local ones

  /// Whether other hosts may be reached through it.
  bool usable() const { return up && !loopback && !addresses.empty(); }
  /// Made by containers or virtual machines for their own traffic, judging by its name.
  bool inner() const;
};

/// All of them, sorted by name.
std::vector<Interface> interfaces_of(const Machine& machine);

/// "eth0 192.0.2.2/24, 10 Gbit/s, MTU 1500".
std::string to_string(const Interface& interface);

/// Those that Open MPI's TCP uses: the usable ones that `include` names, by name or as a network
/// ("10.0.0.0/8"), or when it is empty those that `exclude` does not name; commas between.
std::vector<Interface> mpi_interfaces(const std::vector<Interface>& all, const std::string& include,
                                      const std::string& exclude);

/// Those that NCCL's sockets use with NCCL_SOCKET_IFNAME=`choice`: names that begin with one of its
/// parts, are equal (behind "="), or do not (behind "^"). When it is empty: those named ib...,
/// else all but docker... and lo, else docker..., else lo.
std::vector<Interface> nccl_interfaces(const std::vector<Interface>& all,
                                       const std::string& choice);

/// A port of an InfiniBand or RoCE adapter.
struct FabricPort {
  std::string name;  ///< "mlx5_0:1"
  bool active = false;
  std::string rate;  ///< "200 Gb/sec (4X HDR)"
  std::string link;  ///< "InfiniBand", "Ethernet"
};

std::vector<FabricPort> fabric_ports(const Machine& machine);

}  // namespace tessera
