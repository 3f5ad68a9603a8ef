#!/usr/bin/env bash
# `tessera doctor` on this machine, on machines that are odd, and on virtual hosts that have faults.
#   doctor_test.sh TESSERA SOURCE_FOLDER CASE
# Exit code 77 where there can be no virtual hosts.
set -euo pipefail
tessera=$(realpath "$1")
source=$(realpath "$2")

fail() { echo "FAILED: $*" >&2; exit 1; }

# examine EXIT_CODE COMMAND...: runs it into the file `found`. Nothing may take a minute.
examine() {
  local expected=$1 code=0
  shift
  timeout 60 "$@" >found 2>errors || code=$?
  [[ $code == "$expected" || $expected == any && $code -le 1 ]] ||
    fail "exit code $code instead of $expected: $* $(cat found errors)"
  ! grep -qvE '^(ok|warn|fail)  |^[0-9]+ ok, [0-9]+ warnings?, [0-9]+ failures?$' found ||
    fail "lines of another form: $(cat found)"
}

# expect VERDICT SUBJECT WORDS: a line of `found` is that.
expect() { grep -E "^$1 +$2 " found | grep -qF -- "$3" || fail "no line: $1 $2 ... $3: $(cat found errors)"; }

here() {
  examine any "$tessera" doctor --run-dir "$work/run/not/there"
  for subject in program mpi pmix slurm gpu nccl network mpi-net nccl-net limits memory shm cores \
    storage space fsync world; do
    grep -qE "^(ok|warn|fail) +$subject " found || fail "nothing about $subject: $(cat found)"
  done
  expect '(ok|warn)' world "two ranks on this host: " # slow on a busy machine
  grep -q "not there yet" found || fail "the run directory is there: $(cat found)"
  [[ ! -e $work/run ]] || fail "it made the run directory"
  timeout 60 "$tessera" doctor --json >json || [[ $? == 1 ]]
  python3 - <<'PYTHON'
import json
report = json.load(open("json"))
assert len(report["findings"]) >= 17 and len(report["program"]["digest"]) == 32, report
assert {one["verdict"] for one in report["findings"]} <= {"ok", "warn", "fail"}, report
PYTHON
  [[ -z $(ls -A "$work/empty") ]]
  (cd empty && timeout 60 "$tessera" doctor >/dev/null) || [[ $? == 1 ]]
  [[ -z $(ls -A "$work/empty") ]] || fail "it left files: $(ls -A empty)"
}

# tool NAME SCRIPT: a program that comes first in PATH.
tool() { printf '#!/bin/sh\n%s\n' "$2" >"tools/$1" && chmod +x "tools/$1"; }

odd_tools() {
  tool mpirun 'echo "HYDRA build details:"; echo "    Version:    4.0.2"'
  PATH="$work/tools:$PATH" examine 1 "$tessera" doctor
  expect fail mpi "is MPICH 4.0.2: every rank would be alone"
  for name in mpirun ompi_info srun scontrol; do tool "$name" 'sleep 600'; done
  PATH="$work/tools:$PATH" examine 1 "$tessera" doctor
  expect fail mpi "mpirun did not end within"
  expect warn slurm "scontrol did not end within"
  examine any env PATH=/nonexistent "$tessera" doctor
  expect warn mpi "no mpirun in PATH"
  expect ok slurm "not installed"
}

odd_places() {
  touch file
  examine 1 "$tessera" doctor --run-dir "$work/file/run"
  expect fail fsync "file is a file, expected a directory"
  OMPI_MCA_btl_tcp_if_include=nosuch examine 1 "$tessera" doctor
  expect fail mpi-net "btl_tcp_if_include is nosuch, and no interface that is up is nosuch"
  examine 1 "$tessera" doctor --interface nosuch
  expect fail interface "there is no interface nosuch"
  examine 1 "$tessera" doctor --hosts localhost:1,nosuch.invalid:1
  expect fail ssh "[nosuch.invalid]"
  expect ok program "the same everywhere"
  local code=0
  "$tessera" doctor --hosts a:x 2>errors || code=$?
  [[ $code == 2 ]] || fail "exit code $code for wrong usage"
}

# Three virtual hosts, and what may be wrong with them.
hosts() {
  local cluster="$source/tests/cluster/cluster.sh"
  [[ -x $cluster ]] || { echo "there are no virtual hosts: $cluster"; exit 77; }
  exec "$cluster" run --nodes 3 --stray-interface -- \
    "$source/tests/end_to_end/doctor_test.sh" "$tessera" "$source" hosts_inside
}

# three EXIT_CODE [OPTION...]
three() {
  local expected=$1
  shift
  (($#)) || set -- --run-dir "$CLUSTER_SHARED"
  examine "$expected" "$tessera" doctor --hosts n1:2,n2:2,n3:2 "$@"
}

hosts_inside() {
  export OMPI_MCA_btl_tcp_if_include=eth0
  # Where all hosts see it, wherever this tree is.
  mkdir "$CLUSTER_SHARED/program"
  strip --strip-debug -o "$CLUSTER_SHARED/program/tessera" "$tessera"
  tessera=$CLUSTER_SHARED/program/tessera
  three 0
  expect ok program "the same everywhere"
  expect '(ok|warn)' pairs "3 pairs, "
  grep -qE '^(ok|warn) +clocks ' found || fail "nothing about clocks: $(cat found)"

  # Another program, and a directory that every host has for itself.
  cp "$tessera" "$CLUSTER_SHARED/other" && printf x >>"$CLUSTER_SHARED/other"
  on_node n2 mount --bind "$CLUSTER_SHARED/other" "$tessera"
  three 1 --run-dir /tmp
  expect fail program "n2: file"
  expect fail shared "/tmp is another directory here"
  on_node n2 umount "$tessera"

  # Two hosts that do not hear each other, and hear all others.
  on_node n1 ip neigh replace 10.99.0.3 lladdr 02:00:00:00:00:99 nud permanent dev eth0
  three 1
  expect fail pairs "MPI gets nothing through between n1 and n3"
  on_node n1 ip neigh delete 10.99.0.3 dev eth0

  # No program, and no host.
  on_node n2 mount -t tmpfs tmpfs "$(dirname "$tessera")"
  cut_node n3
  three 1
  expect fail ssh "[n2] the program is not there"
  expect fail ssh "[n3] it does not answer"
  expect ok program "the same everywhere"
}

work=$(mktemp -d "${CLUSTER_SHARED:-${TMPDIR:-/tmp}}/doctor-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir tools empty
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
"$3"
