#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launcher/captured_command.h"

namespace tessera {

/// An address of a network interface.
struct InterfaceAddress {
  std::string interface;
  std::string address;  ///< "10.0.0.1", "fe80::1"
  int prefix = 0;       ///< leading bits that are the network's

  friend bool operator==(const InterfaceAddress&, const InterfaceAddress&) = default;
};

/// Room in a file system, in bytes.
struct Space {
  uint64_t total = 0;
  uint64_t free = 0;        ///< for this user
  uint64_t free_files = 0;  ///< inodes; 0 of 0: it does not count them
  uint64_t files = 0;
};

/// What a machine says about itself. Checks ask it and judge; tests answer in its place. Nothing
/// here throws: what cannot be read is not there. May be asked by several threads at once.
class Machine {
 public:
  virtual ~Machine() = default;

  /// The text of a file of /proc, /sys or /etc.
  virtual std::optional<std::string> file(const std::string& path) const = 0;
  /// The names in a folder, sorted.
  virtual std::vector<std::string> names(const std::string& folder) const = 0;
  /// An environment variable; empty when it is not set.
  virtual std::string variable(const std::string& name) const = 0;
  /// "NAME=VALUE" of all whose names begin with `prefix`.
  virtual std::vector<std::string> variables(const std::string& prefix) const = 0;
  /// Runs a command, for at most `seconds`.
  virtual CapturedCommand ask(const std::vector<std::string>& command, double seconds) const = 0;
  /// Of all network interfaces.
  virtual std::vector<InterfaceAddress> addresses() const = 0;
  virtual std::optional<Space> space(const std::string& path) const = 0;
};

/// The machine that this process runs on.
class ThisMachine final : public Machine {
 public:
  std::optional<std::string> file(const std::string& path) const override;
  std::vector<std::string> names(const std::string& folder) const override;
  std::string variable(const std::string& name) const override;
  std::vector<std::string> variables(const std::string& prefix) const override;
  CapturedCommand ask(const std::vector<std::string>& command, double seconds) const override;
  std::vector<InterfaceAddress> addresses() const override;
  std::optional<Space> space(const std::string& path) const override;
};

}  // namespace tessera
