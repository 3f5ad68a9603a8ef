#!/usr/bin/env bash
# Packs what tests/gpu/run.sh needs of a build of the preset cuda for a machine that has a GPU and
# its driver but nothing of ours: build/gpu_pack/ and the same as build/gpu_pack.tar.xz, which is
# what to carry there, to the same place in a copy of the sources.
#   tests/gpu/pack.sh [BUILD_FOLDER]     default: build/cuda
# In it: the programs without their debug information, and the libraries they load, but for the C
# library, and but for NVIDIA's that are too large to carry: cuBLASLt (540 MB), cuDNN (500 MB) and
# NCCL (220 MB) must be there. run.sh looks for them in the toolkit and beside PyTorch.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/cuda}
pack=build/gpu_pack
limit_mib=64

programs=(launcher/tessera tests/kernels/kernels_test tests/kernels/core_test tests/model/model_test
  tests/runtime/device_train_test tests/bench/gpu_memory_bench tests/bench/gpu_matmul_bench
  tests/bench/gpu_attention_bench tests/bench/gpu_decode_bench)
while IFS= read -r found; do
  programs+=("${found#"$build"/}")
done < <(find "$build/tests" -type f -executable -name '*nccl*test*' 2>/dev/null | sort)

rm -rf "$pack" "$pack.tar.xz"
mkdir -p "$pack/bin" "$pack/lib"
for program in "${programs[@]}"; do
  if [[ -x $build/$program ]]; then
    strip -o "$pack/bin/${program##*/}" "$build/$program"
  else
    echo "not built, so not packed: $build/$program"
  fi
done
[[ -n $(ls "$pack/bin") ]] || { echo "$build has none of the programs; build the preset cuda" >&2; exit 1; }

# Libraries, and what Open MPI loads by itself.
missing=0
copy_libraries() {
  local name path
  while read -r name path; do
    case $name in
      libc.so* | libm.so* | libpthread.so* | libdl.so* | librt.so* | libresolv.so* | libutil.so*) ;;
      libcuda.so* | libnvidia-*) ;;                          # the driver's
      libcublas* | libcudnn* | libnccl* | libnvrtc*) echo "$name" >>"$pack/needed" ;;  # too large
      *)
        if [[ $path == /* ]]; then
          cp -Ln "$path" "$pack/lib/$name"
        else
          echo "not found here: $name"
          missing=1
        fi
        ;;
    esac
  done < <(ldd "$@" 2>/dev/null | sed -nE 's/^\s*(\S+) => (\S+).*/\1 \2/p' | sort -u)
}
copy_libraries "$pack"/bin/*
plugins=$(ompi_info --path pkglibdir --parsable 2>/dev/null | sed -n 's/^path:pkglibdir://p' || true)
if [[ -d $plugins ]]; then
  mkdir -p "$pack/lib/openmpi"
  cp -L "$plugins"/mca_*.so "$pack/lib/openmpi/"
  for program in orterun orted; do
    [[ -x $(command -v $program) ]] && cp -L "$(command -v $program)" "$pack/bin/"
  done
  cp -rL "$(ompi_info --path pkgdatadir --parsable | sed -n 's/^path:pkgdatadir://p')" "$pack/share"
  # Plugins for networks that this pack does not go to would pull in much.
  rm -f "$pack"/lib/openmpi/mca_*{ofi,ucx,psm,psm2,usnic,openib,portals4,hcoll,lustre,pvfs2,orangefs}*.so
  copy_libraries "$pack"/lib/openmpi/*.so "$pack"/bin/orted
fi
strip --strip-unneeded "$pack"/lib/*.so* "$pack"/lib/openmpi/*.so 2>/dev/null || true
sort -u -o "$pack/needed" "$pack/needed" 2>/dev/null || touch "$pack/needed"

python3 - "$build" "$pack" <<'PYTHON'
import datetime, json, lzma, pathlib, re, subprocess, sys, tarfile
build, pack = map(pathlib.Path, sys.argv[1:])
def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
cache = (build / "CMakeCache.txt").read_text() if (build / "CMakeCache.txt").exists() else ""
value = lambda name: (re.search(rf"^{name}:\w+=(.*)$", cache, re.M) or ["", ""])[1]
release = re.search(r"release ([\d.]+)", output(value("CMAKE_CUDA_COMPILER") or "nvcc", "--version"))
(pack / "build.json").write_text(json.dumps({
    "commit": output("git", "rev-parse", "HEAD"),
    "changed": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "toolkit": release[1] if release else "",
    "architectures": value("CMAKE_CUDA_ARCHITECTURES"),
    "cpu_arch": value("CPU_ARCH"),
    "processor": next((line.split(":")[1].strip() for line in open("/proc/cpuinfo")
                       if line.startswith("model name")), ""),
}, indent=1) + "\n")
# All programs hold the same kernels: a dictionary as large as a program keeps them once.
filters = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 128 << 20, "mf": lzma.MF_HC4,
            "mode": lzma.MODE_FAST, "nice_len": 273}]
with lzma.open(f"{pack}.tar.xz", "wb", filters=filters) as packed:
    with tarfile.open(fileobj=packed, mode="w|") as archive:
        archive.add(pack, arcname=pack.name)
PYTHON

size=$(du -sb "$pack" | cut -f1)
packed=$(stat -c %s "$pack.tar.xz")
printf '%s: %d MiB, packed %d MiB\n' "$pack" $((size >> 20)) $((packed >> 20))
printf 'must be on the other machine: the driver, python3, glibc %s or later%s\n' \
  "$(ldd --version | sed -n '1s/.* //p')" "$(sed 's/^/, /' "$pack/needed" | tr -d '\n')"
((packed <= limit_mib << 20)) ||
  echo "larger than $limit_mib MiB: build fewer architectures, -DCMAKE_CUDA_ARCHITECTURES=90a-real"
((missing == 0))
