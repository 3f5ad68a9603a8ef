#!/usr/bin/env python3
"""Multi-query associative recall: full attention against DGSA and against what it is made of.

A grid of small runs, many at a time. Every run is a directory of --out; one that has a result.json
is done, one that was interrupted goes on where it was saved.
"""
import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# tokens of a sample: (sequences of a batch, facts of a sample, validation samples)
LENGTHS = {32: (32, 3, 256), 64: (32, 7, 256), 128: (16, 8, 256), 256: (8, 8, 256),
           512: (4, 16, 128), 1024: (3, 16, 128), 2048: (2, 16, 128)}
KEYS, VALUES = 16, 16

# Every run is a chain of legs, each on longer samples than the one before: (tokens, steps, learning
# rate at the begin and at the end).
LEGS = [(32, 2000, 2e-3, 2e-3), (64, 600, 2e-3, 4e-4), (128, 600, 2e-3, 2e-3),
        (256, 500, 2e-3, 4e-4), (512, 250, 1e-3, 4e-4), (1024, 200, 1e-3, 4e-4),
        (2048, 150, 1e-3, 4e-4)]
# The dense stage is what comes before the leg of so many tokens. There the transition begins: the
# window shrinks at once, and of 400 steps the others drop blocks.
SPARSE, TRANSITION, WINDOW_FIRST = 128, 400, 0.01

# What a variant sets besides the stages; "full" stays dense.
VARIANTS = {
    "full": None,
    "dgsa": {},
    "window": {"model.attention.selection": "NONE"},
    "random": {"model.attention.selection": "RANDOM"},
    "no-kl": {"sparsity.kl": 0, "sparsity.final_kl": 0},
    "one-key": {"model.attention.gate_keys": 1},
    "two-groups": {"model.attention.global_groups": 2},
    "eight-groups": {"model.attention.global_groups": 8},  # every group is global
    "k1": {"model.attention.kept_blocks": 1},
    "k4": {"model.attention.kept_blocks": 4},
    "no-ramp": {"sparsity.strength": 0},
    "no-refresh": {"sparsity.dense_refresh": 0},
    "at-once": {"sparsity.transition_steps": 1, "sparsity.window_first": 0},
    "together": {"sparsity.window_first": 0},
}
# These have other parameters, so their dense stage is their own; the rest begin with that of "full".
OWN = ("full", "two-groups", "eight-groups")
MAIN = ("full", "dgsa", "window", "random")
ABLATED_AT = 256  # the other variants end here


def end_of(length):
    """Steps behind the leg of so many tokens."""
    return sum(leg[1] for leg in LEGS if leg[0] <= length)


