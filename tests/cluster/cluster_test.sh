#!/usr/bin/env bash
# Jobs on a virtual cluster of four hosts with a real Slurm: what befalls them, they end with exit code 0,
# and with the weights of the run that nothing befell.
#   cluster_test.sh TESSERA SOURCE_FOLDER CASE
# docs/cluster_tests.md says what the cases are. Exit code 77 where there can be no cluster.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
if [[ ! ${CLUSTER:-} ]]; then
  [[ $# == 3 ]] || { echo "usage: cluster_test.sh TESSERA SOURCE_FOLDER CASE" >&2; exit 2; }
  cluster=(--nodes 4)
  [[ $3 != plan_384 ]] || cluster=(--nodes 48 --tasks-per-node 96 --gpus 8 --only-configured)
  exec "$here/cluster.sh" run "${cluster[@]}" -- "$(realpath "$0")" "$(realpath "$1")" "$(realpath "$2")" "$3"
fi
. "$here/commands.sh"
. "$here/jobs.sh"

# The time limit: asked to stop before it, the job saves, is queued again and goes on. Slurm looks at the
# clock every 30 s.
time_limit() {
  submit 900 'time: "00:01:00"' 'warning: 50'
  wait_for_restart 120
  expect_finished
  expect_log "ended with exit code 75"
}

# A job of another partition needs the hosts.
preemption() {
  submit 300
  local urgent
  urgent=$(sbatch --parsable --partition urgent --nodes 4 --exclusive --output urgent.log --wrap "echo done")
  wait_for_restart 90
  expect_finished
  expect_log "ended with exit code 75"
  [[ $(<urgent.log) == done ]] || fail "the urgent job $urgent has not run"
}

# One rank is killed.
rank_killed() {
  submit 300
  kill -KILL "$(rank_process 3)"
  wait_for_restart 90
  expect_finished
}

# The power of the host fails that runs rank 0 and the job's script.
node_lost() {
  submit 300
  kill_node n1
  wait_for_restart 120
  expect_finished
  [[ $(job_field NodeList) == 'n[2-3]' ]] || fail "the job did not end on the remaining hosts"
}

# The same with a host to spare: Slurm does not start the job again, its script starts the ranks again.
spare_host() {
  submit 300 'spare_nodes: 1'
  kill_node n2
  expect_finished 180
  [[ $(job_field Restarts) == "$lives" ]] || fail "Slurm has started the job again"
  expect_log "nodes that do not answer: n2"
}

# slurmctld dies and comes back while the job runs: the job does not notice. slurmctld writes down what has
# changed every 5 s; what it had not written yet is lost, and with it a job that has just been submitted.
slurmctld_restarted() {
  submit 200
  wait_until 10 "slurmctld has written down that the job runs" _written_down || true
  restart_slurmctld KILL
  expect_finished
  [[ $(job_field Restarts) == "$lives" ]] || fail "the job was started again"
}
_written_down() {
  (($(stat --format %Y "$CLUSTER/state/job_state") > $(date --date "$(job_field StartTime)" +%s)))
}

# 384 ranks on 48 hosts of 8 GPUs: Slurm would start them at once; a ninth GPU it refuses.
plan_384() {
  plan() {  # plan GPUS
    sed "s/^gpus_per_node:.*/gpus_per_node: $1/" "$source/slurm/moe-100b-384gpu.textproto" >job
    tessera submit configs/moe-100b-384gpu.textproto --job job --test 2>&1 | tee plan.log
  }
  plan 8 || fail "48 hosts of 8 GPUs are refused"
  grep -q 'n\[1-48\]' plan.log || fail "Slurm does not say on which hosts"
  ! plan 9 || fail "nine GPUs on a host are planned"
}

source=$2
prepare "$1" "$2"
[[ $3 == plan_384 ]] || calm_run
"$3"
