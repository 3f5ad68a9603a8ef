#include <gtest/gtest.h>

#include "launcher/doctor/checks.h"
#include "launcher/doctor/interfaces.h"
#include "tests/launcher/doctor/text_machine.h"

namespace tessera {
namespace {

using support::about;
using support::TextMachine;

constexpr const char* kParameters = "ompi_info --parsable --param btl tcp --level 9";

void add(TextMachine& machine, const std::string& name, const std::string& address,
         const std::string& state = "up", const std::string& speed = "10000") {
  const std::string folder = "/sys/class/net/" + name;
  machine.files[folder + "/mtu"] = "1500\n";
  machine.files[folder + "/operstate"] = state + "\n";
  if (!speed.empty()) machine.files[folder + "/speed"] = speed + "\n";
  if (!address.empty()) machine.interface_addresses.push_back({name, address, 24});
}

TextMachine one_card() {
  TextMachine machine;
  add(machine, "eth0", "10.0.0.1");
  add(machine, "lo", "127.0.0.1", "unknown", "");
  return machine;
}

TextMachine with_docker() {
  TextMachine machine = one_card();
  add(machine, "docker0", "172.17.0.1", "up", "");
  return machine;
}

void choose(TextMachine& machine, const std::string& include,
            const std::string& exclude = "127.0.0.1/8,sppp") {
  machine.says(kParameters, "mca:btl:tcp:param:btl_tcp_if_include:value:" + include +
                                "\nmca:btl:tcp:param:btl_tcp_if_include:source:environment\n"
                                "mca:btl:tcp:param:btl_tcp_if_exclude:value:" +
                                exclude + "\n");
}

Program program(bool cuda = false) {
  Program made;
  made.mpi = "Open MPI v4.1.4";
  made.cuda = cuda;
  return made;
}

Findings check(const TextMachine& machine, const std::string& interface = "") {
  return check_network(machine, program(true), interface);
}

TEST(NetworkCheck, OneCard) {
  TextMachine machine = one_card();
  add(machine, "eth1", "fe80::1", "down", "-1");
  add(machine, "veth9", "fe80::2", "up", "10000");
  const Findings findings = check(machine);
  EXPECT_EQ(about(findings, "network"),
            "ok eth0 10.0.0.1/24, 10 Gbit/s, MTU 1500; besides: eth1 (down) and veth9");
  EXPECT_EQ(about(findings, "mpi-net"), "ok Open MPI's TCP uses eth0");
  EXPECT_EQ(about(findings, "nccl-net"), "ok NCCL uses sockets over eth0");
}

TEST(NetworkCheck, NoNetworkAndNoSys) {
  const Findings nothing = check(TextMachine());
  EXPECT_EQ(worst_of(nothing), Verdict::kOk);
  EXPECT_NE(about(nothing, "mpi-net").find("this host trains alone"), std::string::npos);
  TextMachine machine;
  machine.interface_addresses = {{"eth0", "10.0.0.1", 24}, {"lo", "127.0.0.1", 8}};
  EXPECT_EQ(about(check(machine), "network"), "ok eth0 10.0.0.1/24");
}

TEST(NetworkCheck, ASlowCard) {
  TextMachine machine;
  add(machine, "eth0", "10.0.0.1", "up", "100");
  EXPECT_TRUE(about(check(machine), "network")
                  .starts_with("warn eth0 10.0.0.1/24, 100 Mbit/s, MTU 1500 -> below 1 Gbit/s"));
}

TEST(NetworkCheck, ContainersAreAWarningWhereMpiWouldUseThem) {
  TextMachine machine = with_docker();
  const std::string found = about(check(machine), "mpi-net");
  EXPECT_TRUE(found.starts_with("warn Open MPI's TCP uses docker0 and eth0; some seem to lead to"))
      << found;
  EXPECT_TRUE(found.ends_with("export OMPI_MCA_btl_tcp_if_include=eth0")) << found;
  choose(machine, "eth0");
  EXPECT_EQ(about(check(machine), "mpi-net"),
            "ok Open MPI's TCP uses eth0 (btl_tcp_if_include is eth0)");
  choose(machine, "10.0.0.0/16");
  EXPECT_TRUE(about(check(machine), "mpi-net").starts_with("ok Open MPI's TCP uses eth0 ("));
  choose(machine, "", "127.0.0.1/8,docker0");
  EXPECT_EQ(about(check(machine), "mpi-net"), "ok Open MPI's TCP uses eth0");
  EXPECT_EQ(about(check(machine), "nccl-net"), "ok NCCL uses sockets over eth0");
}

TEST(NetworkCheck, ChoicesThatCannotBe) {
  TextMachine machine = one_card();
  choose(machine, "eth7");
  const std::string unknown = about(check(machine), "mpi-net");
  EXPECT_EQ(unknown,
            "fail btl_tcp_if_include is eth7, and no interface that is up is eth7; did you mean "
            "\"eth0\"? -> export OMPI_MCA_btl_tcp_if_include=eth0");
  choose(machine, "eth0", "docker0");
  EXPECT_TRUE(about(check(machine), "mpi-net").starts_with("fail btl_tcp_if_include is eth0 and "));
  machine.environment["NCCL_SOCKET_IFNAME"] = "ib";
  EXPECT_TRUE(about(check(machine), "nccl-net").starts_with("fail NCCL_SOCKET_IFNAME is ib, and"));
  // Without ompi_info the environment has the last word.
  TextMachine bare = one_card();
  bare.environment["OMPI_MCA_btl_tcp_if_include"] = "eth7";
  EXPECT_TRUE(about(check(bare), "mpi-net").starts_with("fail btl_tcp_if_include is eth7"));
}

TEST(NetworkCheck, TheInterfaceThatIsMeant) {
  TextMachine machine = with_docker();
  EXPECT_EQ(about(check(machine, "eth0"), "interface"),
            "warn eth0 is not the only one that MPI and NCCL use -> export "
            "OMPI_MCA_btl_tcp_if_include=eth0");
  choose(machine, "eth0");
  EXPECT_EQ(about(check(machine, "eth0"), "interface"), "ok MPI and NCCL use eth0");
  EXPECT_EQ(about(check_network(machine, program(), "eth0"), "interface"), "ok MPI uses eth0");
  EXPECT_TRUE(about(check(machine, "eth9"), "interface").starts_with("fail there is no interface"));
  add(machine, "eth1", "", "up");
  EXPECT_TRUE(about(check(machine, "eth1"), "interface").find("has no address") !=
              std::string::npos);
}

TEST(NetworkCheck, Fabric) {
  TextMachine machine = one_card();
  const std::string port = "/sys/class/infiniband/mlx5_0/ports/1/";
  machine.files[port + "state"] = "4: ACTIVE\n";
  machine.files[port + "rate"] = "200 Gb/sec (4X HDR)\n";
  machine.files[port + "link_layer"] = "InfiniBand\n";
  machine.says("ompi_info --parsable", "mca:pml:ucx:version:\"component:4.1.4\"\n");
  EXPECT_EQ(about(check(machine), "fabric"), "ok mlx5_0:1 InfiniBand 200 Gb/sec (4X HDR)");
  EXPECT_NE(about(check(machine), "mpi-net").find("prefers the fabric, through UCX"),
            std::string::npos);
  EXPECT_TRUE(about(check(machine), "nccl-net").starts_with("ok NCCL uses the fabric"));
  machine.environment["NCCL_IB_DISABLE"] = "1";
  EXPECT_TRUE(about(check(machine), "nccl-net").starts_with("warn NCCL uses sockets"));
  machine.files[port + "state"] = "1: DOWN\n";
  EXPECT_TRUE(about(check(machine), "fabric").starts_with("warn mlx5_0:1"));
}

TEST(Interfaces, NcclChoosesByBeginnings) {
  TextMachine machine = with_docker();
  add(machine, "ib0", "10.1.0.1");
  add(machine, "ib0-child", "10.2.0.1");
  const auto chosen = [&](const std::string& choice) {
    std::vector<std::string> names;
    for (const Interface& one : nccl_interfaces(interfaces_of(machine), choice)) {
      names.push_back(one.name);
    }
    return names;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(chosen(""), (Names{"ib0", "ib0-child"}));
  EXPECT_EQ(chosen("ib0"), (Names{"ib0", "ib0-child"}));
  EXPECT_EQ(chosen("=ib0"), (Names{"ib0"}));
  EXPECT_EQ(chosen("^ib,lo,docker"), (Names{"eth0"}));
  EXPECT_EQ(chosen("^=ib0"), (Names{"docker0", "eth0", "ib0-child", "lo"}));
}

TEST(Interfaces, NetworksOfBothKinds) {
  TextMachine machine;
  add(machine, "a", "10.0.0.1");
  add(machine, "b", "fd00::1");
  const auto used = [&](const std::string& include) {
    std::string names;
    for (const Interface& one : mpi_interfaces(interfaces_of(machine), include, "")) {
      names += one.name;
    }
    return names;
  };
  EXPECT_EQ(used("10.0.0.0/8"), "a");
  EXPECT_EQ(used("10.0.0.0/31"), "a");
  EXPECT_EQ(used("10.0.0.2/31"), "");
  EXPECT_EQ(used("fd00::/16"), "b");
  EXPECT_EQ(used("0.0.0.0/0"), "a");
  EXPECT_EQ(used("a,b"), "ab");
  for (const char* wrong : {"10.0.0.0/99", "10.0.0.0/x", "/", "300.0.0.0/8", ",,"}) {
    EXPECT_EQ(used(wrong), "") << wrong;
  }
}

}  // namespace
}  // namespace tessera
