#!/usr/bin/env bash
# A compiler launcher for nvcc: runs the command, and keeps what ptxas says about registers and
# spills (-Xptxas=-v) in OBJECT.ptxas instead of on the screen. Read by scripts/kernel_resources.py.
set -uo pipefail

object=
for ((i = 1; i < $#; ++i)); do
  [[ ${!i} == -o ]] && { j=$((i + 1)); object=${!j}; }
done
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$@" 2>"$log"
status=$?
usage='^ptxas info|^    [0-9]+ bytes stack frame|bytes cumulative stack size'
[[ -n $object ]] && grep -E "$usage" "$log" >"$object.ptxas"
grep -vE "$usage" "$log" >&2
exit "$status"
