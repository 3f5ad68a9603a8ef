#!/usr/bin/env python3
"""Recall of many facts, or of one: full attention against DGSA and against what it is made of.

A grid of small runs (laboratory.py).
"""
import argparse
import statistics
import subprocess
import sys
from dataclasses import dataclass

import plots
from laboratory import Laboratory, Run, common_options, write_report

# tokens of a sample: (sequences of a batch, facts of a sample, validation samples)
LENGTHS = {32: (32, 3, 256), 64: (32, 7, 256), 128: (16, 8, 256), 256: (8, 8, 256),
           512: (4, 16, 256), 1024: (2, 16, 256), 2048: (1, 16, 256)}
KEYS, VALUES = 16, 16


@dataclass(frozen=True)
class Task:
    """A run is a chain of legs, each on longer samples than the one before."""
    kind: str  # of `tessera data task`
    smear: int  # tokens before each that its embedding takes up
    legs: tuple  # (tokens, steps, learning rate at the begin and at the end)
    transition: int  # steps of the leg of SPARSE tokens

    def end_of(self, length):
        """Steps behind the leg of so many tokens."""
        return sum(leg[1] for leg in self.legs if leg[0] <= length)


TASKS = {
    "mqar": Task("mqar", 1, (
        (32, 300, 2e-3, 2e-3), (64, 200, 2e-3, 2e-3), (128, 500, 2e-3, 2e-3),
        (256, 500, 2e-3, 2e-4), (512, 300, 1e-3, 2e-4), (1024, 300, 1e-3, 2e-4),
        (2048, 300, 1e-3, 2e-4)), 300),
    "passkey": Task("passkey", 1, (
        (32, 100, 2e-3, 2e-3), (64, 100, 2e-3, 2e-3), (128, 200, 2e-3, 2e-3),
        (256, 200, 2e-3, 2e-4), (512, 150, 1e-3, 2e-4), (1024, 150, 1e-3, 2e-4),
        (2048, 150, 1e-3, 2e-4)), 100),
    "mqar-no-smear": Task("mqar", 0, (
        (32, 2000, 2e-3, 2e-3), (64, 600, 2e-3, 4e-4), (128, 600, 2e-3, 2e-3),
        (256, 1200, 2e-3, 2e-4), (512, 800, 1e-3, 2e-4), (1024, 600, 1e-3, 2e-4),
        (2048, 400, 1e-3, 2e-4)), 400),
    "passkey-no-smear": Task("passkey", 0, (
        (32, 200, 2e-3, 2e-3), (64, 100, 2e-3, 4e-4), (128, 200, 2e-3, 2e-3),
        (256, 200, 2e-3, 2e-4), (512, 200, 1e-3, 2e-4), (1024, 200, 1e-3, 2e-4),
        (2048, 200, 1e-3, 2e-4)), 150),
}
# The dense stage is what comes before the leg of SPARSE tokens. Behind it the groups that recall are
# made global (tessera checkpoint choose); then the window shrinks at once, and the others drop
# blocks until the transition ends.
SPARSE, WINDOW_FIRST = 128, 0.01
SHORT = 50  # steps of a transition that is too short

# What a variant sets besides the stages; "full" stays dense.
VARIANTS = {
    "full": None,
    "dgsa": {},
    "window": {"model.attention.selection": "NONE"},
    "random": {"model.attention.selection": "RANDOM"},
    "first-groups": {},  # the groups that are first by chance are global
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
    "late": {},
    "late-at-once": {"sparsity.transition_steps": 1, "sparsity.window_first": 0},
    "late-short": {"sparsity.transition_steps": SHORT},
    "late-guarded": {"sparsity.transition_steps": SHORT, "sparsity.guard": "PAIRED",
                     "sparsity.guard_window": 8, "sparsity.guard_limit": 200},
}
# These are dense until the leg of so many tokens.
LATE = {name: 1024 for name in VARIANTS if name.startswith("late")}
# These have a dense stage of their own; the rest begin with that of "full".
OWN = ("full", "eight-groups")
MAIN = ("full", "dgsa", "two-groups", "window", "random")
ABLATED_AT = 256  # the others end here


def stages(task, sparse):
    """With a dense stage until the leg of so many tokens."""
    dense = max(leg[0] for leg in task.legs if leg[0] < sparse)
    return {"sparsity.dense_steps": task.end_of(dense), "sparsity.gate_warmup_steps": 0,
            "sparsity.transition_steps": task.transition, "sparsity.window_first": WINDOW_FIRST,
            "sparsity.final_kl": 1}


