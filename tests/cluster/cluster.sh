#!/usr/bin/env bash
# A cluster of virtual hosts on this machine, with a real Slurm and ssh, for the time of one command.
#   cluster.sh run [OPTION...] -- COMMAND...
#     --nodes N             hosts n1 ... nN besides the control host ctl (4)
#     --tasks-per-node N    processors that Slurm believes a host has (2)
#     --gpus N              GPUs that Slurm believes a host has (0)
#     --stray-interface     a second network interface eth1 on every host, which leads nowhere
#     --only-configured     only slurmctld: hosts that Slurm takes for switched off but usable, so that
#                           it plans (sbatch --test-only) and never starts anything
# COMMAND runs on ctl, and its exit code is that of cluster.sh. It sees
#   $CLUSTER_SHARED  a directory that all hosts see; in memory, gone at the end
#   $CLUSTER_LOGS    the logs of the daemons
#   start_node, kill_node, cut_node, part_nodes, heal_node, slow_node, on_node, restart_slurmctld,
#   wait_for_nodes:  commands, described in commands.sh
# Every host has its own network, name, processes, IPC, /tmp, /var/tmp and /dev/shm. Everything else is
# this machine's, so programs and libraries need no installation; what lies in /tmp is only on ctl.
# Nothing is left behind, whatever happens: all processes are in a process namespace that ends with this
# script, all files in a mount namespace. Exit code 77 where that cannot be had: not root, or no
# namespaces, or no Slurm.
set -euo pipefail
here=$(dirname "$(realpath "$0")")

usage() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
}

skip() {
  echo "cluster.sh: skipped: $*" >&2
  exit 77
}

[[ ${1:-} == run ]] || usage
shift
export CLUSTER_NODES=4 CLUSTER_TASKS=2 CLUSTER_GPUS=0 CLUSTER_STRAY='' CLUSTER_ONLY_CONFIGURED=''
while [[ ${1:-} == --?* ]]; do
  case $1 in
    --nodes) CLUSTER_NODES=${2:-} && shift ;;
    --tasks-per-node) CLUSTER_TASKS=${2:-} && shift ;;
    --gpus) CLUSTER_GPUS=${2:-} && shift ;;
    --stray-interface) CLUSTER_STRAY=yes ;;
    --only-configured) CLUSTER_ONLY_CONFIGURED=yes ;;
    *) usage ;;
  esac
  shift
done
[[ ${1:-} == -- && $# -gt 1 ]] || usage
shift
for number in "$CLUSTER_NODES" "$CLUSTER_TASKS" "$CLUSTER_GPUS"; do
  [[ $number =~ ^[0-9]{1,3}$ ]] || { echo "cluster.sh: '$number' is no number" >&2; exit 2; }
done

((EUID == 0)) || skip "it needs root"
for program in slurmctld slurmd munged sshd ssh-keygen ip nsenter setpriv; do
  command -v "$program" >/dev/null || skip "$program is not installed (scripts/packages.sh)"
done
# The steps of the way in that a container or a kernel may forbid.
unshare --net --mount --pid --ipc --uts --fork --mount-proc bash -c '
  mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link add v0 type veth peer name v1 &&
  ip link add br0 type bridge && ip netns add n && ip netns exec n true' 2>/dev/null || skip "this machine refuses namespaces"

# When this script dies, of whatever signal, so does unshare, with it its child, which is process 1 of
# the namespace, and so everything.
code=0
setpriv --pdeathsig KILL unshare --net --mount --pid --ipc --uts --fork --mount-proc --kill-child \
  bash "$here/control.sh" "$@" || code=$?
exit "$code"
