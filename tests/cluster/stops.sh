#!/usr/bin/env bash
# Stops (SIGSTOP) a random rank of a job at a random moment, COUNT times, on two virtual hosts, and counts how
# often the job's log names the right rank, its host and the exchange that the others wait in, and when.
#   stops.sh COUNT [SEED [TESSERA]]
# docs/cluster_tests.md has results. Exit code 77 where there can be no cluster.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
count=${1:-} seed=${2:-1}
for number in "$count" "$seed"; do
  [[ $number =~ ^[1-9][0-9]{0,4}$ ]] || { echo "usage: stops.sh COUNT [SEED [TESSERA]]" >&2; exit 2; }
done
if [[ ! ${CLUSTER:-} ]]; then
  tessera=$(realpath "${3:-$here/../../build/cpu/launcher/tessera}")
  exec "$here/cluster.sh" run --nodes 2 -- "$(realpath "$0")" "$count" "$seed" "$tessera"
fi
. "$here/commands.sh"
. "$here/jobs.sh"
RANDOM=$seed
prepare "$3" "$here/../.."

log=stops.log right=0 worst=0
for ((i = 1; i <= count; ++i)); do
  rank=$((RANDOM % 4)) host=n$((1 + rank / 2)) pause=0.$((100 + RANDOM % 900))
  rm -rf hurt "$log"
  srun --nodes 2 --ntasks-per-node 2 --kill-on-bad-exit=1 tessera train configs/tiny.textproto \
    "${train_options[@]}" --set steps=100000 --set checkpoint.every=10 --set 'run_dir="hurt"' &>"$log" &
  step=$!
  wait_until 120 "the job trains" _steps_done 20 || fail "the job does not start"
  sleep "$pause"
  kill -STOP "$(rank_process "$rank")"
  begin=$(date +%s%N)
  wait_until 60 "the hang is told" grep -q 'HANG' "$log" || fail "nobody says that rank $rank hangs"
  took=$((($(date +%s%N) - begin) / 1000000))
  ((took <= worst)) || worst=$took
  told=$(grep -A 1 HANG "$log" | head -n 2)
  if [[ $told == *"rank $rank ($host"*" of "*" #"*"process state T"* ]]; then
    right=$((right + 1))
  else
    echo "rank $rank on $host was stopped; told was: $told"
  fi
  code=0
  wait "$step" || code=$?
  echo "$i: rank $rank, $took ms, exit code $code; ${told%%$'\n'*}"
done
echo "$right of $count are right; the slowest was told after $worst ms"
((right == count))
