#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: the CPU build with real MPI and end-to-end
# runs, the CUDA kernels in the interpreter, the CUDA build where nvcc is found, and the sanitizers.
# One closing line per suite.
#   scripts/test.sh             all suites
#   scripts/test.sh cpu asan    these ones: cpu, simt, cuda, asan, tsan
set -uo pipefail
cd "$(dirname "$0")/.."

suites=("$@")
((${#suites[@]})) || suites=(cpu simt cuda asan tsan)
scripts/packages.sh || exit $?

# Without a browser or TensorBoard, which is no Debian package, the tests that ask them are skipped.
scripts/packages.sh tests || echo "report_page_test will be skipped where there is no browser" >&2
if ! build/python/bin/python -c 'import tensorboard' 2>/dev/null; then
  { /usr/bin/python3 -m venv build/python && build/python/bin/pip -q install tensorboard; } ||
    echo "TensorBoard could not be installed: tensorboard_test will be skipped" >&2
fi

failed=0
lines=()

# words_of_failures LOG: what each test that failed has printed, its first 60 lines.
words_of_failures() {
  awk '/^ *[0-9]+\/[0-9]+ Test +#|^ +Start +[0-9]+:/ { left = 0 }
       /\*\*\*(Failed|Timeout|Exception)/ { left = 60 }
       left-- > 0' "$1"
}

# suite NAME: configures, builds and tests the preset of that name.
suite() {
  local name=$1 begin=$SECONDS result=passed
  mkdir -p build
  if ! cmake --preset "$name" >"build/$name.configure.log" 2>&1; then
    tail -n 30 "build/$name.configure.log"
    result="could not be configured"
  elif ! cmake --build --preset "$name" >"build/$name.build.log" 2>&1; then
    tail -n 40 "build/$name.build.log"
    result="did not build"
  elif ! ctest --preset "$name" --progress 2>&1 | tee "build/$name.test.log" | tail -n 40; then
    result="has failing tests"
    words_of_failures "build/$name.test.log"
  fi
  [[ $result == passed ]] || failed=1
  local count
  count=$(grep -oE '[0-9]+ tests failed out of [0-9]+' "build/$name.test.log" 2>/dev/null | tail -n 1)
  lines+=("suite $name: $result (${count:-no tests ran}, $((SECONDS - begin)) s)")
  echo "${lines[-1]}"
}

for name in "${suites[@]}"; do
  if [[ $name == cuda ]] && ! command -v nvcc >/dev/null; then
    lines+=("suite cuda: skipped, nvcc was not found")
    continue
  fi
  suite "$name"
  if [[ $name == cuda ]] && ! scripts/kernel_resources.py check build/cuda; then
    failed=1
    lines+=("suite cuda: a hot kernel is over its limits, see above")
  fi
done

printf '\n'
printf '%s\n' "${lines[@]}"
exit "$failed"
