#!/usr/bin/env bash
# Jobs on a virtual cluster of four hosts with a real Slurm: what befalls them, they end with exit code 0,
# and with the weights of the run that nothing befell.
#   cluster_test.sh TESSERA SOURCE_FOLDER CASE
# docs/cluster_tests.md says what the cases are. Exit code 77 where there can be no cluster.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
if [[ ! ${CLUSTER:-} ]]; then
  [[ $# == 3 ]] || { echo "usage: cluster_test.sh TESSERA SOURCE_FOLDER CASE" >&2; exit 2; }
  exec "$here/cluster.sh" run --nodes 4 -- "$(realpath "$0")" "$(realpath "$1")" "$(realpath "$2")" "$3"
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

prepare "$1" "$2"
calm_run
"$3"
