#!/usr/bin/env bash
# Runs the experiment of docs/experiments/text.md; needs bash, python3, apt-get (for the text) and a
# build of tessera.
#   docs/experiments/text.sh --tessera build/cpu/launcher/tessera --jobs 2 --out DIR
#   docs/experiments/text.sh --tessera build/cpu/launcher/tessera --out DIR --speed
# Run it again with the same --out to go on. text.py --help says what can be chosen.
exec python3 "$(dirname "${BASH_SOURCE[0]}")/text.py" "$@"
