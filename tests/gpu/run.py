#!/usr/bin/env python3
"""The steps of tests/gpu/run.sh, which says how to call this."""

import argparse
import os
import pathlib
import shutil
import sys
import tempfile
import time

import suites
import training
from session import ROOT, Session, json_lines, natural_cuda

# Groups of each program of measurements, for those that have to be run one by one.
BENCHES = {
    "gpu_memory_bench": ["norm", "rope", "swiglu", "experts", "adamw", "cross_entropy", "embedding",
                         "sums"],
    "gpu_attention_bench": ["dgsa", "dense", "window"],
    "gpu_matmul_bench": ["grouped", "dense"],
    "gpu_decode_bench": ["sparse", "dense", "layer"],
}
CHECKS = ["memcheck", "racecheck", "synccheck"]
PEERS = {"peers": ["copy", "matmul", "sdpa", "grouped"], "peers_compiled": ["compiled", "adamw"],
         "peers_flex": ["flex"]}


def facts(session):
    smi = session.tool("nvidia-smi")
    if smi is None:
        return "failed", "nvidia-smi was not found: is there a driver?", {}
    text = session.quiet([smi])
    session.log(text)
    fields = "name,driver_version,memory.total,compute_cap,clocks.max.sm"
    lines = session.quiet([smi, f"--query-gpu={fields}", "--format=csv,noheader"]).splitlines()
    if not lines:
        return "failed", "nvidia-smi sees no GPU", {}
    name, driver, memory, capability, clock = (part.strip() for part in lines[0].split(","))
    session.results["gpu"] = {"name": name, "count": len(lines), "driver": driver, "memory": memory,
                              "compute_capability": capability, "largest_clock": clock,
                              "cuda_of_driver": natural_cuda(text)}
    return "passed", f"{len(lines)} x {name}, driver {driver}", {}


def libraries(session):
    """Whether the programs find all their libraries and can be started at all."""
    problems = []
    for name in ["tessera", "kernels_test", "core_test", "model_test", *BENCHES]:
        program = session.program(name)
        if program is None:
            problems.append(f"{name} is not in {session.build}")
            continue
        linked = session.run(["ldd", program], 20)
        session.log_run(f"ldd {name}", linked)
        problems += [f"{name}: {line.strip()}" for line in linked.output.splitlines()
                     if "not found" in line]
    started = session.run([session.program("tessera") or "tessera", "--version"], 20)
    session.log_run("tessera --version", started)
    if started.code == -4:
        problems.append("this processor lacks instructions of the one that built this: build with "
                        "-DCPU_ARCH=x86-64-v3")
    elif started.code != 0:
        problems.append(f"tessera --version: {started.how()}")
    return ("failed" if problems else "passed"), "; ".join(problems[:4]), {}


def measure(session, name, limit):
    """One program of measurements; after a crash its groups one by one."""
    program = session.program(name)
    if program is None:
        return "skipped", f"{name} is not in the build", {}
    more = ["--quick"] if session.quick else []
    done = session.run([program, *more], limit)
    session.log_run(name, done)
    lines = json_lines(done.output)
    if done.code == 0:
        session.add_measurements(lines)
        return "passed", f"{len(lines)} measured", {}
    if not lines and done.code is not None:
        said = done.output.strip().splitlines() or [""]
        return "failed", f"{done.how()}: {said[-1][:200]}", {}
    # What failed after a failure may be its consequence.
    good = [line for line in lines if "error" not in line]
    failed = []
    end = time.monotonic() + limit
    for group in BENCHES[name]:
        if time.monotonic() > end:
            failed.append({"by": "tessera", "name": f"{name} {group}", "error": "no time was left"})
            continue
        again = session.run([program, *more, group], limit / 2)
        session.log_run(f"{name} {group}", again)
        lines = json_lines(again.output)
        good += [line for line in lines if "error" not in line]
        failed += [line for line in lines if "error" in line]
        if again.code is None or again.code < 0:
            failed.append({"by": "tessera", "name": f"{name} {group}", "error": again.how()})
    session.add_measurements(good + failed)
    detail = f"{len(good)} measured" + "".join(
        f"; {line['name']}: {line['error'][:100]}" for line in failed[:5])
    return ("failed" if failed or not good else "passed"), detail, {}


def peers(session, groups, limit):
    """PyTorch, all groups in one process, and after a crash of it each in its own."""
    command = [sys.executable, str(ROOT / "tests" / "bench" / "gpu_peers.py")]
    command += ["--quick"] if session.quick else []
    lines, missing = [], []

    def measure_groups(some):
        done = session.run([*command, *some], limit, ours=False)
        session.log_run(" ".join(["gpu_peers.py", *some]), done)
        lines.extend(json_lines(done.output))
        if done.code != 0:
            missing.append(f"{' '.join(some)}: {done.how()}")
        return done.code

    code = measure_groups(groups)
    if code is not None and code != 0 and len(groups) > 1:
        for group in groups:
            measure_groups([group])
    session.add_measurements(lines)
    measured = len({(line["name"], line["shape"], line["by"]) for line in lines if "microseconds" in line})
    missing += [f"{line['name']}: {line['error']}" for line in lines if "error" in line]
    detail = f"{measured} measured" + "".join(f"; {text[:100]}" for text in missing[:5])
    return ("passed" if measured else "skipped"), detail, {}


