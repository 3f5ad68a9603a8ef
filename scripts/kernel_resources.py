#!/usr/bin/env python3
"""Registers, shared memory, spills and occupancy of the CUDA kernels that matter.

  scripts/kernel_resources.py check BUILD   exit 1 when a hot kernel breaks its limits or is missing
  scripts/kernel_resources.py table BUILD   a Markdown table of the hot kernels
  scripts/kernel_resources.py all BUILD     every kernel: registers, stack and spills

BUILD is a build folder of the preset cuda. The hot kernels and their limits are in
kernels/hot_kernels.tsv; what ptxas said of each is beside the objects (keep_resource_usage.sh).
With --cuobjdump PROGRAM the table counts the tensor-core instructions in the compiled code too.
"""

import argparse
import csv
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED_OF_SM = {"sm_80": 164 * 1024, "sm_90a": 228 * 1024}
REGISTERS_OF_SM = 65536
WARPS_OF_SM = 64


def demangled(names):
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                          check=True).stdout
    short = {}
    for mangled, name in zip(names, text.splitlines()):
        name = name.replace("(anonymous namespace)::", "").replace("tessera::", "")
        name = re.sub(r"\(int\)|\(bool\)", "", name)
        name = re.sub(r"^void ", "", name).replace("gpu::", "")
        short[mangled] = re.sub(r"\(.*", "", name)
    return short


def read_usage(build):
    """[{kernel, arch, object, registers, stack, spills}] of every kernel in BUILD."""
    found = []
    for log in sorted(pathlib.Path(build).rglob("*.ptxas")):
        entry = {}
        for line in log.read_text().splitlines():
            if match := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
                entry = {"mangled": match[1], "arch": match[2], "object": log.with_suffix("")}
            elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
                entry.setdefault("stack", int(match[1]))
                entry.setdefault("spills", int(match[2]))
            elif (match := re.search(r"Used (\d+) registers", line)) and "mangled" in entry:
                found.append({**entry, "registers": int(match[1])})
                entry = {}
    names = demangled([entry["mangled"] for entry in found])
    for entry in found:
        entry["kernel"] = names[entry["mangled"]]
    return found


def hot_kernels():
    lines = (ROOT / "kernels" / "hot_kernels.tsv").read_text().splitlines()
    return list(csv.DictReader((x for x in lines if not x.startswith("#")), delimiter="\t"))


def blocks_per_sm(arch, registers, threads, shared):
    warps = (threads + 31) // 32
    of_registers = REGISTERS_OF_SM // (warps * ((registers * 32 + 255) // 256 * 256))
    of_shared = SHARED_OF_SM[arch] // (shared + 1024)
    return min(of_registers, of_shared, WARPS_OF_SM // warps, 32)


def matches(hot, entry):
    return entry["kernel"] == hot["kernel"] and entry["object"].name == hot["file"] + ".o"


def waiting_products(build):
    """Kernels whose products (wgmma) ptxas has wait for each other: notes C7510 to C7520."""
    found = []
    for log in sorted(pathlib.Path(build).rglob("*.ptxas")):
        for why, mangled in re.findall(r"\(C75\d\d\).* serialized due to (.*) (?:in|for) the function"
                                       r" '(\w+)'", log.read_text()):
            found.append(f"{log.stem}: {demangled([mangled])[mangled]}: each product waits for the one "
                         f"before, due to {why}")
    return found


def check(usage, build):
    broken = waiting_products(build)
    for hot in hot_kernels():
        entries = [entry for entry in usage if matches(hot, entry)]
        if not entries:
            broken.append(f"{hot['file']}: kernel {hot['kernel']} is not in the build")
        for entry in entries:
            where = f"{hot['file']}: {hot['kernel']} on {entry['arch']}"
            if entry["spills"] > int(hot["spills"]):
                broken.append(f"{where} spills {entry['spills']} bytes of registers, expected at "
                              f"most {hot['spills']}")
            if entry["registers"] > int(hot["registers"]):
                broken.append(f"{where} uses {entry['registers']} registers, expected at most "
                              f"{hot['registers']}")
            blocks = blocks_per_sm(entry["arch"], entry["registers"], int(hot["threads"]),
                                   int(hot["shared"]))
            if blocks < 1:
                broken.append(f"{where}: no block fits on a multiprocessor")
    for line in broken:
        print(line)
    print(f"kernel resources: {len(hot_kernels())} hot kernels, {len(broken)} over their limits")
    return 1 if broken else 0


def tensor_instructions(cuobjdump, entry):
    if cuobjdump is None:
        return "-"
    text = subprocess.run([cuobjdump, "--dump-sass", "--gpu-architecture", entry["arch"],
                           "--function", entry["mangled"], str(entry["object"])],
                          capture_output=True, text=True).stdout
    return str(len(re.findall(r"\b(?:HMMA|HGMMA|IMMA)\b", text)))


def table(usage, cuobjdump):
    print("| kernel | arch | threads | registers | shared KiB | spills | blocks / SM | warps / SM |"
          " tensor-core instructions | work |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for hot in hot_kernels():
        for entry in (entry for entry in usage if matches(hot, entry)):
            threads, shared = int(hot["threads"]), int(hot["shared"])
            blocks = blocks_per_sm(entry["arch"], entry["registers"], threads, shared)
            print(f"| `{hot['kernel']}` | {entry['arch']} | {threads} | {entry['registers']} | "
                  f"{shared / 1024:.1f} | {entry['spills']} | {blocks} | "
                  f"{blocks * ((threads + 31) // 32)} of {WARPS_OF_SM} | "
                  f"{tensor_instructions(cuobjdump, entry)} | {hot['work']} |")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "table", "all"])
    parser.add_argument("build")
    parser.add_argument("--cuobjdump")
    arguments = parser.parse_args()
    usage = read_usage(arguments.build)
    if not usage:
        print(f"no kernel was compiled in {arguments.build}; build the preset cuda first")
        return 2
    if arguments.what == "check":
        return check(usage, arguments.build)
    if arguments.what == "table":
        return table(usage, arguments.cuobjdump)
    for entry in usage:
        print(f"{entry['object'].name}\t{entry['arch']}\t{entry['kernel']}\t"
              f"{entry['registers']} registers\t{entry['stack']} stack\t{entry['spills']} spilled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
