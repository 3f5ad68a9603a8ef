#!/usr/bin/env bash
# Runs the experiment of docs/experiments/mqar.md; needs bash, python3 and a build of tessera.
#   docs/experiments/mqar.sh --tessera build/cpu/launcher/tessera --jobs 16 --out DIR --seconds 400
# Run it again with the same --out to go on. mqar.py --help says what can be chosen.
exec python3 "$(dirname "${BASH_SOURCE[0]}")/mqar.py" "$@"
