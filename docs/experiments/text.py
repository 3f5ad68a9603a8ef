#!/usr/bin/env python3
"""Real text: three-stage DGSA against full attention, a window, and sparse at once.

A grid of small runs (laboratory.py) on C sources of the Linux kernel, from the Debian package
linux-source-6.1, or on --text.
"""
import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import plots
from laboratory import Laboratory, Run, common_options, write_report

# Steps of one sequence of LENGTH tokens; of longer ones in proportion fewer. Until TRUNK all variants
# are one dense run; until WARM the gate learns.
LENGTH = 4096
STEPS, TRUNK, WARM, TRANSITION, DECAY = 800, 160, 240, 240, 160
# Steps that these do without; the learning rate falls in their last steps, as in the others.
FEWER = {("sooner", LENGTH): 40, ("sooner", 2 * LENGTH): 40, ("direct-sooner", LENGTH): 80,
         ("direct-sooner", 2 * LENGTH): 80}
VARIANTS = ("dense", "dgsa", "sooner", "direct", "direct-sooner", "window", "start")


def stages(variant, scale):
    """What a variant sets."""
    if variant == "dense":
        return {}
    if variant == "start":  # sparse from the first step on
        return {"sparsity.start": "TUNING"}
    sparse = {"sparsity.dense_steps": WARM // scale,
              "sparsity.gate_warmup_steps": (WARM - TRUNK) // scale,
              "sparsity.transition_steps": TRANSITION // scale, "sparsity.guard": "PAIRED"}
    if variant.startswith("direct"):  # no transition
        sparse["sparsity.transition_steps"] = 1
    if variant == "window":  # no global groups
        sparse["model.attention.selection"] = "NONE"
    return sparse


FOLDERS = ("kernel", "mm", "fs", "net")
LEAST_BYTES = 15 << 10  # of a file: about 4096 tokens
SPEEDS = (1024, 2048, 4096, 8192)  # tokens of a sequence


def sources(folder):
    """The text: fetched as a package, unpacked without being installed."""
    if not any(folder.glob("linux-source-*/kernel")):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "linux-source-6.1"], cwd=folder, check=True)
        package = next(folder.glob("linux-source-6.1_*.deb"))
        wanted = " ".join(f"'linux-source-6.1/{name}/*.[ch]'" for name in FOLDERS)
        subprocess.run(["bash", "-c", "set -o pipefail; dpkg --fsys-tarfile \"$0\""
                        " | tar -x --to-stdout --wildcards '*linux-source-6.1.tar.xz'"
                        f" | tar -xJ --wildcards {wanted}", package.name], cwd=folder, check=True)
        for path in folder.glob("linux-source-6.1/**/*.[ch]"):
            if path.stat().st_size <= LEAST_BYTES:
                path.unlink()
    return next(folder.glob("linux-source-*/kernel")).parent


def make_data(laboratory, options):
    data = laboratory.out / "data"
    if (data / "dataset.json").exists():
        return
    text = Path(options.text) if options.text else sources(laboratory.out / "text")
    subprocess.run([laboratory.tessera, "data", "prepare", "--input", str(text), "--output",
                    str(data), "--tokenizer", "train:4096"], check=True)


