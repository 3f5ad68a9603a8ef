#!/usr/bin/env bash
# tessera launch on three virtual hosts, by ssh.
#   launch_hosts_test.sh TESSERA SOURCE_FOLDER CASE
# docs/launch.md says what has to happen. Exit code 77 where there can be no cluster.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
if [[ ! ${CLUSTER:-} ]]; then
  [[ $# == 3 ]] || { echo "usage: launch_hosts_test.sh TESSERA SOURCE_FOLDER CASE" >&2; exit 2; }
  exec "$here/cluster.sh" run --nodes 3 --stray-interface -- \
    "$(realpath "$0")" "$(realpath "$1")" "$(realpath "$2")" "$3"
fi
. "$here/commands.sh"

# Ranks share two cores with each other and with other tests.
export OMP_NUM_THREADS=1 OMPI_MCA_mpi_yield_when_idle=1
three=(--hosts n1:1,n2:1,n3:1 --interface eth0 --no-binding)

fail() {
  echo "FAILED: $*" >&2
  for log in "$CLUSTER_SHARED"/*.log; do
    echo "$log:" >&2
    grep -v '\] step \|\] saved ' "$log" | tail -n 60 >&2
  done
  exit 1
}

# Program, configuration and data where all hosts see them.
prepare() {
  cd "$CLUSTER_SHARED"
  mkdir -p program text
  strip --strip-debug -o program/tessera "$1"
  strip --strip-all -o another_tessera "$1"
  cp -r "$2/configs" .
  cp "$2"/kernels/*.h text
  export PATH=$CLUSTER_SHARED/program:$PATH
  tessera data prepare --input text/*.h --output data/tiny &>prepare.log || fail "no data"
}

# launch RUN OPTION...: runs the job, in RUN/, with its log in RUN.log.
launch() {
  local run=$1
  shift
  tessera launch "$@" -- train configs/tiny.textproto --set runtime.precision=F32 \
    --set batch.sequences=12 --set batch.micro_sequences=1 --set steps=60 \
    --set sparsity.dense_steps=20 --set checkpoint.every=2 --set checkpoint.background=false \
    --set "run_dir=\"$run\"" &>"$run.log"
}

# expect_refusal CODE SENTENCE OPTION...: nothing is started, and the reason is the only line.
expect_refusal() {
  local expected=$1 sentence=$2 code=0
  shift 2
  rm -rf refused
  launch refused "$@" || code=$?
  cat refused.log
  [[ $code == "$expected" ]] || fail "$* ended with $code, expected $expected"
  grep -qF -- "$sentence" refused.log || fail "$*: expected: $sentence"
  [[ $(wc -l <refused.log) == 1 ]] || fail "$*: expected one line"
  [[ ! -e refused/metrics.jsonl ]] || fail "$*: ranks were started"
}

# What is wrong with hosts is said before any rank is started.
refusals() {
  # Directories of n2 that are not the shared ones, one after the other.
  instead_on_n2() { on_node n2 mount -t tmpfs tmpfs "$CLUSTER_SHARED/$1"; }
  as_before() { on_node n2 umount "$CLUSTER_SHARED/$1"; }

  expect_refusal 2 'host n3: has no network interface eth7 that is up; there are lo (127.0.0.1/8), eth0 (' \
    --hosts n3:1 --interface eth7
  expect_refusal 2 'at 10.77.' --hosts n1:1,n2:1,n3:1 --interface eth1
  grep -q 'host n[123] cannot reach host n[123] at 10.77.[123].1 (.*with --interface: eth0 (10.99.0.0/24)' \
    refused.log || fail "it does not say who cannot reach whom, and the way out"
  instead_on_n2 program
  expect_refusal 2 "host n2: the program is not there: $CLUSTER_SHARED/program/tessera; expected" "${three[@]}"
  on_node n2 cp "$CLUSTER_SHARED/another_tessera" "$CLUSTER_SHARED/program/tessera"
  expect_refusal 2 "host n2: has another program: $CLUSTER_SHARED/program/tessera there is tessera" "${three[@]}"
  as_before program
  instead_on_n2 data
  expect_refusal 2 'host n2: the data set data/tiny is not there; expected' "${three[@]}"
  as_before data
  expect_refusal 2 'host n4: has no address (ssh: ' --hosts n1:1,n4:1
  on_node n2 pkill -x sshd
  expect_refusal 75 'host n2: refuses the connection (ssh: connect to host n2 port 22: Connection refused)' \
    "${three[@]}"
}

_steps_done() { [[ $(wc -l <"$1/metrics.jsonl") -ge $2 ]]; }
_says() { grep -q -- "$2" "$1.log"; }
_no_ranks_on() { ! on_node "$1" pgrep -f 'tessera train'; }

# The power of a host fails: the others go on without it, with another mesh. When it is there again, it
# is used from the next start on.
lost_host() {
  launch calm "${three[@]}" || fail "the calm job failed"
  TESSERA_FAILPOINT='ckpt.shard_written:delay=300#1+' launch hurt "${three[@]}" --min-hosts 2 &
  local launcher=$!
  wait_until 60 "the job trains" _steps_done hurt 4 || fail "the job does not start"
  kill_node n2
  wait_until 90 "two ranks save" _says hurt '\[rank 0/2\] saved' || fail "the job does not go on"
  start_node n2
  _says hurt 'host n2: does not answer .*; it is left out until' || fail "the lost host is not named"
  _says hurt ' 2 ranks on n1:1,n3:1, with another mesh' || fail "no word of the new mesh"
  wait_until 60 "n2 is there again" ssh n2 true || fail "n2 does not come back"
  on_node n3 pkill -KILL -f 'tessera train'
  wait "$launcher" || fail "the job ended with $?"
  _says hurt 'host n2: is back' || fail "the host is not taken back"
  _says hurt '\[rank 0/3\] step 60/60' || fail "the end is not on three ranks"
  tessera checkpoint verify hurt || fail "damaged checkpoints"
  python3 - <<'PYTHON' || fail "the losses are not those of the calm run"
import json
def losses(run):  # of the last time that a step was made
    return {one["step"]: one["loss"] for one in map(json.loads, open(f"{run}/metrics.jsonl"))}
calm, hurt = losses("calm"), losses("hurt")
assert set(calm) == set(hurt), (sorted(calm), sorted(hurt))
worst = max(abs(calm[step] - hurt[step]) / calm[step] for step in calm)
print("largest relative difference of a loss:", worst)
assert worst < 1e-3, worst
PYTHON
}

# A host is cut off from the others. Its ranks end by themselves; a spare host takes its place: as many
# ranks, and the same bits.
cut_off_host() {
  local two=(--hosts n1:1,n2:1,n3:1 --ranks 2 --interface eth0 --no-binding)
  launch calm "${two[@]}" || fail "the calm job failed"
  TESSERA_FAILPOINT='ckpt.shard_written:delay=300#1+' launch hurt "${two[@]}" &
  local launcher=$!
  wait_until 60 "the job trains" _steps_done hurt 4 || fail "the job does not start"
  cut_node n2
  wait_until 60 "the job goes on" _says hurt ' 2 ranks on n1:1,n3:1, with the mesh of the configuration' ||
    fail "the job does not go on with the spare host"
  _no_ranks_on n2 || fail "the host that was cut off still has ranks"
  wait "$launcher" || fail "the job ended with $?"
  tessera checkpoint diff calm hurt || fail "the weights are not those of the calm run"
}

tessera=$1
prepare "$1" "$2"
"$3"
