#!/usr/bin/env bash
# The logic of job scripts: `tessera submit` renders them, and they run with programs in place of Slurm
# and of the ranks that do what the test says.
#   job_script_test.sh TESSERA SOURCE_FOLDER CASE
set -euo pipefail
tessera=$(realpath "$1")
source=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir bin
export PATH=$work/bin:$PATH
export flight=$work/runs/tiny/flight

fail() {
  echo "FAILED: $*" >&2
  [[ ! -e log ]] || cat log >&2
  exit 1
}

# Stands before the rank's program, as a container would. The newest checkpoint is of the step in `step`.
cat >bin/box <<'SCRIPT'
#!/bin/bash
[[ "${*:2:3}" == "checkpoint list --newest-step" ]] || exit 99
cat step
SCRIPT

# The ranks: the next line of `lives` says their exit code, the step of their last checkpoint, and which
# nodes die meanwhile. `hang`: they end with 75, and a hang is laid to these nodes. `patient` ones go on until they get a signal; with `revive` all nodes come back.
cat >bin/srun <<'SCRIPT'
#!/bin/bash
echo "$(basename "$0") $*" >>started
if [[ "$*" == *--mpi=none* ]]; then # asks a node whether it lives
  words=$* && node=${words#*--nodelist=} && node=${node%% *}
  ! grep -qx "$node" dead
  exit
fi
read -r code step dying <lives || exit 98
sed -i 1d lives
if [[ $code == patient ]]; then
  trap 'echo "$(basename "$0") USR1" >>started; code=75' USR1
  trap 'code=75' TERM
  touch waiting
  while [[ $code == patient ]]; do /bin/sleep 0.05; done
fi
echo "$step" >step
[[ $code != revive ]] || { : >dead && code=137; }
[[ $code != hang ]] || { printf '%s\n' $dying >"$flight/suspects" && dying= && code=75; }
printf '%s\n' $dying >>dead
exit "$code"
SCRIPT
cp bin/srun bin/mpirun

cat >bin/scontrol <<'SCRIPT'
#!/bin/bash
case $1 in
  show) tr , '\n' <<<"$3" ;;
  requeue) echo "requeue $2" >>asked && [[ ! -e forbidden ]] ;;