def grid(options):
    length, scale = options.length, options.length // LENGTH
    settings = {"data.path": options.laboratory.out / "data", "runtime.device": options.device,
                "batch.sequence_length": length, "runtime.validate_every": 200 // scale,
                "runtime.validate_batches": 60 // scale, "schedule.warmup_steps": 50 // scale}
    runs = []
    for seed in options.seeds:
        facts = {"seed": seed, "length": length}
        trunk = f"trunk-{length}-seed{seed}"
        runs.append(Run(trunk, "text.textproto",
                        settings | {"seed": seed, "steps": TRUNK // scale, "runtime.validate_every": 0},
                        facts | {"variant": "trunk"}))
        for variant in options.variants:
            steps = STEPS // scale - FEWER.get((variant, length), 0)
            own = {"seed": seed, "steps": steps, "schedule.decay_steps": DECAY // scale}
            runs.append(Run(f"{variant}-{length}-seed{seed}", "text.textproto",
                            settings | own | stages(variant, scale), facts | {"variant": variant},
                            None if variant == "start" else trunk))
    order = ("trunk", *options.variants)
    return sorted(runs, key=lambda run: order.index(run.facts["variant"]))


def measure_speed(laboratory, options):
    """Median time of a step, dense and sparse, at growing lengths: DIR/speed.md."""
    lines = ["| tokens | k | dense, ms | sparse, ms | ratio |", "|---|---|---|---|---|"]
    for length in SPEEDS:
        times, kept = {}, 0
        for name, stage in (("dense", "DENSE"), ("sparse", "TUNING")):
            home = laboratory.out / f"speed-{name}-{length}"
            command = [laboratory.tessera, "train", str(Path(__file__).with_name("text.textproto"))]
            for field, value in {"run_dir": home, "data.path": laboratory.out / "data", "steps": 10,
                                 "batch.sequence_length": length, "batch.sequences": 8192 // length,
                                 "schedule.warmup_steps": 1, "sparsity.start": stage,
                                 "runtime.validate_every": 0,
                                 "runtime.device": options.device}.items():
                command += ["--set", f"{field}={value}"]
            if not (home / "metrics.jsonl").exists():
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
            steps = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
            times[name], kept = statistics.median(step["ms"] for step in steps[3:]), steps[-1]["kept_blocks"]
        lines.append(f"| {length} | {kept} | {times['dense']:.0f} | {times['sparse']:.0f} |"
                     f" {times['dense'] / times['sparse']:.2f} |")
        print(lines[-1], flush=True)
    (laboratory.out / "speed.md").write_text("\n".join(lines) + "\n")


def table(results):
    """Markdown: a row for each variant, over the seeds; differences are paired by seed."""
    of = {(result["length"], result["variant"], result["seed"]): result for result in results}
    lines = ["| tokens | variant | seeds | validation loss | minus dense, nats | perplexity ratio | core-seconds | of dense |",
             "|---|---|---|---|---|---|---|---|"]
    for length, variant in sorted({(result["length"], result["variant"]) for result in results
                                   if result["variant"] in VARIANTS},
                                  key=lambda pair: (pair[0], VARIANTS.index(pair[1]))):
        runs = [of[key] for key in sorted(of) if key[:2] == (length, variant)]
        mean = statistics.mean
        losses = [run["validation_loss"] for run in runs]
        spread = f" ({min(losses):.4f}-{max(losses):.4f})" if len(losses) > 1 else ""

        def cost(run):
            trunk = of.get((length, "trunk", run["seed"]))
            return run["cpu_seconds"] + (0 if run["variant"] == "start" or not trunk else trunk["cpu_seconds"])

        dense = {run["seed"]: of[(length, "dense", run["seed"])] for run in runs
                 if (length, "dense", run["seed"]) in of}
        pairs = [(run, dense[run["seed"]]) for run in runs if run["seed"] in dense]
        line = f"| {length} | {variant} | {len(runs)} | {mean(losses):.4f}{spread} | "
        if pairs and variant != "dense":
            gaps = [run["validation_loss"] - dense["validation_loss"] for run, dense in pairs]
            line += f"{mean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f}) | {2.718281828 ** -mean(gaps):.4f} | "
        else:
            line += " | | "
        line += f"{mean(cost(run) for run in runs):.0f} | "
        if pairs:
            line += f"{mean(cost(run) / cost(dense) for run, dense in pairs):.2f}"
        lines.append(line + " |")
    return "\n".join(lines) + "\n"


def losses(laboratory, name):
    """{step: training loss} of a run."""
    lines = (laboratory.out / name / "metrics.jsonl").read_text().splitlines()
    return {step["step"]: step["loss"] for step in map(json.loads, lines)}


def plot(laboratory, length, path):
    """Training loss behind the trunk minus that of full attention in the same steps."""
    of = {(result["variant"], result["seed"]): losses(laboratory, result["name"])
          for result in laboratory.results() if result["length"] == length}
    width = 40 * LENGTH // length  # steps of a mean
    series = {}
    for (variant, seed), run in of.items():
        dense = of.get(("dense", seed))
        # Those that end sooner lower their learning rate sooner, too.
        if variant not in ("dgsa", "direct", "window") or not dense:
            continue
        steps = sorted(set(run) & set(dense))
        for part in (steps[i:i + width] for i in range(0, len(steps) - width + 1, width)):
            gap = statistics.mean(run[step] - dense[step] for step in part)
            series.setdefault(variant, {}).setdefault(part[-1] * length / 1e6, []).append(gap)
    return not series or plots.draw(path, f"Training loss minus full attention's, {length} tokens",
                                    "million tokens seen", "nats per token", series)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    common_options(parser)
    parser.add_argument("--length", type=int, default=LENGTH, choices=[LENGTH, 2 * LENGTH],
                        help="tokens of a sequence")
    parser.add_argument("--text", help="file or directory of text to use instead")
    parser.add_argument("--speed", action="store_true", help="only measure steps at growing lengths")
    options = parser.parse_args()
    options.seeds = [int(x) for x in options.seeds.split(",")]
    options.variants = (options.variants or ",".join(VARIANTS)).split(",")
    options.laboratory = laboratory = Laboratory(options)
    if not options.report:
        make_data(laboratory, options)
        if options.speed:
            measure_speed(laboratory, options)
            return 0
        laboratory.run(grid(options))
    write_report(laboratory, table)
    if not plot(laboratory, options.length, laboratory.out / f"loss-{options.length}.svg"):
        print("no picture: it needs matplotlib (Debian: python3-matplotlib)")
    return 1 if laboratory.failed else 0


if __name__ == "__main__":
    sys.exit(main())
