#!/usr/bin/env bash
# All tests and measurements that need a GPU, on a machine that has one and Python 3; no network, no
# installation. Works in a build folder of the preset cuda, and with a pack of one that another
# machine made (tests/gpu/pack.sh).
#   tests/gpu/run.sh [quick] [--seconds N] [--only STEP[:SUITE,...]]... [--processes N]
#                    [--build FOLDER] [--out FOLDER]
# quick: what matters most, in less than 4 minutes; else less than 8. A step that fails or takes too
# long is noted down, and the next one begins. Results: results.json and steps.log in --out, which is
# $OUT or build/gpu_results unless given. docs/gpu.md says how to read them.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v python3 >/dev/null || { echo "tests/gpu/run.sh needs python3" >&2; exit 2; }
export PYTHONDONTWRITEBYTECODE=1
exec python3 tests/gpu/run.py "$@"
