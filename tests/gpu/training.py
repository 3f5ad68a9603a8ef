"""Whole training runs on the GPU: beside the CPU, twice, and stopped and resumed."""

import json
import pathlib
import signal
import statistics
import subprocess
import time

from session import ROOT

# Of a loss, relative. In f32 the sums differ in their order alone, until a token near a tie chooses
# another expert or block; bf16 rounds the weights' every use.
TOLERANCE = {"F32": 1e-2, "BF16": 3e-2}
FIRST_STEPS = 5  # before such choices add up
FIRST_TOLERANCE = {"F32": 1e-4, "BF16": 1e-2}


def tessera(session, limit, *arguments):
    done = session.run([session.program("tessera"), *map(str, arguments)], limit)
    session.log_run("tessera " + " ".join(map(str, arguments)), done)
    if done.code != 0:
        raise RuntimeError(f"tessera {arguments[0]}: {done.how()}: {done.output[-300:].strip()}")
    return done


def data(session, work):
    """A small data set of this repository's texts."""
    folder = work / "data"
    if not folder.exists():
        tessera(session, 30, "data", "prepare", "--input", ROOT / "docs", ROOT / "kernels",
                ROOT / "runtime", ROOT / "model", "--output", folder)
    return folder


def options(session, work, run, device, precision, steps, config="configs/tiny.textproto", **more):
    settings = {"data.path": f'"{data(session, work)}"', "run_dir": f'"{work / run}"',
                "runtime.device": device, "runtime.precision": precision, "steps": steps,
                "checkpoint.every": 0, **more}
    listed = ["train", ROOT / config]
    for name, value in settings.items():
        listed += ["--set", f"{name}={value}"]
    return listed


