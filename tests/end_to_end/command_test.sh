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

# Ranks that die, fail or wait in the middle of a save: nothing acknowledged is lost, and in the end the
# state is that of the calm run.
faults_in_saves() {
  small_data >/dev/null
  local more=(--set steps=40 --set sparsity.dense_steps=20 --set checkpoint.every=6
    --set checkpoint.background=false)  # no save is left out
  local run=(mpirun -np 2 tessera train configs/tiny.textproto --set runtime.precision=F32
    --set batch.micro_sequences=1 "${more[@]}")
  "${run[@]}" --set 'run_dir="calm"' 2>calm.log || { cat calm.log; fail "the calm run failed"; }
  local fault code
  for fault in ckpt.tensor_written:kill@rank1#30 ckpt.marker_renamed:kill@rank0 \
    ckpt.trash_renamed:kill@rank0 ckpt.after_the_vote:kill@rank1; do
    code=0
    TESSERA_FAILPOINT=$fault "${run[@]}" --set 'run_dir="hurt"' 2>>hurt.log || code=$?
    [[ $code != 0 ]] || fail "$fault did not end the job"
  done
  TESSERA_FAILPOINT=ckpt.shard_written:error@rank1 "${run[@]}" --set 'run_dir="hurt"' 2>>hurt.log ||
    { cat hurt.log; fail "the job does not go on"; }
  grep -q "is not saved, training goes on: rank 1: fail point" hurt.log || fail "no failure is told"
  tessera checkpoint diff calm hurt || fail "the run that was hurt differs from the calm one"
  code=0
  TESSERA_FAILPOINT=ckpt.none:kill tiny never 2>/dev/null || code=$?
  [[ $code == 2 ]] || fail "a fail point that there is not gave exit code $code, expected 2"
}

# The launcher starts a job again that dies, stops it when asked, and gives up on one that makes no progress.
launch() {
  small_data >/dev/null
  local more=(--set runtime.precision=F32 --set batch.micro_sequences=1 --set steps=40
    --set sparsity.dense_steps=20 --set checkpoint.every=10 --set checkpoint.background=false)
  local job=(tessera launch --ranks 2 --retries 5 -- train configs/tiny.textproto "${more[@]}")
  "${job[@]}" --set 'run_dir="calm"' 2>calm.log || { cat calm.log; fail "the calm job failed"; }
  # Every life dies in its second save, and so makes one save of progress, but for the last.
  TESSERA_FAILPOINT=ckpt.shard_synced:kill@rank1#2 "${job[@]}" --set 'run_dir="hurt"' 2>hurt.log ||
    { cat hurt.log; fail "the job was not brought to its end"; }
  [[ $(grep -c "; restart " hurt.log) -ge 2 ]] || fail "the job did not die"
  tessera checkpoint diff calm hurt || fail "the job that died differs from the calm one"
  local code=0
  TESSERA_FAILPOINT=ckpt.shard_synced:kill@rank0 "${job[@]}" --set 'run_dir="stuck"' 2>stuck.log || code=$?
  [[ $code == 93 ]] || { cat stuck.log; fail "a job without progress ended with $code, expected 93"; }
  "${job[@]}" --set 'run_dir="stopped"' --set steps=100000 --set sparsity.dense_steps=50000 2>stopped.log &
  local launcher=$!
  for _ in $(seq 600); do
    [[ $(wc -l 2>/dev/null <stopped/metrics.jsonl || echo 0) -ge 5 ]] && break
    sleep 0.1
  done
  kill -TERM "$launcher"
  code=0
  wait "$launcher" || code=$?
  [[ $code == 75 ]] || { cat stopped.log; fail "a job that was stopped ended with $code, expected 75"; }
  tessera checkpoint verify stopped
}

# Four ranks that cannot begin: rank 0 says why, once, and all end with code 2 within seconds.
#   expect_refusal SENTENCE [OPTION...]
expect_refusal() {
  local sentence=$1 code=0
  shift
  timeout 20 mpirun -np 4 tessera train configs/tiny.textproto "$@" >out.log 2>error.log || code=$?
  cat out.log error.log
  [[ $code == 2 ]] || fail "$* ended with $code, expected 2"
  [[ $(grep -cF "$sentence" error.log) == 1 ]] || fail "$*: expected, once: $sentence"
}

