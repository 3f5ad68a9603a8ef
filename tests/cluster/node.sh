# A node of the virtual cluster: process 1 in its namespaces, started by start_node.
#   node.sh NAME
set -euo pipefail
hostname "$1"
for directory in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$directory"; done
mkdir /var/tmp/slurmd
# What root's shell does at a login on this machine is nothing to the cluster, and may hang when a host
# dies in the middle of it: tools that take locks in the home directory.
home=$(getent passwd root | cut -d : -f 6)
for file in .bashrc .bash_profile .bash_login .profile; do
  if [[ -e $home/$file ]]; then mount --bind /dev/null "$home/$file"; fi
done
cd /
/usr/sbin/sshd -D -f "$CLUSTER/ssh/sshd_config" -E "$CLUSTER_LOGS/sshd.$1.log" &
slurmd -D -N "$1" &
# bash, as process 1, buries the processes that have lost their parents.
while :; do wait -n || sleep 1; done
