#!/usr/bin/env bash
# Step times of 2 ranks on 2 cores, along each axis of the mesh, beside one rank with one thread.
# All take turns, so that other work on the machine meets all of them.
#   tests/bench/mesh_bench.sh [BUILD_FOLDER] [REPETITIONS] [AXIS...]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/cpu}
repetitions=${2:-3}
axes=("${@:3}")
[[ ${#axes[@]} -gt 0 ]] || axes=(data expert sequence tensor)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

"$build/launcher/tessera" data prepare --input /usr/include/c++ --output "$work/data" >/dev/null
train() {  # train NAME LAUNCHER... -- OPTION...
  local name=$1 launcher=()
  shift
  while [[ $1 != -- ]]; do
    launcher+=("$1")
    shift
  done
  shift
  "${launcher[@]}" "$build/launcher/tessera" train tests/bench/mesh_bench.textproto \
    --set "data.path=\"$work/data\"" --set "run_dir=\"$work/run\"" "$@" >"$work/log" 2>&1 ||
    { cat "$work/log"; exit 1; }
  cp "$work/run/metrics.jsonl" "$work/$name"
  rm -rf "$work/run"
}

for ((i = 0; i < repetitions; ++i)); do
  train "one.$i" taskset -c 0 --
  for axis in "${axes[@]}"; do
    train "$axis.$i" mpirun -np 2 --bind-to core -- --set "mesh.$axis=2"
  done
done

python3 - "$work" "$repetitions" "${axes[@]}" <<'PYTHON'
import json, statistics, sys
work, repetitions, axes = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
median = statistics.median
def times(name, i):  # the first steps are of other stages, and slower
    return median(json.loads(line)["ms"] for line in list(open(f"{work}/{name}.{i}"))[2:])
one = [times("one", i) for i in range(repetitions)]
print(f"one rank, one thread: median {median(one):.0f} ms a step, of {[round(t) for t in one]}")
for axis in axes:
    two = [times(axis, i) for i in range(repetitions)]
    ratios = [a / b for a, b in zip(one, two)]
    print(f"{axis} 2: median {median(two):.0f} ms, {median(ratios):.2f} times as fast, "
          f"from {min(ratios):.2f} to {max(ratios):.2f}")
PYTHON
