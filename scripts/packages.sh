#!/usr/bin/env bash
# Installs the Debian packages that Tessera is built from, those that are missing. Without the right
# to install it prints the line to run and stops.
#   scripts/packages.sh          what builds, and runs the quick start
#   scripts/packages.sh tests    and what some tests want besides: a browser, a Python of their own
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config
  libopenmpi-dev openmpi-bin
  libprotobuf-dev protobuf-compiler
  libboost-dev libboost-context-dev libboost-program-options-dev
  libdnnl-dev ocl-icd-opencl-dev
  libsentencepiece-dev sentencepiece
  nlohmann-json3-dev libpng-dev libxxhash-dev
  libgtest-dev
  e2fsprogs xfsprogs
  slurm-wlm munge iproute2 openssh-server openssh-client
  python3 python3-numpy
)
[[ ${1:-} != tests ]] || packages+=(chromium python3-venv)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
    missing+=("$package")
done
((${#missing[@]})) || exit 0

install=(apt-get install -y --no-install-recommends "${missing[@]}")
if ((EUID != 0)); then
  echo "Some packages are missing. Run this, then start again:" >&2
  echo "  sudo apt-get update && sudo ${install[*]}" >&2
  exit 2
fi
echo "installing ${missing[*]}"
apt-get update -q >/dev/null
DEBIAN_FRONTEND=noninteractive "${install[@]}" >/dev/null
