#!/usr/bin/env bash
# Stops a random rank of a job at a random time, again and again: does the watcher name that rank, its
# host and an exchange? Prints one line each and a closing one; fails when one was wrong.
#   scripts/hangs.sh TESSERA [TIMES] [SEED]
set -euo pipefail
tessera=$(realpath "$1")
times=${2:-50}
RANDOM=${3:-1}
source=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
job=
trap '[[ -z $job ]] || kill -KILL "$job" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none

cp "$source"/kernels/*.h .
"$tessera" data prepare --input ./*.h --output data/tiny >/dev/null 2>&1

# The process of a rank of the job.
process_of() {
  local process
  for process in $(pgrep -x tessera); do
    tr '\0' '\n' 2>/dev/null <"/proc/$process/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1" || continue
    tr '\0' ' ' <"/proc/$process/cmdline" | grep -q "run_dir=\"$work/run\"" && echo "$process" && return
  done
}

steps_done() { wc -l 2>/dev/null <run/metrics.jsonl || echo 0; }

right=0
slowest=0
for ((i = 1; i <= times; ++i)); do
  rm -rf run
  mpirun -np 4 "$tessera" train "$source/configs/tiny.textproto" --set mesh.tensor=2 --set steps=1000000 \
    --set "run_dir=\"$work/run\"" --set watch.stopped=3 >log 2>&1 &
  job=$!
  until (($(steps_done) > 5 + RANDOM % 20)); do
    kill -0 "$job" 2>/dev/null || { cat log; echo "the job ended by itself"; exit 1; }
    sleep 0.1
  done
  rank=$((RANDOM % 4))
  kill -STOP "$(process_of "$rank")"
  begin=$(date +%s%N)
  code=0
  wait "$job" || code=$?
  job=
  took=$((($(date +%s%N) - begin) / 1000000))
  ((took > slowest)) && slowest=$took
  sentence=$(head -n 1 run/flight/hang.txt 2>/dev/null || echo "nothing was said")
  verdict=wrong
  if [[ $code == 75 && $took -lt 60000 && $sentence == *": rank $rank ($(hostname)) "*" #"*" at "* ]]; then
    verdict=right
    right=$((right + 1))
  fi
  echo "$i: rank $rank, exit $code after $took ms, $verdict: $sentence"
done
echo "$right of $times were named rightly, the slowest after $slowest ms"
((right == times))
