#pragma once

#include <string>
#include <vector>

#include "launcher/mpirun.h"
#include "parallel/process_mesh.h"

namespace tessera {

/// Which ranks hosts take: they are filled one after the other, in the order given, so that ranks
/// that follow each other share a host. The tensor axis of a mesh is the innermost: its groups are
/// `tensor` ranks that follow each other, and expert groups lie within expert x sequence x tensor.

/// The slots of all hosts.
int slots_of(const std::vector<HostSlots>& hosts);

/// The hosts that `ranks` ranks are on, each with the slots that they take there. `ranks` is at
/// most slots_of(hosts).
std::vector<HostSlots> filled_hosts(const std::vector<HostSlots>& hosts, int ranks);

/// Of the groups of `block` ranks that follow each other, those that are on more hosts than they
/// must: more than block / slots of the largest host, rounded up.
int scattered_groups(const std::vector<HostSlots>& filled, int block);

/// One sentence for each kind of group that crosses hosts and need not: how many of how many do,
/// and what would mend it. `filled` is from filled_hosts.
std::vector<std::string> placement_warnings(const std::vector<HostSlots>& filled,
                                            const MeshShape& shape);

}  // namespace tessera
