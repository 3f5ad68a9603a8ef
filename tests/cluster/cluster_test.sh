#!/usr/bin/env bash
# Jobs on a virtual cluster of four hosts with a real Slurm: what befalls them, they end with exit code 0,
# and with the weights of the run that nothing befell.
#   cluster_test.sh TESSERA SOURCE_FOLDER CASE [CALM_RUN]
# CALM_RUN is a directory that the case `calm` has filled; without it the calm run comes first.
# docs/cluster_tests.md says what the cases are. Exit code 77 where there can be no cluster.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
if [[ ! ${CLUSTER:-} ]]; then
  (($# == 3 || $# == 4)) || { sed -n '/^#   /s/^#  *//p' "$0" >&2; exit 2; }
  cluster=(--nodes 4)
  [[ $3 != plan_384 ]] || cluster=(--nodes 48 --tasks-per-node 96 --gpus 8 --only-configured)
  exec "$here/cluster.sh" run "${cluster[@]}" -- \
    "$(realpath "$0")" "$(realpath "$1")" "$(realpath "$2")" "$3" ${4:+"$(realpath "$4")"}
fi
. "$here/commands.sh"
. "$here/jobs.sh"

# The time limit: asked to stop before it, the job saves, is queued again and goes on. Slurm looks at the
# clock every 30 s.
time_limit() {
  submit "$(slow_saves 900)" 'time: "00:01:00"' 'warning: 50'
  wait_for_restart 120
  expect_finished
  expect_log "ended with exit code 75"
}

# A job of another partition needs the hosts.
preemption() {
  submit "$(slow_saves 300)"
  local urgent
  urgent=$(sbatch --parsable --partition urgent --nodes 4 --exclusive --output urgent.log --wrap "echo done")
  wait_for_restart 90
  expect_finished
  expect_log "ended with exit code 75"
  [[ $(<urgent.log) == "done" ]] || fail "the urgent job $urgent has not run"
}

# One rank is killed.
rank_killed() {
  submit "$(slow_saves 300)"
  kill -KILL "$(rank_process 3)"
  wait_for_restart 90
  expect_finished
}

# The power of the host fails that runs rank 0 and the job's script.
node_lost() {
  submit "$(slow_saves 300)"
  kill_node n1
  wait_for_restart 120
  expect_finished
  [[ $(job_field NodeList) == 'n[2-3]' ]] || fail "the job did not end on the remaining hosts"
}

# The same with a host to spare: Slurm does not start the job again, its script starts the ranks again.
spare_host() {
  submit "$(slow_saves 300)" 'spare_nodes: 1'
  kill_node n2
  expect_finished 180
  [[ $(job_field Restarts) == "$lives" ]] || fail "Slurm has started the job again"
  expect_log "nodes that do not answer: n2"
}

# slurmctld dies and comes back while the job runs: the job does not notice. slurmctld writes down what has
# changed every 5 s; what it had not written yet is lost, and with it a job that has just been submitted.
slurmctld_restarted() {
  submit "$(slow_saves 200)"
  wait_until 10 "slurmctld has written down that the job runs" _written_down || true
  restart_slurmctld KILL
  expect_finished
  [[ $(job_field Restarts) == "$lives" ]] || fail "the job was started again"
}
_written_down() {
  (($(stat --format %Y "$CLUSTER/state/job_state") > $(date --date "$(job_field StartTime)" +%s)))
}

# One host is cut off. Its ranks end by themselves, long before Slurm gives the job to other hosts; when the
# host is back, it has nothing to say.
partition() {
  submit "$(slow_saves 300)"
  cut_node n2
  wait_until 30 "the ranks on the host that was cut off have ended" _no_ranks n2 ||
    fail "there are still ranks on n2"
  wait_for_restart 120
  heal_node n2
  expect_finished
  expect_log "HANG step" "no word from n2 (ranks 2 and 3)"
}
_no_ranks() { ! has_ranks "$1"; }

# Both hosts of a job are cut off from the others, and go on training. Slurm gives the job to other hosts: the
# first save after that ends the old ranks, and nothing of theirs is in the run.
two_jobs() {
  submit "$(slow_saves 500)"
  part_nodes n1 n2
  wait_for_restart 120
  [[ $(rank_processes | wc -l) -ge 4 ]] || fail "the old ranks are gone: there is nothing to see"
  wait_until 60 "the old ranks have ended" _no_ranks n1 || fail "the old ranks still train"
  heal_node n1
  heal_node n2
  expect_finished
  expect_log "another job"
}

# A rank is stopped: named with its host and the exchange that it does not enter or leave.
rank_stopped() {
  train_options+=(--set watch.stopped=8)
  submit "$(slow_saves 300)"
  kill -STOP "$(rank_process 3)"
  wait_until 60 "the hang is told" grep -q HANG "$log" || fail "nobody says which rank hangs"
  expect_log "HANG step" "rank 3 (n2"
  expect_log "process state T (stopped)"
  wait_for_restart 90
  expect_finished
}

# One rank leaves out an exchange: both places in the source are told.
exchange_skipped() {
  # The sum of the experts' counts in a step: a sum that goes to one rank could be missed unseen.
  submit "$(slow_saves 300),comm.exchange:skip@rank1#302"
  wait_until 120 "the mismatch is told" grep -q HANG "$log" || fail "nobody says what hangs"
  expect_log "HANG step" ".cc:"
  wait_for_restart 90
  expect_finished
}

# A rank at half speed is named in the log, and nothing else happens.
straggler() {
  train_options+=(--set watch.report=3)
  submit "comm.exchange:delay=4#1+"
  local process
  process=$(rank_process 2)
  while kill -STOP "$process" && sleep 0.1 && kill -CONT "$process" && sleep 0.1; do :; done 2>/dev/null &
  local duty=$!
  wait_until 90 "the straggler is told" grep -q "straggler:" "$log" || fail "nobody says who is slow"
  kill "$duty"
  kill -CONT "$process"
  expect_log "straggler: rank 2 (n2)"
  expect_finished
  [[ $(job_field Restarts) == "$lives" ]] || fail "the job was started again"
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

# What the others are compared with.
calm() {
  calm_run
  rm -rf "$kept" && cp -r calm "$kept"
}

source=$2 kept=${4:-}
prepare "$1" "$2"
case $3 in
  calm | plan_384) ;;
  *) if [[ $kept ]]; then cp -r "$kept" calm; else calm_run; fi ;;
esac
"$3"
