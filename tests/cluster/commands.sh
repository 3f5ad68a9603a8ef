#!/usr/bin/env bash
# What can be done to the virtual cluster while it runs. Sourced, these are functions; on the PATH of the
# cluster's command they are also commands. NODE is n1, n2, ...

cluster_commands=(start_node kill_node cut_node part_nodes heal_node slow_node on_node
  restart_slurmctld wait_for_nodes)

# wait_until SECONDS WHAT COMMAND...: runs COMMAND again and again until it succeeds; says what it waited
# for and returns 1 when it did not.
wait_until() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" &>/dev/null; do
    if ((SECONDS >= end)); then
      echo "waited in vain until $what" >&2
      return 1
    fi
    sleep 0.1
  done
}

# The process 1 of a node, seen from the control host.
_node_process() {
  local outer inner
  outer=$(cat "$CLUSTER/$1.pid")
  inner=$(cat "/proc/$outer/task/$outer/children") && [[ $inner ]] && echo "${inner% }"
}

# start_node NODE: switches a node on, again or for the first time. It does not wait for Slurm.
start_node() {
  local node=$1
  ip netns delete "$node" 2>/dev/null || true
  ip link delete "v$node" 2>/dev/null || true
  ip netns add "$node"
  ip link add "v$node" type veth peer name eth0 netns "$node"
  ip link set "v$node" master br0 up
  ip -n "$node" link set lo up
  ip -n "$node" address add "10.99.0.${node#n}/24" dev eth0
  ip -n "$node" link set eth0 up
  if [[ $CLUSTER_STRAY ]]; then
    ip link delete "s$node" 2>/dev/null || true
    ip link add "s$node" type veth peer name eth1 netns "$node"
    ip link set "s$node" up
    ip -n "$node" address add "10.77.${node#n}.1/24" dev eth1
    ip -n "$node" link set eth1 up
  fi
  # Out of the session and with its own output: it outlives whoever called this.
  setsid ip netns exec "$node" unshare --mount --pid --ipc --uts --fork --mount-proc --kill-child \
    bash "$CLUSTER_SCRIPTS/node.sh" "$node" </dev/null &>"$CLUSTER_LOGS/$node.out" &
  echo $! >"$CLUSTER/$node.pid"
  disown
}

# kill_node NODE: the power fails. The link first, or else the kernel would say goodbye on all
# connections; what the node had in its own directories is lost.
kill_node() {
  ip link set "v$1" down
  kill -KILL "$(cat "$CLUSTER/$1.pid")"
}

# cut_node NODE: nothing gets through to it or from it.
cut_node() { ip link set "v$1" down; }

# part_nodes NODE...: these reach each other and nobody else.
part_nodes() {
  local node
  ip link show br1 &>/dev/null || ip link add br1 type bridge
  ip link set br1 up
  for node in "$@"; do ip link set "v$node" master br1; done
}

# heal_node NODE: its network is whole again.
heal_node() { ip link set "v$1" master br0 up; }

# slow_node NODE [RATE]: its network has this rate in both directions; without one, as before.
slow_node() {
  tc qdisc delete dev "v$1" root 2>/dev/null || true
  ip netns exec "$1" tc qdisc delete dev eth0 root 2>/dev/null || true
  [[ ${2:-} ]] || return 0
  tc qdisc add dev "v$1" root tbf rate "$2" burst 64k latency 200ms
  ip netns exec "$1" tc qdisc add dev eth0 root tbf rate "$2" burst 64k latency 200ms
}

# on_node NODE COMMAND...: runs a command there, even when the network to it is cut.
on_node() {
  local process
  process=$(_node_process "$1")
  shift
  nsenter --target "$process" --mount --uts --ipc --net --pid -- "$@"
}

# start_slurmctld [OPTION...]: with -c it forgets all jobs.
start_slurmctld() {
  setsid slurmctld -D "$@" </dev/null &>>"$CLUSTER_LOGS/slurmctld.out" &
  echo $! >"$CLUSTER/slurmctld.started"
  disown
  wait_until 20 "slurmctld answers" scontrol ping
}

# restart_slurmctld [SIGNAL]: ends it (TERM, as an administrator does, or KILL) and starts it again.
restart_slurmctld() {
  local old
  old=$(cat "$CLUSTER/slurmctld.started")
  kill "-${1:-TERM}" "$old"
  wait_until 30 "slurmctld has ended" bash -c "! kill -0 $old"
  start_slurmctld
}

# wait_for_nodes [NODE...]: until Slurm can use them; all, when none is named.
wait_for_nodes() {
  local nodes
  nodes=$(IFS=, && echo "${*:-n[1-$CLUSTER_NODES]}")
  wait_until 60 "Slurm can use $nodes" _usable "$nodes"
}

_usable() {
  local states
  states=$(sinfo --noheader --Node --nodes "$1" --partition main --format %t) && [[ $states ]] &&
    ! grep -qvxE 'idle|alloc|mix' <<<"$states"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  set -euo pipefail
  "${0##*/}" "$@"
fi
