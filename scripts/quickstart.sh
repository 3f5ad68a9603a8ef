#!/usr/bin/env bash
# From a fresh checkout to text that a small DGSA + MoE model wrote: installs what is missing,
# builds, makes a data set of this machine's C++ headers, trains through all stages of sparsity on
# two ranks, and samples. Run it again: what is done is not done twice.
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

say "training, 2 data-parallel ranks (metrics: runs/quickstart/metrics.jsonl)"
run=(mpirun -np 2 --bind-to none --oversubscribe)
((EUID == 0)) && run+=(--allow-run-as-root)
"${run[@]}" "$tessera" train configs/quickstart.textproto

say "what it writes"
"$tessera" generate --checkpoint runs/quickstart --prompt $'  template<typename _Tp>\n    inline ' \
  --tokens 300 --temperature 0.7 --seed 1

say "done in $((SECONDS - begin)) s"