esac
SCRIPT
cat >bin/scancel <<'SCRIPT'
#!/bin/bash
echo "scancel $*" >>asked
SCRIPT
ln -s /bin/true bin/sleep # the pauses between lives
chmod +x bin/*

# render [LINE...]: a job with these lines in its file, and nothing done yet.
render() {
  rm -rf runs dead asked started lives waiting forbidden log
  mkdir -p runs/tiny/slurm "$flight"
  touch dead asked started
  echo 0 >step
  printf '%s\n' 'nodes: 2' 'tasks_per_node: 2' 'time: "01:00:00"' 'container: "box"' "$@" >job.textproto
  "$tessera" submit "$source/configs/tiny.textproto" --job job.textproto --dry-run >job.sh ||
    fail "not rendered"
  bash -n job.sh || fail "no valid shell"
}

lives() { printf '%s\n' "$@" >lives; }

# begin_in_slurm [NAME=VALUE...]: starts the job script as Slurm would, as process `job`.
begin_in_slurm() {
  env SLURM_JOB_ID=7 SLURM_JOB_NAME=tiny SLURM_JOB_NODELIST=n1,n2 "$@" bash job.sh "${arguments[@]}" \
    >>log 2>&1 &
  job=$!
}
arguments=()

# await: its end; sets `code`.
await() {
  code=0
  wait "$job" || code=$?
}

in_slurm() { begin_in_slurm "$@" && await; }

until_ranks_wait() {
  until [[ -e waiting ]]; do /bin/sleep 0.02; done
  rm waiting
}

# signal_all SIGNAL: to the script and to its ranks.
signal_all() { kill "-$1" $(pgrep -P "$job") "$job"; }

# requeued_until_end: runs it again as often as it asks for that; sets `code` and `restarts`.
requeued_until_end() {
  restarts=0
  for ((;;)); do
    : >asked
    in_slurm SLURM_RESTART_COUNT=$restarts
    grep -qx "requeue 7" asked || break
    ((restarts += 1))
  done
}

# expect_end CODE RESTARTS: and that all lives have been lived.
expect_end() {
  [[ $code == "$1" && $restarts == "$2" ]] ||
    fail "ended with $code after $restarts restarts, expected $1 after $2"
  [[ ! -s lives ]] || fail "lives left: $(cat lives)"
}

expect_code() { [[ $code == "$1" ]] || fail "exit code $code, expected $1"; }
expect_log() { grep -qF -- "$1" log || fail "the log does not say: $1"; }
expect_asked() { grep -qxF -- "$1" asked || fail "not asked: $1; but $(cat asked)"; }
expect_nothing_asked() { [[ ! -s asked ]] || fail "asked: $(cat asked)"; }

forms() {
  local starter go_on spare
  for starter in SRUN MPIRUN; do
    for go_on in REQUEUE ARRAY SINGLETON; do
      for spare in 0 1; do
        [[ $starter == SRUN || $spare == 0 ]] || continue
        render "starter: $starter" "go_on: $go_on" "spare_nodes: $spare"
        ! grep -q '^@' job.sh || fail "a place is left in $starter $go_on $spare"
        lives "0 20"
        in_slurm SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_{ID,MIN}=1 SLURM_ARRAY_TASK_MAX=3
        expect_code 0
      done
    done
  done
}

exit_codes() {
  local last
  for last in 0 2 65 66 93; do
    render
    lives "137 5" "75 10" "1 15" "$last 20"
    requeued_until_end
    expect_end "$last" 3
  done
  grep -q -- "srun --mpi=pmix --nodes=2 --ntasks=4 --ntasks-per-node=2 .* box $tessera train" started ||
    fail "started otherwise: $(cat started)"
}

# An end that srun calls good, of ranks that were never started.
good_without_work() {
  render
  lives "75 5" "0 5" "0 20"
  requeued_until_end
  expect_end 0 2
  expect_log "but the run has 20 steps: it is not finished"
  render
  lives "0 0" "0 0" "0 0"
  requeued_until_end
  expect_end 93 2
}

no_progress() {
  render
  lives "137 0" "137 0" "137 0"
  requeued_until_end
  expect_end 93 2
  # Two barren lives, one that saved, and then three more.
  render
  lives "137 0" "137 0" "137 5" "75 5" "137 5" "137 5"
  requeued_until_end
  expect_end 93 5
  # An older checkpoint than before is a new one all the same: the newest was damaged.
  render
  lives "137 9" "137 9" "137 9" "137 6" "0 20"
  requeued_until_end
  expect_end 0 4
  # What a job of the same number has left long ago is nobody's concern.
  render
  echo "3 0 93" >runs/tiny/slurm/tiny-7.state
  lives "137 0" "0 20"
  requeued_until_end
  expect_end 0 1
  # What cannot be read is no progress.
  render
  lives "137 unreadable" "137 unreadable" "137 unreadable"
  requeued_until_end
  expect_end 93 2
}

# The script dies with its node, and cannot judge its life.
lives_cut_off() {
  local life
  render
  for life in 0 1 2; do
    lives "patient 0"
    begin_in_slurm SLURM_RESTART_COUNT=$life
    until_ranks_wait
    signal_all KILL
    await
  done
  in_slurm SLURM_RESTART_COUNT=3
  expect_code 93
  expect_nothing_asked
}

restarts() {
  render "restarts: 2"
  lives "75 5" "75 10" "75 15"
  requeued_until_end
  expect_end 75 2
  expect_log "all 2 restarts are used up"
  render
  touch forbidden
  lives "137 5"
  in_slurm
  expect_code 75
  expect_log "Slurm does not requeue this job"
}

# Cancelled, preempted or queued again from outside: the script outlives its ranks, and asks nothing.
terminated() {
  local life
  render
  for life in 0 1 2 3; do # not its fault, however often
    lives "patient 0"
    begin_in_slurm SLURM_RESTART_COUNT=$life
    until_ranks_wait
    kill -CONT "$job"
    signal_all TERM
    await
    expect_code 75
    expect_nothing_asked
  done
  expect_log "Slurm ends this job before its time"
  # At its limit, it is for the script to go on.
  lives "patient 5"
  begin_in_slurm SECONDS=3595
  until_ranks_wait
  signal_all TERM
  await
  expect_code 75
  expect_asked "requeue 7"
}

# Slurm gives the signal before the limit to the script, mpirun gives it to the ranks.
warned_with_mpirun() {
  render "starter: MPIRUN"
  grep -qx '#SBATCH --signal=B:USR1@360' job.sh || fail "signal for whom?"
  lives "patient 5"
  begin_in_slurm
  until_ranks_wait
  kill -USR1 "$job"
  await
  expect_code 75
  expect_asked "requeue 7"
  [[ $(grep -c "mpirun USR1" started) == 1 ]] || fail "mpirun got no signal"
}

spare_nodes() {
  render "spare_nodes: 2"
  # n2 dies: n3 takes its place. A process dies: the same nodes. n1 dies: n4. Then none is left.
  lives "137 5 n2" "137 10" "137 15 n1" "137 20 n3"
  in_slurm SLURM_JOB_NODELIST=n1,n2,n3,n4
  expect_code 137
  expect_asked "requeue 7"
  expect_log "fewer than 2 nodes are left"
  [[ $(grep -c -- --mpi=pmix started) == 4 ]] || fail "other lives: $(cat started)"
  grep -- --mpi=pmix started | grep -o 'nodelist=[^ ]*' | tr '\n' ' ' >places
  [[ $(cat places) == "nodelist=n1,n2 nodelist=n1,n3 nodelist=n1,n3 nodelist=n3,n4 " ]] ||
    fail "placed on $(cat places)"
}

# A node that comes back is the last choice, and after its second failure none.
returning_node() {
  render "spare_nodes: 1"
  lives "137 5 n1" "revive 10" "137 15 n2" "137 20 n1"
  in_slurm SLURM_JOB_NODELIST=n1,n2,n3
  expect_code 137
  expect_log "fewer than 2 nodes are left"
  grep -- --mpi=pmix started | grep -o 'nodelist=[^ ]*' | tr '\n' ' ' >places
  [[ $(cat places) == "nodelist=n1,n2 nodelist=n2,n3 nodelist=n2,n3 nodelist=n3,n1 " ]] || fail "placed on $(cat places)"
}

# A node that answers, but to which hangs are laid: the last choice, and after the second time none.
hanging_node() {
  render "spare_nodes: 1"
  lives "hang 5 n2.cluster" "137 10" "hang 15 n1" "0 20"
  in_slurm SLURM_JOB_NODELIST=n1,n2,n3
  expect_log "a hang is laid to: n2"
  grep -- --mpi=pmix started | grep -o 'nodelist=[^ ]*' | tr '\n' ' ' >places
  [[ $(cat places) == "nodelist=n1,n2 nodelist=n1,n3 nodelist=n1,n3 nodelist=n3,n1 " ]] ||
    fail "placed on $(cat places)"
  render "spare_nodes: 1"
  lives "hang 5 n2 n1" "hang 10 n2 n1"
  in_slurm SLURM_JOB_NODELIST=n1,n2,n3
  expect_log "fewer than 2 nodes are left"
}

# All nodes are there and the ranks say 75: they were asked to stop, and the job is to end.
stop_with_spares() {
  render "spare_nodes: 1"
  lives "75 5"
  in_slurm SLURM_JOB_NODELIST=n1,n2,n3
  expect_code 75
  expect_asked "requeue 7"
  # Without much time left, no life is begun.
  lives "137 10"
  in_slurm SLURM_JOB_NODELIST=n1,n2,n3 SECONDS=3300
  expect_code 137
  expect_asked "requeue 7"
  # No progress counts within an allocation as well.
  render "spare_nodes: 1"
  lives "137 0" "137 0" "137 0"
  in_slurm SLURM_JOB_NODELIST=n1,n2,n3
  expect_code 93
  expect_nothing_asked
}

array() {
  local task
  render "go_on: ARRAY" "restarts: 4"
  grep -qx '#SBATCH --array=1-5%1' job.sh && grep -qx '#SBATCH --no-requeue' job.sh || fail "no array"
  lives "137 5" "75 10" "0 20"
  for task in 1 2 3; do
    in_slurm SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=5
    ((task == 3)) || expect_code 75
    ((task == 3)) || expect_nothing_asked
  done
  expect_code 0
  expect_asked "scancel --state=PENDING 7"
  # One that was not cancelled in time does nothing.
  in_slurm SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=4 SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=5
  expect_code 0
  expect_log "job 7_4: the run has ended with exit code 0: nothing to do"
  # The next array begins anew, and ends without progress.
  lives "137 20" "137 20" "137 20"
  for task in 1 2 3; do
    in_slurm SLURM_ARRAY_JOB_ID=8 SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=3
  done
  expect_code 93
  expect_asked "scancel --state=PENDING 8"
}

singleton() {
  render "go_on: SINGLETON" "restarts: 2"
  grep -qx '#SBATCH --dependency=singleton' job.sh || fail "no singleton"
  lives "137 5" "75 10" "0 20"
  arguments=(1 3)
  in_slurm
  expect_code 75
  arguments=(2 3 7)
  in_slurm SLURM_JOB_ID=8
  expect_code 75
  expect_nothing_asked
  expect_log "job 8: job 3 of 3 goes on"
  arguments=(3 3 7)
  in_slurm SLURM_JOB_ID=9
  expect_code 0
  expect_asked "scancel --state=PENDING --user=$(id -un) --name=tiny"
  in_slurm SLURM_JOB_ID=10
  expect_code 0
  expect_log "nothing to do"
}

"$3" 2> >(grep -v " Killed  " >&2) # bash tells of children that the test kills