def leg_of(variant, leg, seed, options):
    """A leg of a variant: a run that begins where the leg before ended."""
    length, steps, begin, end = leg
    task, tessera = TASKS[options.task], options.laboratory.tessera
    data = lambda length: options.laboratory.out / f"data-{length}"
    before = [other[0] for other in task.legs if other[0] < length]
    sparse = LATE.get(variant, SPARSE)
    turns_sparse = length == sparse and VARIANTS[variant] is not None
    of = "full" if length == sparse and variant not in OWN else variant
    settings = {"data.path": data(length), "steps": task.end_of(length), "seed": seed,
                "batch.sequences": LENGTHS[length][0], "batch.sequence_length": length,
                "model.smear_tokens": task.smear, "runtime.device": options.device, "optimizer.learning_rate": begin,
                "schedule.final_fraction": end / begin,
                "schedule.decay_steps": steps if end != begin else 0}
    if VARIANTS[variant] is not None:
        settings |= (stages(task, sparse) if length >= sparse else {}) | VARIANTS[variant]
    choose = None
    if turns_sparse and variant not in ("first-groups", "eight-groups"):
        groups = settings.get("model.attention.global_groups", 0)
        choose = lambda parent, home: [tessera, "checkpoint", "choose", str(parent), "--data",
                                       str(data(before[-1])), "--output", str(home),
                                       "--global-groups", str(groups), "--batch",
                                       str(min(16, LENGTHS[before[-1]][0]))]
    ask = lambda home: [tessera, "eval", "task", "--checkpoint", str(home), "--data",
                        str(data(length)), "--json", "--device", options.device.lower()]
    return Run(f"{variant}-{length}-seed{seed}", "mqar.textproto", settings,
               {"variant": variant, "seed": seed, "length": length},
               f"{of}-{before[-1]}-seed{seed}" if before else None, choose, ask)


def grid(options):
    """All runs, what is to be done first first."""
    runs = []
    legs, longest = TASKS[options.task].legs, max(options.lengths)
    for variant in options.variants:
        last = longest if variant in MAIN or variant in LATE else min(longest, ABLATED_AT)
        first = legs[0][0] if variant in OWN else LATE.get(variant, SPARSE)
        order = lambda leg, seed: (variant not in MAIN, leg[0], list(VARIANTS).index(variant), seed)
        runs += [(order(leg, seed), leg_of(variant, leg, seed, options)) for seed in options.seeds
                 for leg in legs if first <= leg[0] <= last]
    return [run for _, run in sorted(runs, key=lambda entry: entry[0])]


def make_data(laboratory, task, longest):
    for length, steps, _, _ in task.legs:
        sequences, pairs, validation = LENGTHS[length]
        if length > longest:
            break
        samples = sequences * steps
        subprocess.run([laboratory.tessera, "data", "task", "--kind", task.kind, "--length", str(length),
                        "--samples", str(samples), "--validation", str(validation), "--pairs",
                        str(pairs), "--keys", str(KEYS), "--values", str(VALUES), "--output",
                        str(laboratory.out / f"data-{length}"), "--overwrite"],
                       check=True, stdout=subprocess.DEVNULL)


def table(results):
    """Markdown: a row for each length and variant, over the seeds."""
    lines = ["| tokens | variant | seeds | accuracy | of full | block recall | kept: all tokens | kept: asking tokens | core-seconds |",
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
        seconds = statistics.mean(result["cpu_seconds"] or 0 for result in found)
        mean = lambda name: statistics.mean(s[name] for s in scores)
        lines.append(
            f"| {length} | {variant} | {len(found)} | {statistics.mean(accuracies):.3f}{spread} | "
            + (f"{statistics.mean(ratios):.1%}" if ratios else "") + " | "
            + (f"{statistics.mean(recalls):.3f}" if recalls else "")
            + f" | {mean('kept_share'):.1%} | {mean('asking_kept_share'):.1%} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def plot(results, path):
    """Accuracy by length."""
    series = {}
    for variant in MAIN:
        points = {}
        for result in results:
            if result["variant"] == variant:
                points.setdefault(result["length"], []).append(result["scores"]["accuracy"])
        if points:
            series[variant] = points
    lengths = sorted({length for points in series.values() for length in points})
    return plots.draw(path, "Recall of facts", "tokens", "accuracy", series, lengths, (0, 1.02))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common_options(parser)
    parser.add_argument("--task", default="mqar", choices=list(TASKS))
    parser.add_argument("--lengths", default="256,512,1024,2048")
    options = parser.parse_args()
    options.seeds = [int(x) for x in options.seeds.split(",")]
    options.lengths = [int(x) for x in options.lengths.split(",")]
    options.variants = (options.variants or ",".join(VARIANTS)).split(",")
    options.laboratory = laboratory = Laboratory(options)
    if not options.report:
        make_data(laboratory, TASKS[options.task], max(options.lengths))
        laboratory.run(grid(options))
    of_seeds = lambda results: [result for result in results if result["seed"] in options.seeds]
    write_report(laboratory, lambda results: table(of_seeds(results)))
    if not plot(of_seeds(laboratory.results()), laboratory.out / "accuracy.svg"):
        print("no accuracy.svg: it needs matplotlib (Debian: python3-matplotlib)")
    return 1 if laboratory.failed else 0


if __name__ == "__main__":
    sys.exit(main())
