#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/watch/watch_message.h"

namespace tessera {

/// A file descriptor with one owner.
class Descriptor {
 public:
  explicit Descriptor(int number = -1) : number_(number) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;

  int number() const { return number_; }
  bool open() const { return number_ >= 0; }
  void reset();

 private:
  int number_;
};

/// One end of a stream of frames. Nothing blocks; what cannot be sent at once is kept.
class WatchSocket {
 public:
  WatchSocket() = default;
  /// Takes a connected socket, or one that is being connected.
  explicit WatchSocket(Descriptor descriptor);

  int descriptor() const { return descriptor_.number(); }
  bool open() const { return descriptor_.open(); }
  bool has_unsent() const { return !unsent_.empty(); }
  void close() { descriptor_.reset(); }

  /// Errors close it. So does a peer that takes nothing while much was sent.
  void send(const std::string& frame);
  void flush();
  /// What has come. Closes it when the peer has, or sends what is no frame.
  std::vector<Frame> receive();

 private:
  Descriptor descriptor_;
  FrameReader reader_;
  std::string unsent_;
};

/// A socket that listens on all interfaces, at a port of the system's choice. Throws kTryAgain.
Descriptor listen_anywhere();
/// Its port.
int port_of(const Descriptor& listening);
/// The next connection; not open when there is none.
Descriptor accept_from(const Descriptor& listening);
/// Begins to connect; not open when the address cannot be used. `address` is in digits.
Descriptor connect_to(const std::string& address, int port);
/// The addresses of this host's interfaces that are up, in digits, loopback left out; those of
/// `interface` alone when that is not empty.
std::vector<std::string> own_addresses(const std::string& interface = "");

}  // namespace tessera