wrong_meshes() {
  local refused='mesh: data 3 x expert 1 x sequence 1 x tensor 1 needs 3 ranks, the job has 4'
  expect_refusal "$refused; the nearest mesh that fits is" --set mesh.data=3
  expect_refusal 'mesh: tensor is 8, expected 1 to the 4 ranks of the job' --set mesh.tensor=8
  expect_refusal 'mesh.tensor is 4, expected a divisor of model.intermediate = 62; nearest: 2 or 31' \
    --set mesh.tensor=4 --set model.intermediate=62 --set model.heads=8
  expect_refusal 'mesh.sequence is 4, more sequence ranks than the 2 key blocks of a sequence' \
    --set mesh.sequence=4 --set model.attention.block=32
  expect_refusal 'mesh.expert is 4, expected a divisor of model.moe.experts = 6; nearest: 3 or 6' \
    --set mesh.expert=4 --set model.moe.experts=6
  expect_refusal 'model.layers is -3, expected 1 to 4096' --set model.layers=-3
  SLURM_NTASKS=8 expect_refusal 'start it with mpirun -np 8, or unset SLURM_NTASKS'
}

# One rank that fails alone, because its data is not there, takes the others with it.
one_rank_fails() {
  small_data >/dev/null
  local code=0 begin=$SECONDS run=(tessera train configs/tiny.textproto)
  timeout 20 mpirun -np 3 "${run[@]}" : -np 1 "${run[@]}" --set 'data.path="none"' \
    2>error.log || code=$?
  cat error.log
  [[ $code == 65 ]] || fail "the job ended with $code, expected 65"
  ((SECONDS - begin <= 5)) || fail "the job took $((SECONDS - begin)) s to end"
  grep -m 1 -E 'rank [1-3]/4|MPI_ABORT' error.log | grep -qF 'none holds no finished data set' ||
    fail "the rank that failed does not speak first"
}

