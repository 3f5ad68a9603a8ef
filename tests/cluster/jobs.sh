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
  cd "$CLUSTER_SHARED"
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

# submit MILLISECONDS [LINE_OF_THE_JOB...]: starts the job, in hurt/, on two hosts, and waits until it trains. As
# long as it lives, each of its saves takes so much longer, and there is one every second step: a way to
# make it last that needs no processor. When it is started again, it runs at full speed.
submit() {
  echo "ckpt.shard_written:delay=$1#1+" >faults
  shift
  printf '%s\n' 'nodes: 2' 'tasks_per_node: 2' "container: \"$PWD/with_faults\"" "$@" >job
  grep -q '^time' job || echo 'time: "01:00:00"' >>job
  job=$(tessera submit configs/tiny.textproto --job job "${train_options[@]}" --set 'run_dir="hurt"' \
    2>submit.log) || fail "$(cat submit.log)"
  log=hurt/slurm/hurt-$job.out
  wait_until 120 "the job trains" _steps_done 4 || fail "the job does not start"
  rm faults
  lives=$(job_field Restarts)
}

_steps_done() { [[ $(wc -l <hurt/metrics.jsonl) -ge $1 ]]; }

# rank_process RANK [NODE]: the process of a rank, seen from the control host, which sees all of them.
rank_process() {
  local process found=
  for process in /proc/[0-9]*; do
    [[ $(readlink "$process/exe") == */bin/tessera ]] || continue
    grep -qzx "SLURM_PROCID=$1" "$process/environ" 2>/dev/null || continue
    [[ ! ${2:-} ]] || grep -qzx "SLURMD_NODENAME=$2" "$process/environ" || continue
    found=${process#/proc/}
    break
  done
  [[ $found ]] && echo "$found"
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
  tessera checkpoint verify hurt || fail "damaged checkpoints"
}
_over() { [[ ! $(job_field JobState) =~ ^(PENDING|CONFIGURING|RUNNING|COMPLETING|REQUEUED)$ ]]; }

_losses() { grep -oP '"step":\d+,.*?"loss":[^,]+' "$1/metrics.jsonl" | sort -u; }

# expect_log TEXT: the job's log has it.
expect_log() {
  grep -qF -- "$1" "$log" || fail "the log of the job does not say: $1"
}
