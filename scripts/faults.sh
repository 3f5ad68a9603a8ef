#!/usr/bin/env bash
# Does to checkpoints what clusters do, for longer than the tests in the CPU suite: kills, power
# loss, full and broken disks, damaged files, stale jobs. Prints one line per campaign; docs/faults.md
# says what each of them does and what must hold.
#   scripts/faults.sh [FACTOR] [SEED]    FACTOR times the points of the CPU suite, default 10
# Power loss and full disks need root, and mkfs.ext4 and mkfs.xfs; elsewhere they are skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
factor=${1:-10}
seed=${2:-1}
for number in "$factor" "$seed"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || { echo "faults.sh: '$number' is no number from 1" >&2; exit 2; }
done

cmake --preset cpu >/dev/null
cmake --build --preset cpu --target faults_test storage_faults_test >/dev/null || exit 1

export TESSERA_FAULT_FACTOR=$factor TESSERA_FAULT_SEED=$seed
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
folder=build/cpu/tests/faults
failed=0
for program in faults_test storage_faults_test; do
  "$folder/$program" >"$folder/$program.log" 2>&1 || failed=1
done
printf '| fault | points | violations | seconds | |\n|---|---|---|---|---|\n'
sed -n 's/^FAULTS | \(.*\)$/| \1 |/p' "$folder"/{faults_test,storage_faults_test}.log
grep -h 'Skipped$' -B1 "$folder"/*.log | grep -v 'Skipped$\|^--' || true
((failed == 0)) || echo "faults.sh: something is wrong; see $folder/*.log" >&2
exit "$failed"