STAGES = {"sparsity.dense_steps": end_of(SPARSE // 2), "sparsity.gate_warmup_steps": 0,
          "sparsity.transition_steps": TRANSITION, "sparsity.window_first": WINDOW_FIRST,
          "sparsity.final_kl": 1}


class Run:
    """A leg of a variant: the run whose checkpoint it starts from, and its settings."""

    def __init__(self, variant, leg, seed, priority):
        self.length, steps, begin, end = leg
        self.steps = end_of(self.length)  # from the start of the chain
        self.name = f"{variant}-{self.length}-seed{seed}"
        before = [other[0] for other in LEGS if other[0] < self.length]
        of = "full" if self.length == SPARSE and variant not in OWN else variant
        self.parent = f"{of}-{before[-1]}-seed{seed}" if before else None
        self.facts = {"variant": variant, "seed": seed}
        self.priority = (priority, self.length, list(VARIANTS).index(variant), seed)
        self.settings = {"optimizer.learning_rate": begin, "schedule.final_fraction": end / begin,
                         "schedule.decay_steps": steps if end != begin else 0}
        if VARIANTS[variant] is not None:
            sparse = STAGES if self.length >= SPARSE else {}
            self.settings |= sparse | VARIANTS[variant]


def grid(options):
    """All runs; what is sorted first is started first."""
    runs = []
    for variant in options.variants:
        last = max(options.lengths) if variant in MAIN else min(max(options.lengths), ABLATED_AT)
        first = LEGS[0][0] if variant in OWN else SPARSE
        priority = 1 if variant in MAIN else 2
        runs += [Run(variant, leg, seed, priority) for seed in options.seeds for leg in LEGS
                 if first <= leg[0] <= last]
    return sorted(runs, key=lambda run: run.priority)


class Laboratory:
    """Starts runs as their parents finish, at most --jobs at a time, until --seconds are over."""

    def __init__(self, options):
        self.options = options
        self.out = Path(options.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + options.seconds
        self.tessera = str(Path(options.tessera).resolve())
        self.running = {}  # process: run
        self.failed = set()

    def result_path(self, run):
        return self.out / run / "result.json"

    def data(self, length):
        return self.out / f"data-{length}"

    def make_data(self, lengths):
        for length in lengths:
            sequences, pairs, validation = LENGTHS[length]
            samples = sequences * next(leg[1] for leg in LEGS if leg[0] == length)
            subprocess.run([self.tessera, "data", "task", "--kind", "mqar", "--length", str(length),
                            "--samples", str(samples), "--validation", str(validation),
                            "--pairs", str(pairs), "--keys", str(KEYS), "--values", str(VALUES),
                            "--output", str(self.data(length)),
                            "--overwrite"], check=True, stdout=subprocess.DEVNULL)

    def start(self, run):
        """Prepares the directory of a run and starts the shell that trains and evaluates it."""
        home = self.out / run.name
        checkpoints = home / "checkpoints"
        if run.parent and not checkpoints.exists():
            newest = sorted((self.out / run.parent / "checkpoints").glob("step-*"))[-1]
            copy = home / "copied"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(newest, copy / newest.name)
            copy.rename(checkpoints)
        home.mkdir(exist_ok=True)
        settings = {"run_dir": home, "data.path": self.data(run.length), "steps": run.steps,
                    "seed": run.facts["seed"], "batch.sequences": LENGTHS[run.length][0],
                    "batch.sequence_length": run.length,
                    "runtime.device": self.options.device} | run.settings
        train = [self.tessera, "train", str(HERE / "mqar.textproto")]
        for field, value in settings.items():
            train += ["--set", f"{field}={value}"]
        ask = [self.tessera, "eval", "task", "--checkpoint", str(home), "--data",
               str(self.data(run.length)), "--json", "--device",
               self.options.device.lower()]
        log, answer = home / "console.txt", home / "scores.json"
        script = (f"{shlex.join(train)} >>{shlex.quote(str(log))} 2>&1 && {shlex.join(ask)}"
                  f" >{shlex.quote(str(answer))} 2>>{shlex.quote(str(log))}")
        run.command, run.began = shlex.join(train), time.monotonic()
        process = subprocess.Popen(["bash", "-c", script], start_new_session=True)
        self.running[process] = run

    def finish(self, process):
        run = self.running.pop(process)
        home = self.out / run.name
        if process.returncode != 0:
            if time.monotonic() < self.deadline:
                print(f"{run.name} failed with {process.returncode}; see {home}/console.txt",
                      flush=True)
                self.failed.add(run.name)
            return
        scores = json.loads((home / "scores.json").read_text())
        result = run.facts | {"name": run.name, "length": run.length, "steps": run.steps,
                              "seconds": round(time.monotonic() - run.began, 1),
                              "scores": scores, "command": run.command}
        part = home / "result.json.part"
        part.write_text(json.dumps(result, indent=1))
        part.rename(self.result_path(run.name))
        print(f"{run.name}: accuracy {scores['accuracy']:.4f} far {scores['far_accuracy']:.4f}"
              f" recall {[round(x, 3) for x in scores['block_recall']]}"
              f" kept {scores['kept_share']:.3f} asking {scores['asking_kept_share']:.3f}"
              f" in {result['seconds']} s", flush=True)

    def stop_all(self):
        """Asks what still runs to save itself."""
        for process in self.running:
            os.killpg(process.pid, signal.SIGTERM)
        for process in list(self.running):
            process.wait()  # the shell; the program that it ran is still saving
            until = time.monotonic() + 15
            while group_lives(process.pid) and time.monotonic() < until:
                time.sleep(0.1)
            if group_lives(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            self.finish(process)

    def run(self, runs):
        done = {run.name for run in runs if self.result_path(run.name).exists()}
        waiting = [run for run in runs if run.name not in done]
        self.make_data(sorted({run.length for run in waiting}))
        while waiting or self.running:
            for run in list(waiting):
                if len(self.running) >= self.options.jobs:
                    break
                if run.parent is None or self.result_path(run.parent).exists():
                    waiting.remove(run)
                    self.start(run)
            if not self.running:
                break  # what waits has a parent that failed
            time.sleep(0.2)
            for process in [p for p in self.running if p.poll() is not None]:
                self.finish(process)
            if time.monotonic() > self.deadline:
                print("time is over", flush=True)
                self.stop_all()
                break


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def machine():
    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores"


def table(results):
    """Markdown: a row for each length and variant, over the seeds."""
    lines = ["| tokens | variant | seeds | accuracy | of full | far answers | block recall | kept: all tokens | kept: asking tokens |",
             "|---|---|---|---|---|---|---|---|---|"]
    groups = {}
    for result in results:
        groups.setdefault((result["length"], result["variant"]), []).append(result)
    order = list(VARIANTS)
    for (length, variant), found in sorted(
            (item for item in groups.items() if item[0][1] in order),
            key=lambda item: (item[0][0], order.index(item[0][1]))):
        scores = [result["scores"] for result in found]
        accuracies = [s["accuracy"] for s in scores]
        full = {r["seed"]: r["scores"]["accuracy"] for r in groups.get((length, "full"), [])}
        ratios = [r["scores"]["accuracy"] / full[r["seed"]] for r in found if full.get(r["seed"])]
        spread = f" ({min(accuracies):.3f}-{max(accuracies):.3f})" if len(accuracies) > 1 else ""
        recalls = [max(s["block_recall"]) for s in scores if s["block_recall"]]
        mean = lambda name: statistics.mean(s[name] for s in scores)
        lines.append(
            f"| {length} | {variant} | {len(found)} | {statistics.mean(accuracies):.3f}{spread} | "
            + (f"{statistics.mean(ratios):.1%}" if ratios else "") + f" | {mean('far_accuracy'):.3f} | "
            + (f"{statistics.mean(recalls):.3f}" if recalls else "")
            + f" | {mean('kept_share'):.1%} | {mean('asking_kept_share'):.1%} |")
    return "\n".join(lines) + "\n"


def report(out):
    """Writes DIR/results.json and DIR/results.md from every finished run."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*/result.json"))]
    (out / "results.json").write_text(
        json.dumps({"machine": machine(), "runs": results}, indent=1) + "\n")
    (out / "results.md").write_text(table(results))
    print(table(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tessera", required=True, help="the program")
    parser.add_argument("--out", required=True, help="directory of all runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop and save after these")
    parser.add_argument("--device", default="CPU", choices=["CPU", "GPU"])
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--lengths", default="256,512,1024,2048")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--report", action="store_true", help="only write the table")
    options = parser.parse_args()
    options.seeds = [int(x) for x in options.seeds.split(",")]
    options.lengths = [int(x) for x in options.lengths.split(",")]
    options.variants = options.variants.split(",")
    laboratory = Laboratory(options)
    if not options.report:
        laboratory.run(grid(options))
    report(laboratory.out)
    return 1 if laboratory.failed else 0


if __name__ == "__main__":
    sys.exit(main())
