# Training jobs on the virtual cluster: started, watched, compared with one that nothing befell. Sourced by
# cluster_test.sh and soak.sh.

# Ranks share two cores with each other and with other tests: one thread each, and those that wait let
# others work.
export OMP_NUM_THREADS=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_tcp_if_include=eth0
export PMIX_MCA_gds=hash  # the other store sometimes fails in MPI_Init
job=
log=
lives=0  # how often Slurm has started the job again, as far as we have noticed

fail() {
  {
    echo "FAILED: $*"
    [[ ! $job ]] || scontrol show job "$job"
    sinfo --Node --partition main
    grep -v 'state file\|state save file' "$CLUSTER_LOGS/slurmctld.log" | tail -n 20
    echo "the end of the job's log:"
    [[ ! $log ]] || grep -v '\] step \|\] saved ' "$log" | tail -n 60
  } >&2
  exit 1
}

# prepare TESSERA SOURCE_FOLDER: program, configuration and data where all hosts see them; the working
# directory is there too. Jobs start the program through a script that adds the faults in the file `faults`.
prepare() {
  cd "$CLUSTER_SHARED" || exit
  mkdir bin text
  strip --strip-debug -o bin/tessera "$1"
  cp -r "$2/configs" .
  cp "$2"/kernels/*.h text
  cat >with_faults <<SCRIPT
#!/usr/bin/env bash
[[ ! -s $PWD/faults ]] || export TESSERA_FAILPOINT=\$(<$PWD/faults)
exec "\$@"
SCRIPT
  chmod +x with_faults
  export PATH=$PWD/bin:$PATH
  tessera data prepare --input text/*.h --output data/tiny &>prepare.log || fail "$(cat prepare.log)"
}

steps=${CLUSTER_STEPS:-120}
train_options=(--set runtime.precision=F32 --set batch.micro_sequences=1 --set "steps=$steps"
  --set sparsity.dense_steps=40 --set checkpoint.every=2 --set checkpoint.background=false)

# calm_run: the run without a fault, in calm/.
calm_run() {
  srun --nodes 2 --ntasks-per-node 2 tessera train configs/tiny.textproto "${train_options[@]}" \
    --set 'run_dir="calm"' &>calm.log || { cat calm.log >&2; fail "the calm run failed"; }
}

# slow_saves MILLISECONDS: faults by which every save, and there is one every second step, takes so much longer
# on all ranks: a way to make a run last that needs no processor.
slow_saves() { echo "ckpt.shard_written:delay=$1#1+"; }

# submit FAULTS [LINE_OF_THE_JOB...]: starts the job, in hurt/, on two hosts, and waits until it trains. As long as
# it lives, it has the FAULTS (checkpoint/fail_points.h); when it is started again, it has none.
submit() {
  echo "$1" >faults
  shift
  printf '%s\n' 'nodes: 2' 'tasks_per_node: 2' "container: \"$PWD/with_faults\"" "$@" >job
  grep -q '^time' job || echo 'time: "01:00:00"' >>job
  job=$(tessera submit configs/tiny.textproto --job job "${train_options[@]}" --set 'run_dir="hurt"' \
    2>submit.log) || fail "$(cat submit.log)"
  log=hurt/slurm/hurt-$job.out
  wait_until 120 "the job trains" _steps_done 8 || fail "the job does not start"
  rm faults
  lives=$(job_field Restarts)
}

_steps_done() { [[ $(wc -l <hurt/metrics.jsonl) -ge $1 ]]; }

# rank_processes [RANK]: the processes of all ranks, or of one, seen from the control host, which sees those of
# all nodes. The watcher beside a rank is its child, from the same file.
rank_processes() {
  local process parent
  for process in /proc/[0-9]*; do
    [[ $(readlink "$process/exe") == */bin/tessera ]] || continue
    parent=$(grep -oP '^PPid:\s*\K.*' "$process/status") || continue
    [[ $(readlink "/proc/$parent/exe") != */bin/tessera ]] || continue
    [[ ! ${1:-} ]] || grep -qzx "SLURM_PROCID=$1" "$process/environ" || continue
    echo "${process#/proc/}"
  done 2>/dev/null
}

# rank_process RANK
rank_process() { rank_processes "$1" | head -n 1 | grep .; }

# has_ranks NODE
has_ranks() {
  local process
  for process in $(rank_processes); do
    grep -qzx "SLURMD_NODENAME=$1" "/proc/$process/environ" 2>/dev/null && return 0
  done
  return 1
}

# job_field NAME: one field of `scontrol show job`.
job_field() { scontrol --oneliner show job "$job" | grep -oP "(?<= $1=)\S+" | head -n 1; }

# wait_for_restart SECONDS: until Slurm has queued the job again.
wait_for_restart() {
  wait_until "$1" "the job is queued again" _restarted || fail "no restart within $1 s"
  ((++lives))
}
_restarted() { [[ $(job_field Restarts) -gt $lives ]]; }

# expect_finished [SECONDS]: the job ends with exit code 0, and its weights are those of the calm run.
expect_finished() {
  wait_until "${1:-120}" "the job is over" _over || fail "the job does not end"
  [[ $(job_field JobState) == COMPLETED && $(job_field ExitCode) == 0:0 ]] ||
    fail "the job ended as $(job_field JobState) with $(job_field ExitCode), expected COMPLETED with 0:0"
  tessera checkpoint diff calm hurt || fail "the job's weights are not those of the calm run"
  # Steps that were lost and done again are there twice, with the same loss.
  diff <(_losses calm) <(_losses hurt) || fail "the losses of the job are not those of the calm run"
  local checkpoint
  for checkpoint in hurt/checkpoints/step-*; do
    tessera checkpoint verify "$checkpoint" || fail "$checkpoint is damaged"
  done
}
_over() { [[ ! $(job_field JobState) =~ ^(PENDING|CONFIGURING|RUNNING|COMPLETING|REQUEUED)$ ]]; }

_losses() { grep -oP '"step":\d+,.*?"loss":[^,]+' "$1/metrics.jsonl" | sort -u; }

# expect_log TEXT...: the job's log has a line with all of these.
expect_log() {
  local found text
  found=$(<"$log")
  for text in "$@"; do
    found=$(grep -F -- "$text" <<<"$found") || fail "the log of the job has no line with: $*"
  done
  head -n 1 <<<"$found"
}
