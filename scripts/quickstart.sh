#!/usr/bin/env bash
# From a fresh checkout to text that a small DGSA + MoE model wrote: installs what is missing,
# builds, makes a data set of this machine's C++ headers, trains through all stages of sparsity on
# a mesh of eight ranks, stops half-way, goes on on another mesh, writes a page about the run, and
# samples. Run it again: what is done is not done twice.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
begin=$SECONDS

say "packages"
scripts/packages.sh

say "build"
cmake --preset cpu >/dev/null
cmake --build --preset cpu --target tessera
tessera=build/cpu/launcher/tessera

say "data: the C++ headers of this machine, as bytes"
"$tessera" data prepare --input /usr/include/c++ --output data/quickstart

run=runs/quickstart
ranks=(mpirun -q --bind-to none --oversubscribe)  # -q: not every exit code is trouble to report
((EUID == 0)) && ranks+=(--allow-run-as-root)
steps_done() { if [[ -f $run/metrics.jsonl ]]; then wc -l <$run/metrics.jsonl; else echo 0; fi; }

half=150
if (($(steps_done) < half)); then
  say "training on 8 ranks, expert 2 x sequence 2 x tensor 2, to be stopped half-way"
  "${ranks[@]}" -np 8 "$tessera" train configs/quickstart.textproto \
    --set mesh.expert=2 --set mesh.sequence=2 --set mesh.tensor=2 &
  job=$!
  # As Slurm does before a time limit: USR1, which mpirun hands to the ranks. They finish the step,
  # save, and exit with 75: "run me again".
  while kill -0 "$job" 2>/dev/null && (($(steps_done) < half)); do sleep 0.2; done
  kill -USR1 "$job" 2>/dev/null || true
  code=0
  wait "$job" || code=$?
  ((code == 75 || code == 0)) || { echo "quickstart: training ended with code $code" >&2; exit 1; }
  echo "stopped with exit code $code: 75 says that the state is saved, run it again"
fi

say "going on from its checkpoint on another mesh: data 2 x sequence 2 (metrics: $run/metrics.jsonl)"
"${ranks[@]}" -np 4 "$tessera" train configs/quickstart.textproto --set mesh.sequence=2

say "a page about the run"
"$tessera" report "$run"

say "what it writes"
"$tessera" generate --checkpoint runs/quickstart --prompt $'  template<typename _Tp>\n    inline ' \
  --tokens 300 --temperature 0.7 --seed 1

say "done in $((SECONDS - begin)) s"