# A timeline of two ranks for a browser; also of a job that dies; and a full disk, which the run does not
# mind.
trace() {
  small_data >/dev/null
  local run=(mpirun -np 2 tessera train configs/tiny.textproto --set batch.micro_sequences=1
    --set mesh.tensor=2 --set checkpoint.every=4)
  "${run[@]}" --set 'run_dir="good"' --trace 2>good.log || { cat good.log; fail "a traced run failed"; }
  grep -q 'traced steps 11 to 20, 2 of 2 ranks, .* open good/trace/steps-00000011-00000020.json' good.log ||
    { cat good.log; fail "the run does not say where its trace is"; }
  python3 - <<'PYTHON'
import collections, json
events = json.load(open("good/trace/steps-00000011-00000020.json"))["traceEvents"]
threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
assert {(0, "compute"), (1, "compute"), (0, "tensor"), (1, "checkpoint")} <= {
    (pid, name) for (pid, _), name in threads.items()}, threads
for pid in 0, 1:
    mine = [e for e in events if e["pid"] == pid]
    steps = [e for e in mine if e.get("cat") == "step"]
    assert [e["name"] for e in steps] == [f"step {i}" for i in range(11, 21)], steps
    phases = [e for e in mine if e.get("cat") == "phase"]
    inside = lambda e, s: s["ts"] - 0.002 <= e["ts"] and e["ts"] + e["dur"] <= s["ts"] + s["dur"] + 0.002
    shares = sorted(sum(p["dur"] for p in phases if inside(p, s)) / s["dur"] for s in steps)
    assert shares[len(shares) // 2] > 0.5 and shares[-1] < 1.001, shares
    forms = collections.Counter(e["ph"] for e in mine)
    assert forms["b"] == forms["e"] > 100 and forms["s"] == forms["f"] > 100, forms
    names = {e["name"] for e in mine if e.get("cat") == "exchange"}
    assert {"all_gather", "reduce_scatter", "all_gather tensor"} <= names, names
PYTHON
  local code=0
  TESSERA_FAILPOINT=ckpt.shard_written:kill@rank1 "${run[@]}" --set 'run_dir="dead"' --trace=2:9 \
    2>dead.log || code=$?
  [[ $code != 0 ]] || fail "the job did not die"
  [[ ! -e dead/trace/steps-00000002-00000009.json ]] || fail "a job that died has joined its trace"
  tessera trace dead --ranks 1 || fail "the part of the rank that died cannot be joined"
  python3 -c 'import json, sys
names = {e["name"] for e in json.load(open(sys.argv[1]))["traceEvents"]}
assert "step 2" in names, names' dead/trace/steps-00000002-00000009-ranks-1.json
  mkdir -p full/trace/steps-00000003-00000005 && ln -s /dev/full full/trace/steps-00000003-00000005/rank-00000.json
  "${run[@]}" --set 'run_dir="full"' --trace 3:5 2>full.log || { cat full.log; fail "a full disk ended the run"; }
  [[ $(grep -c 'the trace of this rank is given up, .*No space left' full.log) == 1 ]] ||
    { cat full.log; fail "the full disk is not told once"; }
  tessera checkpoint diff good full || fail "a full disk has changed the run"
}

# A dense run whose global groups are chosen goes on where it was, in another directory, and becomes
# sparse there.
chosen_groups() {
  small_data >/dev/null
  tiny dense --set steps=4 --set sparsity=
  tessera checkpoint choose dense --data data/tiny --output chosen --steps 3 --batch 4 >table.txt 2>choose.log ||
    { cat choose.log; fail "no groups were chosen"; }
  cat table.txt
  [[ $(grep -cE '^ +[01] +[01] +[01]\.[0-9]{4} +(global|local) +[01] -> [01] ' table.txt) == 4 ]] ||
    fail "the table does not have two groups of two layers"
  [[ $(grep -cE ' global +[01] -> 0 ' table.txt) == 2 ]] || fail "not one group of each layer is global"
  local code=0
  tessera checkpoint diff dense chosen >/dev/null || code=$?
  [[ $code == $([[ -s chosen/gate_changes.jsonl ]] && echo 1 || echo 0) ]] ||
    fail "what was moved is not what was told"
  tessera checkpoint verify chosen
  tiny chosen
  [[ $(wc -l <chosen/metrics.jsonl) == 16 ]] || fail "the run does not go on from step 4"
}

# Texts that are continued together are those of one at a time, in order, though each takes part of the
# experts' capacity in training; and a text alone is the same text.
many_texts() {
  small_data >/dev/null
  tiny run --set model.moe.capacity_factor=1 --set model.hidden=64 --set model.intermediate=128 \
    --set model.moe.intermediate=64
  for begin in "namespace" "/// " "struct Stream" "a" "int64_t "; do echo "{\"prompt\": \"$begin\"}"; done >prompts.jsonl
  local generate=(tessera generate --checkpoint run --tokens 30)
  for batch in 1 3 64; do
    "${generate[@]}" --precision f32 --prompts prompts.jsonl --samples 2 --seed 5 --batch $batch >$batch.jsonl 2>$batch.log ||
      { cat $batch.log; fail "batch $batch"; }
    cmp 1.jsonl $batch.jsonl || fail "batch $batch draws other texts"
    cat $batch.log
  done
  grep -q '^10 texts, 10 at a time: .* tokens/s$' 64.log || fail "the speed is not told"
  "${generate[@]}" --precision f32 --prompt "struct Stream" --seed 10 >alone.txt
  "${generate[@]}" --prompts prompts.jsonl --precision int4 --batch 3 >int4.jsonl || fail "4 bits"
  python3 - <<'PYTHON'
import json
texts = [json.loads(line) for line in open("1.jsonl")]
assert [(t["prompt"], t["seed"]) for t in texts[4:6]] == [("struct Stream", 9), ("struct Stream", 10)], texts
assert all(t["ended"] or t["tokens"] == 30 for t in texts), texts
assert open("alone.txt", errors="replace").read() == "struct Stream" + texts[5]["text"] + "\n"
assert len({t["text"] for t in texts}) > 5, texts
assert [json.loads(line)["prompt"] for line in open("int4.jsonl")] == [t["prompt"] for t in texts[::2]]

# Some tokens, to be scored in bf16 and in 4 bits.
import struct
tokens = [(7 * i * i + i) % 100 + 20 for i in range(128)]
head = json.dumps({"tokens": {"dtype": "I32", "shape": [2, 64], "data_offsets": [0, 512]}}).encode()
head += b" " * (-len(head) % 8)
open("tokens.safetensors", "wb").write(struct.pack("<Q", len(head)) + head + struct.pack("<128i", *tokens))
PYTHON
  local loss
  for precision in bf16 int4; do
    loss=$(tessera score --checkpoint run --input tokens.safetensors --output out --precision $precision)
    echo "$precision: $loss"
    awk '{ print $2 }' <<<"$loss" >>losses.txt
  done
  # 4 bits change it, and not by much.
  awk 'NR == 1 { bf16 = $1 } NR == 2 { d = ($1 - bf16) / bf16; exit !(d != 0 && d < 0.02 && d > -0.02) }' losses.txt ||
    fail "the losses in bf16 and in 4 bits are $(paste -sd' ' losses.txt)"
}

# Shapes and bytes of every shipped configuration, without training.
dry_runs() {
  for config in configs/*.textproto; do
    tessera train "$config" --dry-run || fail "$config"
  done
  tessera plan configs/moe-100b-384gpu.textproto --gpus 384 --hardware h200
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

# The process of rank RANK of the job with this run directory.
rank_process() {
  local process
  for process in $(pgrep -x tessera); do
    tr '\0' '\n' 2>/dev/null <"/proc/$process/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1" &&
      tr '\0' ' ' <"/proc/$process/cmdline" | grep -qF "$work/$2" && echo "$process" && return
  done
  fail "there is no process of rank $1"
}

# A rank that is stopped is named, with its host and the exchange that the others wait in, the job ends
# with 75, and its next life brings the run to its end. A rank that leaves out an exchange is shown
# beside those that did not.
hangs() {
  small_data >/dev/null
  local run=(mpirun -np 4 tessera train configs/tiny.textproto --set mesh.tensor=2
    --set checkpoint.every=5 --set watch.stopped=2 --set "run_dir=\"$work/run\"")
  "${run[@]}" --set steps=100000 2>job.log &
  local job=$! code=0
  for _ in $(seq 600); do
    [[ -e run/checkpoints/latest ]] && break
    sleep 0.1
  done
  kill -STOP "$(rank_process 2 run)"
  wait "$job" || code=$?
  [[ $code == 75 ]] || { cat job.log; fail "a job with a stopped rank ended with $code, expected 75"; }
  cat run/flight/hang.txt
  grep -qE "^HANG step [0-9]+ phase .*: rank 2 \($(hostname)\) (did not enter|entered, and does not)" \
    run/flight/hang.txt || fail "the rank is not named"
  grep -qF 'process state T (stopped)' run/flight/hang.txt || fail "its state is not named"
  local rank
  for rank in 0 1 2 3; do
    python3 -m json.tool "run/flight/rank-0000$rank.json" >/dev/null || fail "no dump of rank $rank"
  done
  grep -q libmpi run/flight/stacks-0000[013].txt || fail "there is no stack of a rank that waits"
  tessera flight run --rank 0 >flight.txt
  grep -q 'tessera::.* at .*/run_training.cc:\|run_train' flight.txt || fail "stacks have no lines of the source"
  tessera flight run >flight.txt
  grep -qE '^(rank 2|ranks .*2.*): .*T \(stopped\)' flight.txt || fail "tessera flight run"
  tessera flight run --rank 2 --exchanges 3 >flight.txt
  grep -qF 'no stacks: ' flight.txt || fail "tessera flight --rank 2"
  local steps
  steps=$(($(tessera checkpoint list run | grep -oE 'step-[0-9]+' | head -1 | sed 's/step-0*//') + 10))
  "${run[@]}" --set "steps=$steps" 2>again.log || { cat again.log; fail "the run did not go on"; }
  [[ ! -e run/flight && -e run/flight.previous/hang.txt ]] || fail "what the hang left was not kept"

  code=0
  TESSERA_FAILPOINT=comm.exchange:skip@rank3#300 "${run[@]}" --set steps=100000 \
    --set watch.setup=10 --set watch.step=5 2>skip.log || code=$?
  grep -F -A3 HANG skip.log || { cat skip.log; fail "nothing was said of a skipped exchange"; }
  [[ $code != 0 ]] || fail "a job whose ranks parted ended with 0"
  grep -qE 'HANG .* call different exchanges as #[0-9]+: .* at .*:[0-9]+ .* at .*:[0-9]+' skip.log ||
    fail "the two calls are not shown"
}

# Without watchers a rank has no process beside it, which would end the run for never having begun.
unwatched() {
  small_data >/dev/null
  tessera train configs/tiny.textproto --set watch.enabled=false --set steps=100000 \
    --set checkpoint.every=5 --set "run_dir=\"$work/run\"" 2>job.log &
  local job=$! code=0
  for _ in $(seq 600); do
    [[ -e run/checkpoints/latest ]] && break
    sleep 0.1
  done
  local beside
  beside=$(pgrep -P "$job" || true)
  kill -TERM "$job"
  wait "$job" || code=$?
  [[ -e run/checkpoints/latest ]] || { cat job.log; fail "the run did not begin"; }
  [[ -z $beside ]] || fail "the rank had a watcher, process $beside"
  [[ $code == 75 ]] || { cat job.log; fail "the run ended with $code, expected 75"; }
}

"$3"
