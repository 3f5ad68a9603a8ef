#!/usr/bin/env bash
# The program as a user runs it: several ranks, a stop in the middle, the commands of the README.
#   command_test.sh TESSERA SOURCE_FOLDER CASE
set -euo pipefail
tessera=$(realpath "$1")
source=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
ln -s "$source/configs" configs
mkdir bin && ln -s "$tessera" bin/tessera
export PATH="$work/bin:$PATH" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none

fail() { echo "FAILED: $*" >&2; exit 1; }

# Trains configs/tiny.textproto in f32 on data/tiny into RUN, in place of the shell that calls it, so
# that a signal to that process reaches the program.
#   become_tiny RUN [OPTION...]
become_tiny() {
  local run=$1
  shift
  exec tessera train configs/tiny.textproto --set runtime.precision=F32 \
    --set batch.micro_sequences=1 --set "run_dir=\"$run\"" "$@" 2>>"$run.log"
}

tiny() { (become_tiny "$@"); }

small_data() {
  cp "$source"/kernels/*.h . && tessera data prepare --input ./*.h --output data/tiny 2>/dev/null
}

two_ranks_are_one() {
  small_data >/dev/null
  tiny one
  mpirun -np 2 tessera train configs/tiny.textproto --set runtime.precision=F32 \
    --set batch.micro_sequences=1 --set 'run_dir="two"' 2>two.log
  python3 - <<'PYTHON'
import json
one, two = ([json.loads(l) for l in open(f"{run}/metrics.jsonl")] for run in ("one", "two"))
assert len(one) == len(two) > 0, (len(one), len(two))
worst = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(one, two))
print("largest relative difference of a loss:", worst)
assert worst < 1e-5, worst
PYTHON
}

# Ctrl-C saves and exits with 75; the same command goes on as if nothing had happened.
stop_and_go_on() {
  small_data >/dev/null
  local more=(--set steps=120 --set sparsity.dense_steps=40 --set checkpoint.every=0)
  tiny calm "${more[@]}"
  become_tiny stopped "${more[@]}" &
  local rank=$!
  for _ in $(seq 600); do
    [[ $(wc -l 2>/dev/null <stopped/metrics.jsonl || echo 0) -ge 10 ]] && break
    sleep 0.1
  done
  kill -INT "$rank"
  local code=0
  wait "$rank" || code=$?
  [[ $code == 75 ]] || fail "a stopped run exited with $code, expected 75"
  [[ $(wc -l <stopped/metrics.jsonl) -lt 120 ]] || fail "the run was over before it was stopped"
  tiny stopped "${more[@]}" || fail "the run did not go on"
  tessera checkpoint diff calm stopped || fail "the resumed run differs from the calm one"
  tiny stopped "${more[@]}" || fail "a finished run, started again, did not exit with 0"
  [[ $(wc -l <stopped/metrics.jsonl) == 120 ]] || fail "steps are missing or twice in metrics.jsonl"
  tessera checkpoint verify stopped
}

# Shapes and bytes of every shipped configuration, without training.
dry_runs() {
  for config in configs/*.textproto; do
    tessera train "$config" --dry-run || fail "$config"
  done
}

# The commands of the README's section "Use", as they stand there.
readme() {
  awk '/^```/ { if (block ~ /tessera data/) printf "%s", block
                block = ""; inside = ($0 ~ /^```sh/); next }
       inside { block = block $0 "\n" }' "$source/README.md" >commands.sh
  grep -q 'tessera train' commands.sh || fail "the README has no commands to run"
  cat commands.sh
  bash -euo pipefail commands.sh 2>readme.log || { tail -n 20 readme.log; fail "README"; }
  python3 - <<'PYTHON'
import json
steps = [json.loads(line) for line in open("runs/quickstart/metrics.jsonl")]
first, last = steps[0]["loss"], steps[-1]["validation_loss"]
print(f"loss {first:.2f} at the start, validation loss {last:.2f} at the end")
assert last < first / 2, (first, last)
PYTHON
}

"$3"
