#!/usr/bin/env bash
# tessera launch on several hosts without any: an ssh that runs commands here, and an mpirun that starts
# nothing and says what it was asked. tests/cluster/launch_hosts_test.sh has real ones.
#   fake_hosts_test.sh TESSERA SOURCE_FOLDER
set -euo pipefail
tessera=$(realpath "$1")
source=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
ln -s "$source/configs" configs
mkdir bin

# Host b is there unless the file `b_is_away` is.
cat >bin/ssh <<'SCRIPT'
#!/usr/bin/env bash
host=${*: -2:1}
[[ $host != b || ! -e b_is_away ]] || { echo "ssh: connect to host b port 22: No route to host" >&2; exit 255; }
exec sh -c "${*: -1}"
SCRIPT
# The first life ends as if b had been lost.
cat >bin/mpirun <<'SCRIPT'
#!/usr/bin/env bash
echo "$*" >>mpirun.log
[[ "$*" != *--exchange ]] || exit 0
[[ -e lose_b ]] || exit 0
rm lose_b
touch b_is_away
exit 205
SCRIPT
chmod +x bin/*
export PATH=$work/bin:$PATH
unset LD_LIBRARY_PATH

fail() {
  echo "FAILED: $*" >&2
  tail -n 20 ./*.log >&2
  exit 1
}

# launch CODE OPTION...
launch() {
  local expected=$1 code=0
  shift
  rm -f mpirun.log launch.log
  touch mpirun.log
  "$tessera" launch "$@" -- train configs/tiny.textproto --set 'run_dir="run"' --steps 30 &>launch.log || code=$?
  [[ $code == "$expected" ]] || fail "$* ended with $code, expected $expected"
}
called() { grep -q -- "$@" mpirun.log || fail "mpirun was not called with $*"; }
says() { grep -q -- "$@" launch.log || fail "it does not say: $*"; }

launch 0 --hosts a:2,b:2
[[ $(wc -l <mpirun.log) == 2 ]] || fail "expected one greeting and one life"
called '^-q -np 4 .*--host a:2,b:2 .* train configs/tiny.textproto --set run_dir="run" --steps 30$'
called '^-np 4 .*--host a:2,b:2 .* host-check --exchange$'
called '-x TESSERA_LAUNCH=[0-9a-f]*'
[[ ! $(ls -A run) ]] || fail "the marker was left in the run directory"

# A host is lost, and the other goes on with the whole batch.
touch lose_b
launch 0 --hosts a:2,b:2 --min-hosts 1
called '^-q -np 2 .*--host a:2 .* --set run_dir="run" --steps 30 --set mesh.data=[12] --set mesh.expert=[12] --set'
says 'mpirun ended with exit code 205; asking the hosts'
says 'host b: does not answer (ssh: connect to host b port 22: No route to host).*; it is left out until'
says ' 2 ranks on a:2, with another mesh than the configuration.s, as it had 4: '

# It does not come back, and nobody said that fewer are enough.
launch 75 --hosts a:2,b:2
[[ ! -s mpirun.log ]] || fail "mpirun was called"
says 'host b: does not answer'
