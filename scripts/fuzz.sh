#!/usr/bin/env bash
# Feeds broken input to everything that reads files: builds the fuzz targets (tests/fuzz) with clang
# and its sanitizers, runs each for RUNS inputs, and prints one closing line per target.
#   scripts/fuzz.sh [RUNS]    default 1000000
# An input that breaks a target is kept in build/fuzz/found/, the log beside the program.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-1000000}
[[ $runs =~ ^[1-9][0-9]*$ ]] || { echo "fuzz.sh: RUNS is '$runs', expected a number" >&2; exit 2; }

missing=()
for package in clang libclang-rt-dev libomp-dev; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
    missing+=("$package")
done
if ((${#missing[@]})); then
  echo "fuzz.sh: needs more packages: sudo apt-get install -y ${missing[*]}" >&2
  exit 2
fi

build=build/fuzz
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz --target fuzz_programs

# Seeds and words for the configuration reader: without them it would take ages to guess a field.
mkdir -p $build/corpus/config_fuzz $build/found
for config in configs/*.textproto; do
  sed -E 's/ *#.*//; /^$/d' "$config" >"$build/corpus/config_fuzz/$(basename "$config")"
done
grep -ohE '^ +(optional )?[a-zA-Z0-9]+ [a-z_0-9]+ =' model/*.proto parallel/*.proto \
  runtime/config/*.proto | sed -E 's/.* ([a-z_0-9]+) =/"\1"/' | sort -u >$build/config_fuzz.dict
grep -ohE '^ +[A-Z][A-Z_0-9]* =' model/*.proto runtime/config/*.proto |
  sed -E 's/ +([A-Z_0-9]+) =/"\1"/' | sort -u >>$build/config_fuzz.dict

# Words for what is imported from other programs, and one of its texts to begin with.
grep -ohE '"[a-zA-Z_0-9.]{2,}"' runtime/import/hugging_face_config.cc runtime/export/hugging_face.cc \
  checkpoint/safetensors.cc checkpoint/weight_index.cc | sort -u >$build/import_fuzz.dict
mkdir -p $build/corpus/import_fuzz
printf '\x0e{"model_type":"llama","vocab_size":61,"hidden_size":32,"num_hidden_layers":2,"num_attention_heads":4,"head_dim":8,"intermediate_size":40,"rms_norm_eps":1e-5}' \
  >$build/corpus/import_fuzz/config
printf '\x0d{"metadata":{"total_size":1},"weight_map":{"lm_head.weight":"model-00001-of-00002.safetensors"}}' \
  >$build/corpus/import_fuzz/index
printf '\x0b{"model.norm.weight":{"dtype":"F32","shape":[32],"data_offsets":[0,128]}}' \
  >$build/corpus/import_fuzz/header

# Two frames per allocation: with more, the table of stacks grows until it is all that takes time.
export ASAN_OPTIONS=malloc_context_size=2
failed=0
for program in $build/tests/fuzz/*_fuzz; do
  name=$(basename "$program")
  mkdir -p "$build/corpus/$name"
  options=(-runs="$runs" -seed=1 -timeout=10 -rss_limit_mb=2048 -max_len=4096
    -artifact_prefix=$build/found/)
  [[ -f $build/$name.dict ]] && options+=(-dict="$build/$name.dict")
  begin=$SECONDS
  if "$program" "${options[@]}" "$build/corpus/$name" >"$program.log" 2>&1; then
    echo "$name: $runs runs in $((SECONDS - begin)) s, no fault"
  else
    echo "$name: FAULT after $((SECONDS - begin)) s; see $program.log"
    failed=1
  fi
done
exit $failed