def nccl(session):
    names = ([path.name for path in (session.build / "bin").glob("*nccl*test*")] if session.pack else
             [path.name for path in session.build.rglob("*nccl*test*") if os.access(path, os.X_OK)
              and path.is_file()])
    if not names:
        return "skipped", "the build has no test of NCCL", {}
    gpus = session.results.get("gpu", {}).get("count", 1)
    mpirun = (str(session.build / "bin" / "orterun") if session.pack else shutil.which("mpirun"))
    said, bad, some = [], False, False
    for name in names:
        program = session.program(name)
        alone = [program]
        together = [mpirun, "-np", str(gpus), program] if mpirun else alone
        done = session.run(together if gpus > 1 else alone, 60)
        session.log_run(name, done)
        good = suites.passed_tests(done.output)
        said.append(f"{name} on {gpus} GPU{'s' if gpus > 1 else ''}: {done.how()}, {len(good)} passed, "
                    f"{len(suites.skipped_tests(done.output))} skipped themselves")
        bad, some = bad or done.code != 0, some or bool(good)
    return ("failed" if bad else "passed" if some else "skipped"), "; ".join(said), {}


def plan(session, work, chosen, processes):
    """(name, action) of every step, in order: what matters most first. And how many a quick run has.
    `chosen`: {step: [suite, ...]} for the steps that shall check these suites alone."""
    quick = session.quick
    tests = lambda program, limit: (lambda: suites.run(session, program, limit))
    bench = lambda name, limit: (lambda: measure(session, name, limit))
    peer = lambda name, limit: (lambda: peers(session, PEERS[name], limit))
    def check(tool, limit):
        # Suites that were asked for get all the time that there is.
        some = chosen.get(tool)
        return lambda: suites.sanitize(session, tool, session.left() if some else limit, some,
                                       processes or suites.CHECKERS)

    steps = [
        ("facts", lambda: facts(session)),
        ("libraries", lambda: libraries(session)),
        ("core_test", tests("core_test", 30)),
        ("kernels_test", tests("kernels_test", 60 if quick else 110)),
        ("training", lambda: training.cpu_and_gpu(session, work, 50)),
        ("same_bits", lambda: training.twice(session, work, 30)),
        ("resume", lambda: training.resume(session, work, 40)),
        ("gpu_memory_bench", bench("gpu_memory_bench", 30 if quick else 45)),
        ("gpu_attention_bench", bench("gpu_attention_bench", 40 if quick else 70)),
        ("gpu_matmul_bench", bench("gpu_matmul_bench", 20 if quick else 30)),
        ("gpu_decode_bench", bench("gpu_decode_bench", 30 if quick else 70)),
        ("peers", peer("peers", 30 if quick else 40)),
        ("model_test", tests("model_test", 40 if quick else 60)),
        ("device_train_test", tests("device_train_test", 40)),
        ("nccl", lambda: nccl(session)),
    ]
    many = len(steps)
    steps += [
        ("training_speed", lambda: training.speed(session, work, 45)),
        ("graph_speed", lambda: training.graph_speed(session, work, 45)),
        ("peers_compiled", peer("peers_compiled", 60)),
        ("memcheck", check("memcheck", 60)),
        ("racecheck", check("racecheck", 40)),
        ("synccheck", check("synccheck", 25)),
        ("peers_flex", peer("peers_flex", 60)),
    ]
    return steps, many if quick else len(steps)


def read_only(values):
    """Of `--only STEP[:SUITE,...]`: the steps, and {step: suites} where there are any."""
    only, chosen = [], {}
    for value in values:
        name, _, some = value.partition(":")
        only.append(name)
        if some:
            chosen.setdefault(name, []).extend(some.split(","))
    return only, chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", nargs="?", choices=["quick", "full"], default="full")
    parser.add_argument("--seconds", type=int, help="for everything; 225 when quick, else 465")
    parser.add_argument("--only", action="append", default=[], metavar="STEP[:SUITE,...]",
                        help="this step; may be repeated. Of memcheck, racecheck and synccheck these suites, "
                        "which may have *; `unfinished`: those not checked to their end last time")
    parser.add_argument("--processes", type=int, help="of compute-sanitizer at a time; 4 to 16 by default, "
                        "as there are cores")
    parser.add_argument("--build", help="default: build/gpu_pack if there is one, else build/cuda")
    parser.add_argument("--out", default=os.environ.get("OUT") or str(ROOT / "build" / "gpu_results"))
    arguments = parser.parse_args()
    quick = arguments.mode == "quick"
    seconds = arguments.seconds or (225 if quick else 465)
    session = Session(arguments.build, arguments.out, seconds, quick)
    with tempfile.TemporaryDirectory(prefix="tessera_gpu_") as work:
        only, chosen = read_only(arguments.only)
        steps, many = plan(session, pathlib.Path(work), chosen, arguments.processes)
        names = [name for name, _ in steps]
        for name in only:
            if name not in names:
                parser.error(f"there is no step {name}; there are {', '.join(names)}")
        for name in chosen:
            if name not in CHECKS:
                parser.error(f"suites can be chosen for {', '.join(CHECKS)}, not for {name}")
        for name, action in steps if only else steps[:many]:
            if not only or name in only or name == "facts":
                session.step(name, action)
    failed = [step["step"] for step in session.results["steps"] if step["result"] == "failed"]
    print(f"results: {session.out / 'results.json'}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