def tiny(steps):
    """Every stage of sparsity within `steps`."""
    return {"sparsity.dense_steps": steps * 2 // 5, "sparsity.gate_warmup_steps": steps // 5,
            "sparsity.transition_steps": steps // 5}


def metrics(work, run):
    return [json.loads(line) for line in (work / run / "metrics.jsonl").read_text().splitlines()]


def cpu_and_gpu(session, work, limit):
    """50 steps of configs/tiny.textproto on both, loss by loss."""
    said, facts, bad = [], {}, False
    end = time.monotonic() + limit
    for precision in ["F32", "BF16"]:
        losses = {}
        for device in ["CPU", "GPU"]:
            run = f"{device}_{precision}"
            tessera(session, end - time.monotonic(),
                    *options(session, work, run, device, precision, 50, **tiny(50)))
            losses[device] = [step["loss"] for step in metrics(work, run)]
        cpu, gpu = losses["CPU"], losses["GPU"]
        if len(cpu) != 50 or len(gpu) != 50:
            raise RuntimeError(f"{precision}: {len(cpu)} and {len(gpu)} steps, expected 50")
        apart = [abs(a - b) / abs(a) for a, b in zip(cpu, gpu)]
        first, worst = max(apart[:FIRST_STEPS]), max(apart)
        good = first <= FIRST_TOLERANCE[precision] and worst <= TOLERANCE[precision]  # False for NaN
        good = good and gpu[-1] < gpu[0]
        bad = bad or not good
        said.append(f"{precision} {first:.1e} in {FIRST_STEPS} steps, {worst:.1e} in 50"
                    + ("" if good else " (too much)"))
        facts[precision] = {"cpu": cpu, "gpu": gpu, "worst": worst}
    return ("failed" if bad else "passed"), "losses differ by " + ", ".join(said), {"losses": facts}


def twice(session, work, limit):
    """The same run again: every bit of the state in the end."""
    end = time.monotonic() + limit
    for run in ["once", "twice"]:
        tessera(session, end - time.monotonic(),
                *options(session, work, run, "GPU", "BF16", 50, **tiny(50)))
    tessera(session, 30, "checkpoint", "diff", work / "once", work / "twice")
    return "passed", "two runs of 50 steps gave the same bits", {}


def resume(session, work, limit):
    """A run that is stopped half-way and started again ends with the bits of a calm one."""
    steps, end = 300, time.monotonic() + limit
    calm = options(session, work, "calm", "GPU", "BF16", steps, **tiny(steps))
    tessera(session, end - time.monotonic(), *calm)
    stopped = options(session, work, "stopped", "GPU", "BF16", steps, **tiny(steps))
    log = (work / "stopped.log").open("w")
    process = subprocess.Popen([session.program("tessera"), *map(str, stopped)], stdout=log,
                               stderr=subprocess.STDOUT, env=session.environment, cwd=ROOT)
    path = work / "stopped" / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < end:
        if path.exists() and path.read_bytes().count(b"\n") >= 10:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.005)
    try:
        code = process.wait(max(1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise RuntimeError("the run did not stop when asked")
    session.log((work / "stopped.log").read_text())
    done = len(metrics(work, "stopped"))
    if code != 75 or done >= steps:
        raise RuntimeError(f"the stopped run ended with {code} after {done} steps, expected 75 and "
                           f"fewer than {steps}")
    tessera(session, end - time.monotonic(), *stopped)
    tessera(session, 30, "checkpoint", "diff", work / "calm", work / "stopped")
    return "passed", f"stopped after step {done} of {steps}, went on, same bits", {"stopped_at": done}


LARGE = "tests/gpu/training_speed.textproto"
SMALL = "tests/gpu/small_model_speed.textproto"


def steps_of(session, work, limit, run, config, **more):
    """Medians over the steps of a run of `config` from the ninth on, all of one plan."""
    tessera(session, limit, *options(session, work, run, "GPU", "BF16", 16, config=config, **more))
    steps = metrics(work, run)[8:]
    return {name: statistics.median(step[name] for step in steps)
            for name in ["ms", "tokens_per_second", "tflops_per_device"]}


def line_of(name, config, found):
    return {"by": "tessera", "name": name, "shape": config, "dtype": "bf16",
            "microseconds": 1000 * found["ms"], "tflops": found["tflops_per_device"],
            "tokens_per_second": found["tokens_per_second"]}


def speed(session, work, limit):
    """Steps of a mixture of experts of some size."""
    found = steps_of(session, work, limit, "speed", LARGE)
    line = line_of("training_step", LARGE, found)
    peak = next((line["tflops"] for line in session.results["measurements"]
                 if line.get("by") == "tessera" and line.get("name") == "matmul_rate"
                 and "tflops" in line), None)
    if peak:
        line["percent_of_matmul"] = 100 * found["tflops_per_device"] / peak
    session.add_measurements([line])
    return "passed", f"{found['ms']:.0f} ms, {found['tokens_per_second']:.0f} tokens/s", {}


def graph_speed(session, work, limit):
    """Steps as graphs and kernel by kernel: of a small model, which the host's calls hold up, in turn
    and twice, and of a larger one. Both must compute the same losses."""
    end = time.monotonic() + limit
    ways = {"graph": "true", "kernels": "false"}
    said = []
    for config, times in [(SMALL, 2), (LARGE, 1)]:
        found, losses = {way: [] for way in ways}, {}
        for repetition in range(times):
            for way, graphs in ways.items():
                run = f"{pathlib.Path(config).stem}_{way}_{repetition}"
                found[way].append(steps_of(session, work, end - time.monotonic(), run, config,
                                           **{"runtime.graphs": graphs}))
                losses[run] = [step["loss"] for step in metrics(work, run)]
        best = {way: min(runs, key=lambda one: one["ms"]) for way, runs in found.items()}
        session.add_measurements([line_of(f"training_step_by_{way}", config, best[way])
                                  for way in ways])
        said.append(f"{pathlib.Path(config).stem}: {best['graph']['ms']:.2f} ms, kernel by kernel "
                    f"{best['kernels']['ms']:.2f} ms")
        if len(set(map(tuple, losses.values()))) != 1:
            return "failed", f"{config}: the losses differ; " + "; ".join(said), {"losses": losses}
    return "passed", "; ".join(said), {}
