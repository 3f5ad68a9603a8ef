#!/usr/bin/env bash
# Tokens per second of whole training steps of configs/gpt2-124m-shape.textproto, beside PyTorch's
# (Debian's python3-torch, when it is installed) and the machine's matmul rate, in one run.
#   tests/bench/train_bench.sh [BUILD_FOLDER] [STEPS]
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/cpu}
steps=${2:-6}
threads=$(nproc)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$build/launcher/tessera" data prepare --input /usr/include/c++ --output "$work/data" >/dev/null
"$build/launcher/tessera" train configs/gpt2-124m-shape.textproto --steps "$steps" \
  --set "data.path=\"$work/data\"" --set "run_dir=\"$work/run\"" --set schedule.warmup_steps=2 \
  --set checkpoint.every=0 --set "runtime.threads=$threads" --set runtime.log_every=1 \
  2>"$work/log" || { cat "$work/log"; exit 1; }
grep -E 'total|activations' "$work/log" || true
python3 - "$work/run/metrics.jsonl" "$threads" <<'PYTHON'
import json, statistics, sys
steps = [json.loads(line) for line in open(sys.argv[1])][1:]
median = lambda name: statistics.median(step[name] for step in steps)
print(f"Tessera, bf16, {sys.argv[2]} threads: {median('ms'):.0f} ms, "
      f"{median('tokens_per_second'):.0f} tokens/s, {1000 * median('tflops_per_device'):.0f} GFLOP/s, "
      f"resident {steps[-1]['memory_gib']:.2f} GiB")
PYTHON
if /usr/bin/python3 -c 'import torch' 2>/dev/null; then
  /usr/bin/python3 tests/bench/pytorch_gpt2.py --threads "$threads" --steps "$steps"
else
  echo "PyTorch: not measured, python3-torch is not installed"
fi
