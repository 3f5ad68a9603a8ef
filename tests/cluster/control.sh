# The control host of the virtual cluster: process 1 in its namespaces, started by cluster.sh.
# Makes the network and the files, starts the daemons and the nodes, and runs the command.
set -Eeuo pipefail
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")

# /run is this cluster's own, with everything that the cluster makes.
mount -t tmpfs tmpfs /run
export CLUSTER=/run/cluster
export CLUSTER_LOGS=$CLUSTER/log CLUSTER_SHARED=$CLUSTER/shared CLUSTER_SCRIPTS=$here
mkdir -p "$CLUSTER"/{log,shared,state,munge,ssh,bin} /run/netns /run/sshd
. "$here/commands.sh"

# When the cluster does not start, its logs say why, and are lost with it.
trap 'tail -n 20 "$CLUSTER_LOGS"/* >&2' ERR

network() {
  hostname ctl
  mount -t sysfs sysfs /sys  # with the interfaces of this host
  ip link set lo up
  ip link add br0 type bridge
  ip address add 10.99.0.254/24 dev br0
  ip link set br0 up
  local i
  {
    echo "127.0.0.1 localhost"
    echo "10.99.0.254 ctl"
    for i in $(seq "$CLUSTER_NODES"); do echo "10.99.0.$i n$i"; done
  } >"$CLUSTER/hosts"
  mount --bind "$CLUSTER/hosts" /etc/hosts
}

# One key opens all hosts for root, and ssh asks nothing. ssh's own configuration file is replaced for
# the processes of the cluster, so that mpirun's calls of ssh find it too.
ssh_files() {
  ssh-keygen -q -t ed25519 -N '' -C cluster -f "$CLUSTER/ssh/key"
  ssh-keygen -q -t ed25519 -N '' -C cluster -f "$CLUSTER/ssh/host_key"
  cat >"$CLUSTER/ssh/ssh_config" <<CONFIG
Host *
  User root
  IdentityFile $CLUSTER/ssh/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  ConnectTimeout 5
  LogLevel ERROR
CONFIG
  cat >"$CLUSTER/ssh/sshd_config" <<CONFIG
HostKey $CLUSTER/ssh/host_key
AuthorizedKeysFile $CLUSTER/ssh/key.pub
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
UseDNS no
PidFile none
SetEnv SLURM_CONF=$SLURM_CONF CLUSTER_SHARED=$CLUSTER_SHARED
CONFIG
  mount --bind "$CLUSTER/ssh/ssh_config" /etc/ssh/ssh_config
}

# GPUs for Slurm to count; each is a copy of the null device.
gpus() {
  local i
  for i in $(seq 0 $((CLUSTER_GPUS - 1))); do mknod "$CLUSTER/gpu$i" c 1 3; done
  echo "Name=gpu File=$CLUSTER/gpu[0-$((CLUSTER_GPUS - 1))]" >"$CLUSTER/gres.conf"
}

munge_daemon() {
  head -c 128 /dev/urandom >"$CLUSTER/munge/key"
  chmod 600 "$CLUSTER/munge/key"
  chmod 711 "$CLUSTER/munge"
  chown -R munge:munge "$CLUSTER/munge"
  setpriv --reuid munge --regid munge --clear-groups munged --foreground --force \
    --key-file "$CLUSTER/munge/key" --socket "$CLUSTER/munge/socket" \
    --pid-file "$CLUSTER/munge/pid" --log-file "$CLUSTER/munge/log" \
    --seed-file "$CLUSTER/munge/seed" &>"$CLUSTER_LOGS/munged.out" &
}

network
export SLURM_CONF=$CLUSTER/slurm.conf
. "$here/slurm_conf.sh"
slurm_conf >"$SLURM_CONF"
# Not used, but slurmd looks for the machine's when it is not told which.
echo CgroupPlugin=cgroup/v1 >"$CLUSTER/cgroup.conf"
if ((CLUSTER_GPUS)); then gpus; fi
ssh_files
munge_daemon
for name in "${cluster_commands[@]}"; do ln -s "$here/commands.sh" "$CLUSTER/bin/$name"; done
export PATH=$CLUSTER/bin:$PATH OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
wait_until 10 "munged runs" test -S "$CLUSTER/munge/socket"
start_slurmctld -c
if [[ ! $CLUSTER_ONLY_CONFIGURED ]]; then
  for i in $(seq "$CLUSTER_NODES"); do start_node "n$i"; done
  wait_for_nodes
fi

trap - ERR
code=0
"$@" || code=$?
exit "$code"
