#include "runtime/watch/watch_socket.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

namespace tessera {
namespace {

Descriptor accepted(const Descriptor& listening) {
  pollfd one{listening.number(), POLLIN, 0};
  poll(&one, 1, 5000);
  return accept_from(listening);
}

std::vector<Frame> received(WatchSocket& socket) {
  pollfd one{socket.descriptor(), POLLIN, 0};
  poll(&one, 1, 5000);
  return socket.receive();
}

TEST(WatchSocket, CarriesFrames) {
  const Descriptor listening = listen_anywhere();
  EXPECT_FALSE(accept_from(listening).open());
  WatchSocket here(connect_to("127.0.0.1", port_of(listening)));
  WatchSocket there(accepted(listening));
  ASSERT_TRUE(there.open());
  const std::string body(200'000, 'x');
  here.send(frame(WatchMessage::kReport, body));
  std::vector<Frame> frames;
  while (frames.empty() && there.open()) {
    here.flush();
    frames = received(there);
  }
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].body, body);
  here.close();
  EXPECT_TRUE(received(there).empty());
  EXPECT_FALSE(there.open());
}

TEST(WatchSocket, ClosesOnStrangers) {
  const Descriptor listening = listen_anywhere();
  const Descriptor stranger = connect_to("127.0.0.1", port_of(listening));
  WatchSocket there(accepted(listening));
  ASSERT_EQ(write(stranger.number(), "GET / HTTP/1.1\r\n", 16), 16);
  EXPECT_TRUE(received(there).empty());
  EXPECT_FALSE(there.open());
}

TEST(WatchSocket, KnowsAddresses) {
  EXPECT_FALSE(connect_to("no address", 1).open());
  for (const std::string& address : own_addresses()) EXPECT_NE(address, "127.0.0.1");
  EXPECT_TRUE(own_addresses("no interface").empty());
}

}  // namespace
}  // namespace tessera
