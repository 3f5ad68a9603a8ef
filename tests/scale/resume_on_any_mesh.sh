#!/usr/bin/env bash
# A run saved on expert 2 x sequence 2 x tensor 2 goes on from step 3 on data 2 x tensor 2, on one rank,
# on 12 ranks and, with TESSERA_SCALE_TESTS=1, on 384 ranks: the losses of steps 4 to 6 are those
# of the undisturbed run within 1e-5.
#   tests/scale/resume_on_any_mesh.sh [BUILD_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
tessera=$(realpath "${1:-build/cpu}")/launcher/tessera
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PMIX_MCA_gds=hash  # see ranks_384.sh, also for the options
options=(--oversubscribe --bind-to none --mca mpi_yield_when_idle 1 --mca pml ob1
  --mca btl "vader,self")
many=(--mca pmix_base_async_modex 1 --mca async_mpi_init 1 --mca async_mpi_finalize 1)

"$tessera" data prepare --input kernels --output "$work/data" >/dev/null 2>&1

# train NAME RANKS [OPTION...]
train() {
  local name=$1 ranks=$2 launch=()
  shift 2
  ((ranks > 1)) && launch=(mpirun -np "$ranks" "${options[@]}")
  ((ranks > 100)) && launch+=("${many[@]}")
  "${launch[@]}" "$tessera" train tests/scale/ranks_384.textproto --set "data.path=\"$work/data\"" \
    --set steps=6 --set checkpoint.every=3 --set sparsity.dense_steps=4 \
    --set "run_dir=\"$work/$name\"" "$@" >"$work/$name.log" 2>&1 ||
    grep -q " saved .*step-00000006" "$work/$name.log" || { tail -n 40 "$work/$name.log"; exit 1; }
}
axes() {  # axes DATA EXPERT SEQUENCE TENSOR
  echo --set "mesh.data=$1" --set "mesh.expert=$2" --set "mesh.sequence=$3" --set "mesh.tensor=$4"
}

# In the foreground, so that step 3 is there however slow the disk is.
train whole 8 $(axes 1 2 2 2) --set checkpoint.background=false
saved="$work/whole/checkpoints/step-00000003"
train four 4 $(axes 2 1 1 2) --resume "$saved"
train one 1 $(axes 1 1 1 1) --resume "$saved"
train twelve 12 $(axes 1 2 3 2) --resume "$saved"
runs=(four one twelve)
if [[ ${TESSERA_SCALE_TESTS:-} == 1 ]]; then
  train many 384 $(axes 1 8 6 8) --resume "$saved"
  runs+=(many)
fi
grep -h "resumed from" "$work"/*.log | sed "s|$work/||"

python3 - "$work" "${runs[@]}" <<'PYTHON'
import json, sys
work = sys.argv[1]
steps = lambda run: [json.loads(line) for line in open(f"{work}/{run}/metrics.jsonl")]
whole = steps("whole")[3:]
bad = False
for run in sys.argv[2:]:
    rest = steps(run)
    assert [s["step"] for s in rest] == [4, 5, 6], run
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(rest, whole))
    print(f"{run}: losses differ by at most {worst:.1e} of the undisturbed run's, expected 1e-5")
    bad |= not worst <= 1e-5
sys.exit(bad)
PYTHON
