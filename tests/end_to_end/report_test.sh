#!/usr/bin/env bash
# The page of a real run in a real browser: no script error, no request, and it shows what it should.
#   report_test.sh TESSERA SOURCE_FOLDER [PICTURES]
# With PICTURES, a folder, its pictures stay there to be looked at. 77: there is no Chromium.
set -euo pipefail
tessera=$(realpath "$1")
source=$(realpath "$2")
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
  echo "skipped: no chromium; apt-get install chromium"
  exit 77
}
pictures=${3:-}
[[ -z $pictures ]] || pictures=$(realpath "$pictures")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAILED: $*" >&2; exit 1; }

# open WIDTH HEIGHT [OPTION...]: loads $page, with the words of its console in console.txt.
page=run/report.html
open() {
  local width=$1 height=$2
  shift 2
  HOME=$work timeout 120 "$browser" --headless --no-sandbox --disable-dev-shm-usage \
    --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking \
    --disable-component-update --enable-logging=stderr --v=0 --virtual-time-budget=5000 \
    --window-size="$width,$height" "$@" "file://$work/$page" 2>browser.txt
  grep CONSOLE browser.txt >console.txt || true
  [[ ! -s console.txt ]] || fail "at $width pixels the page complains: $(cat console.txt)"
}

has() { grep -qF -- "$1" page.html || fail "the page does not show: $1"; }

cp "$source"/kernels/*.h . && "$tessera" data prepare --input ./*.h --output data/tiny 2>/dev/null
train() {
  "$tessera" train "$source/configs/tiny.textproto" --set run_dir=run --set steps=60 \
    --set sparsity.dense_steps=20 --set sparsity.gate_warmup_steps=8 \
    --set sparsity.transition_steps=16 --set checkpoint.every=20 \
    --set checkpoint.background=false --set runtime.validate_every=10 --set monitor.gate_every=4 \
    --set monitor.heat_map_every=8 --set monitor.experts_every=4 --set sparsity.guard=PAIRED \
    --set sparsity.guard_window=4 --set sparsity.guard_tolerance=1e-9 --set sparsity.guard_limit=4 \
    --set model.attention.window=2 "$@" 2>train.txt ||
    { cat train.txt; fail "training"; }
}
train
rm -r run/checkpoints/step-00000060  # and as after a kill, the last steps again
train
"$tessera" report run | tee said.txt
grep -q "^run: finished, 60 steps" said.txt || fail "the run is not finished"

# A page asks nobody: what it may load is told by its own policy, and none of it has an address.
grep -q "default-src 'none'" run/report.html || fail "the page has no policy"
if grep -nE "(src|href)=\"?https?:|url\(['\"]?[a-z]+:|@import" run/report.html; then
  fail "the page has the address of something"
fi

open 1280 1000 --dump-dom >page.html
has "Finished, 60 steps"
has ">Loss</h2>"
has ">Gates</h2>"
has ">Heat maps</h2>"
has ">Expert load</h2>"
has 'words">from here on 20 steps were done again'
has 'words">quality guard: after step '
grep -oE '<h3>Sparsity cost<.*' page.html | grep -q "<circle" || fail "single measures are no points"
has ">gate warm-up</text>"
grep -c "<path" page.html | awk '$1 < 1 { exit 1 }' || fail "there are no curves"

# Used: every button, list, slider and curve.
{ sed '/^<\/body>/,$d' run/report.html && echo "<script>" && cat "$source/tests/end_to_end/use_page.js" &&
  echo "</script></body></html>"; } >run/used.html
page=run/used.html
open 1280 1000 --dump-dom >page.html
has '<pre id="used">layer '
has "of the sequence: "
page=run/report.html

# Windows have a least width; a frame has not.
for width in 1280 400; do
  echo "<body style='margin:0'><iframe src='run/report.html'" \
    "style='width:${width}px;height:6000px;border:0'></iframe>" >frame.html
  page=frame.html
  open "$((width < 600 ? 600 : width))" 6000 --screenshot="$work/$width.png"
  [[ -s $width.png ]] || fail "no picture at $width pixels"
  [[ -z $pictures ]] || cp "$width.png" "$pictures/"
done
page=run/report.html

# Damaged and missing files: the page says so, and has the rest.
echo '{"step": 61, "lo' >>run/metrics.jsonl && echo broken >>run/gates.jsonl
rm run/log.txt run/config.resolved.textproto
"$tessera" report run >said.txt
open 1280 1000 --dump-dom >page.html
has "Metrics.jsonl: 1 of"
has "Log.txt is missing"
has ">Loss</h2>"

# And a run that has only begun.
rm run/metrics.jsonl run/gates.jsonl run/experts.jsonl run/heatmaps -r
cp "$source/configs/tiny.textproto" run/config.resolved.textproto
"$tessera" report run >said.txt
open 1280 1000 --dump-dom >page.html
has "No step is done yet"
echo "the page is right at 1280 and 400 pixels, whole, damaged and empty"
