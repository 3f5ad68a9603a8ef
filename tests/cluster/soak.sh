#!/usr/bin/env bash
# A job on the virtual cluster that something befalls every 30 to 60 s, for MINUTES. In the end it must have
# the weights of the run that nothing befell. Prints what was done and what came of it.
#   soak.sh MINUTES [SEED [TESSERA]]
# docs/cluster_tests.md has results. Exit code 77 where there can be no cluster.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
minutes=${1:-} seed=${2:-1}
for number in "$minutes" "$seed"; do
  [[ $number =~ ^[1-9][0-9]{0,4}$ ]] || { echo "usage: soak.sh MINUTES [SEED [TESSERA]]" >&2; exit 2; }
done
if [[ ! ${CLUSTER:-} ]]; then
  tessera=$(realpath "${3:-$here/../../build/cpu/launcher/tessera}")
  exec "$here/cluster.sh" run --nodes 4 -- "$(realpath "$0")" "$minutes" "$seed" "$tessera"
fi
# A step takes half a second, of which it waits most; so the run cannot end before its time.
export CLUSTER_STEPS=$((120 * minutes + 60))
pace=1000
. "$here/commands.sh"
. "$here/jobs.sh"
RANDOM=$seed

# draw FROM TO: a number into `drawn`. Not in a subshell, which would have random numbers of its own.
draw() { drawn=$(($1 + RANDOM % ($2 - $1 + 1))); }
lines() { wc -l <hurt/metrics.jsonl; }
job_node() { scontrol show hostnames "$(job_field NodeList)" | sed -n "$1p"; }

# Each fault, given a rank, one of the job's two nodes and a number of seconds, says what it does, and ends
# when all is mended that will be mended.
rank_killed() {
  echo "SIGKILL to rank $1"
  kill -KILL "$(rank_process "$1")"
}
rank_paused() {
  local process
  process=$(rank_process "$1")
  echo "SIGSTOP to rank $1 for 8 s"
  kill -STOP "$process"
  sleep 8
  kill -CONT "$process" || true
}
rank_stopped() {
  echo "SIGSTOP to rank $1"
  kill -STOP "$(rank_process "$1")"
}
node_power() {
  local node
  node=$(job_node "$2")
  echo "power of $node off for $3 s"
  kill_node "$node"
  sleep "$3"
  start_node "$node"
}
node_cut() {
  local node
  node=$(job_node "$2")
  echo "network of $node cut for $3 s"
  cut_node "$node"
  sleep "$3"
  heal_node "$node"
}
job_parted() {
  local node nodes
  nodes=$(scontrol show hostnames "$(job_field NodeList)")
  echo "both nodes cut off from all others for $3 s"
  part_nodes $nodes
  sleep "$3"
  for node in $nodes; do heal_node "$node"; done
}
controller() {
  echo "slurmctld restarted"
  restart_slurmctld
}
told_to_stop() {
  echo "SIGUSR1 to the job"
  scancel --signal USR1 "$job"
}
requeued() {
  echo "scontrol requeue"
  scontrol requeue "$job"
}
preempted() {
  echo "preempted by an urgent job on all hosts for 3 s"
  sbatch --quiet --partition urgent --nodes 4 --exclusive --output /dev/null --wrap "sleep 3"
}

# shuffle: sets `faults` to all of them, in an order of its own; so none is long in coming.
shuffle() {
  faults=(rank_killed rank_paused rank_stopped node_power node_cut job_parted controller told_to_stop
    requeued preempted)
  local i last
  for ((i = ${#faults[@]} - 1; i > 0; --i)); do
    draw 0 "$i"
    last=${faults[i]} faults[i]=${faults[drawn]} faults[drawn]=$last
  done
}

prepare "$3" "$here/../.."
echo "seed $seed, $steps steps; the calm run"
calm_run
submit "$(slow_saves "$pace")" 'restarts: 10000'
# As long as faults come, all lives are slow.
slow_saves "$pace" >faults

# What an administrator must do: Slurm holds a job whose script's host was cut off and is chosen again, and
# lets nobody else use the host (docs/cluster_tests.md).
release_held() {
  [[ $(job_field Reason) == *held* ]] || return 0
  released=" | released by hand"
  scontrol update NodeName="$(sinfo --noheader --states drain --format %N --partition main)" State=RESUME
  scontrol release "$job"
}

table=() faults=()
_goes_on() {
  release_held
  (($(lines) >= goal)) && [[ $(job_field JobState) == RUNNING ]]
}
end=$((SECONDS + 60 * minutes))
draw 10 30
next=$((SECONDS + drawn))
while ((next < end)); do
  ((SECONDS >= next)) || sleep $((next - SECONDS))
  draw 30 60
  next=$((SECONDS + drawn))
  ((${#faults[@]})) || shuffle
  fault=${faults[-1]}
  unset 'faults[-1]'
  draw 0 3 && rank=$drawn
  draw 1 2 && node=$drawn
  draw 2 40
  lives=$(job_field Restarts) at=$(date +%T) begin=$SECONDS
  what=$($fault "$rank" "$node" "$drawn" 2>>soak.log) || what="$fault could not be done"
  released=" |"
  # More steps than it takes to stop; so they are another life's, or this one's that has survived.
  goal=$(($(lines) + 10))
  wait_until 300 "the job goes on after: $what" _goes_on || fail "the job does not go on"
  wait_for_nodes
  row="$at | $what | $((SECONDS - begin)) s | $(($(job_field Restarts) - lives))$released"
  echo "$row"
  table+=("$row")
done

rm faults
scancel --signal USR1 "$job"
expect_finished $((600 + 120 * minutes))  # what faults have kept it from doing
printf '\n| time | fault | until 10 steps later | restarts by Slurm | |\n|---|---|---|---|---|\n'
printf '| %s |\n' "${table[@]}"
echo "${#table[@]} faults in $minutes minutes, $(job_field Restarts) restarts: the state is that of the calm run"
