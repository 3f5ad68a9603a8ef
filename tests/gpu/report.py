#!/usr/bin/env python3
"""Writes docs/benchmarks/gpu.md from what tests/gpu/run.sh measured.

  report.py [RESULTS]           from that results.json, which becomes docs/benchmarks/gpu.json
  report.py --add RESULTS       what these have is put in place of the same in docs/benchmarks/gpu.json:
                                after a run of some steps alone
  report.py --changed STEP WHAT says below the date that what this step measured has changed since, until
                                the step is measured again
  report.py --check             exit 1 unless the document is what docs/benchmarks/gpu.json gives
  report.py --output FILE ...   writes there, and keeps no copy of the results

Without results every row says that it was not run on a GPU yet.
"""

import argparse
import json
import pathlib
import shutil
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks" / "gpu.md"
KEPT = ROOT / "docs" / "benchmarks" / "gpu.json"
NOT_RUN = "not run on a GPU yet"

CUDNN = "PyTorch SDPA, cuDNN"
# Rows of the first table that compare with the rate of a copy, 90% of it: name, shape, peer.
MEMORY = [
    ("RMSNorm forward with residual", "rms_norm_forward_residual", "[16384, 4096]", "torch.compile"),
    ("RMSNorm backward with residual", "rms_norm_backward_residual", "[16384, 4096]", "torch.compile"),
    ("RoPE", "rope", "[16384, 32, 128]", "torch.compile"),
    ("SwiGLU forward", "swiglu_forward", "[16384, 8192]", "torch.compile"),
    ("SwiGLU backward", "swiglu_backward", "[16384, 8192]", "torch.compile"),
    ("rows to experts", "gather_rows", "[131072, 2048] of 16384", None),
    ("rows back, summed", "gather_sum", "[131072, 2048] to 16384", None),
    ("AdamW", "adamw", "[134217728]", "PyTorch fused AdamW, then a copy to bf16"),
    ("cross entropy, forward and backward", "cross_entropy_both", "[8192, 151936]", "torch.compile"),
]
# Rows in TFLOP/s: name, shape, peer, target as a number or the peer's own rate.
PRODUCTS = [
    ("dense attention, forward", "attention_forward", "32k tokens", CUDNN, None),
    ("dense attention, backward", "attention_backward", "32k tokens", CUDNN, None),
    ("grouped matmul, y", "grouped_matmul_forward", "16 x 2048 x 768 x 2048", "torch._grouped_mm", 600),
    ("grouped matmul, dx", "grouped_matmul_dx", "16 x 2048 x 768 x 2048", "torch._grouped_mm", 600),
    ("grouped matmul, dW", "grouped_matmul_dw", "16 x 2048 x 768 x 2048", "torch._grouped_mm", 600),
]
# Rows in milliseconds, a layer's forward and backward against cuDNN's dense one: shape, times.
DGSA = [("8k tokens", 1), ("32k tokens", 5), ("128k tokens", 15)]
DECODE = [("32k tokens, batch 1", 3), ("32k tokens, batch 16", 3),
          ("128k tokens, batch 1", 3), ("128k tokens, batch 16", 3)]
DECODED = [("attention of a layer", "decode_sparse", "decode_dense", "our dense"),
           ("a layer, weights in 4 bits", "decode_layer_int4", "decode_layer_dense", "dense, bf16")]
STEPS = [
    ("core_test", "tests of streams, events, copies, graphs"),
    ("kernels_test", "tests of all kernels"),
    ("model_test", "tests of whole models"),
    ("device_train_test", "tests of training steps"),
    ("training", "50 steps beside the CPU, f32 and bf16"),
    ("same_bits", "50 steps twice"),
    ("resume", "stopped and resumed"),
    ("nccl", "NCCL, one rank per GPU"),
    ("graph_speed", "training steps as graphs and kernel by kernel"),
    ("memcheck", "compute-sanitizer memcheck"),
    ("racecheck", "compute-sanitizer racecheck"),
    ("synccheck", "compute-sanitizer synccheck"),
]


class Measurements:
    def __init__(self, results):
        self.lines = results.get("measurements", [])

    def find(self, name, shape, by="tessera"):
        for line in self.lines:
            if (line.get("by"), line.get("name"), line.get("shape")) == (by, name, shape):
                return line
        return None

    def value(self, field, name, shape, by="tessera"):
        """The number, or in words why there is none."""
        line = self.find(name, shape, by)
        if line is None:
            return NOT_RUN
        if "error" in line:
            return f"failed: {line['error'].replace('|', '/')[:80]}"
        return line.get(field, NOT_RUN)

    def milliseconds(self, names, shape, by="tessera"):
        """Of several measurements together."""
        values = [self.value("microseconds", name, shape, by) for name in names]
        return next((x for x in values if isinstance(x, str)), None) or sum(values) / 1000


def added(kept, results):
    """`kept` with the measurements and steps of `results`; each tells the commit that it is of."""
    def commit(of):
        return of.get("build", {}).get("commit", "")[:12]

    for of in (kept, results):
        for step in of.get("steps", []):
            step.setdefault("commit", commit(of))
    key = lambda line: (line.get("by"), line.get("name"), line.get("shape"))
    new = {key(line): line for line in results.get("measurements", [])}
    lines = [new.pop(key(line), line) for line in kept.get("measurements", [])]
    steps = {step["step"]: step for step in kept.get("steps", []) + results.get("steps", [])}
    part = {"date": results.get("date", ""), "commit": commit(results),
            "gpu": results.get("gpu", {}).get("name", ""),
            "steps": [step["step"] for step in results.get("steps", []) if step["step"] != "facts"]}
    return kept | {"measurements": lines + list(new.values()), "steps": list(steps.values()),
                   "again": [*kept.get("again", []), part],
                   "changed": [one for one in kept.get("changed", []) if one["step"] not in part["steps"]]}


def changes(results):
    """What the figures are not of any more."""
    if results.get("changed"):
        yield "\nChanged since it was measured, and not measured again:\n"
        yield from (f"* {one['what']} (`{one['step']}`)" for one in results["changed"])


def row(*cells):
    return "| " + " | ".join(cells) + " |"


def number(value, unit, digits=0):
    return value if isinstance(value, str) else f"{value:.{digits}f} {unit}"


def of_target(ours, target):
    """Percent of the target, when both are numbers."""
    if isinstance(ours, str) or isinstance(target, str) or not target:
        return "-"
    return f"{100 * ours / target:.0f}%"


def memory_rows(found):
    for title, name, shape, by in MEMORY:
        percent = found.value("percent_of_copy", name, shape)
        rate = found.value("gbps", name, shape)
        ours = percent if isinstance(percent, str) else f"{percent:.0f}% ({rate:.0f} GB/s)"
        theirs = found.value("percent_of_copy", name, shape, by) if by else "-"
        yield row(f"{title}, {shape}", ours, number(theirs, "%"), "90% of a copy", of_target(percent, 90))


def product_rows(found):
    for title, name, shape, by, target in PRODUCTS:
        ours, theirs = (found.value("tflops", name, shape, who) for who in ("tessera", by))
        aim = theirs if target is None else target
        text = f"{target} TFLOP/s" if target else "cuDNN's rate"
        yield row(f"{title}, {shape}", number(ours, "TFLOP/s"), number(theirs, "TFLOP/s"), text,
                  of_target(ours, aim))


def dgsa_rows(found):
    for shape, times in DGSA:
        ours = found.milliseconds(["dgsa_layer_forward", "dgsa_layer_backward"], shape)
        dense = found.milliseconds(["attention_forward", "attention_backward"], shape, CUDNN)
        both = not isinstance(ours, str) and not isinstance(dense, str)
        text = number(ours, "ms", 2) + (f" = {dense / ours:.1f} x" if both else "")
        yield row(f"DGSA, forward + backward, {shape}", text, f"dense: {number(dense, 'ms', 2)}",
                  f"{times} x cuDNN dense", of_target(dense / ours, times) if both else "-")


def decode_rows(found):
    for what, name, plain, peer in DECODED:
        for shape, times in DECODE:
            ours, dense = (found.milliseconds([of], shape) for of in (name, plain))
            both = not isinstance(ours, str) and not isinstance(dense, str)
            text = number(ours, "ms", 3) + (f" = {dense / ours:.1f} x" if both else "")
            yield row(f"decoding, {what}, {shape}", text, f"{peer}: {number(dense, 'ms', 3)}",
                      f"{times} x dense", of_target(dense / ours, times) if both else "-")


def training_rows(found):
    shape = "tests/gpu/training_speed.textproto"
    percent = found.value("percent_of_matmul", "training_step", shape)
    yield row(f"training step, {shape}", number(percent, "% of the matmul rate"), "-", "50%",
              of_target(percent, 50))
    for config in ["tests/gpu/small_model_speed.textproto", shape]:
        ours, plain = (found.milliseconds([f"training_step_by_{way}"], config)
                       for way in ("graph", "kernels"))
        both = not isinstance(ours, str) and not isinstance(plain, str)
        text = number(ours, "ms", 2) + (f" = {plain / ours:.2f} x" if both else "")
        yield row(f"training step as a graph, {config}", text,
                  f"kernel by kernel: {number(plain, 'ms', 2)}", "-", "-")
    yield row("training step, MoE of 1 to 10 billion active weights", NOT_RUN, "-", "50%", "-")


def facts(results):
    if not results:
        return [f"Nothing here was measured: {NOT_RUN}."]
    gpu, build = results.get("gpu", {}), results.get("build", {})
    found = Measurements(results)
    copy = found.value("gbps", "copy", "[268435456]")
    product = found.value("tflops", "matmul_rate", "8192 x 8192 x 8192")
    version = next((line["shape"] for line in found.lines if line.get("name") == "version"), "none")
    return [
        f"{results.get('date', '')}, {results.get('mode', '')} run, commit {build.get('commit', '')[:12]}"
        + (" with changes" if build.get("changed") else "")
        + f". {gpu.get('count', 0)} x {gpu.get('name', 'unknown GPU')}, driver {gpu.get('driver', '')} "
        f"(CUDA {gpu.get('cuda_of_driver', '')}), built with CUDA {build.get('toolkit', '')}; "
        f"PyTorch: {version}.",
        "",
        f"Measured in the same run: a copy {number(copy, 'GB/s')}, a bf16 matrix product of 8192^3 "
        f"{number(product, 'TFLOP/s')}.",
        *(f"\nMeasured again: {part['date']}, commit {part['commit']}, {part['gpu']}: "
          f"{', '.join(part['steps'])}. Shares of a rate are of that run's own."
          for part in results.get("again", [])),
        *changes(results),
    ]


def tests_table(results):
    steps = {step["step"]: step for step in results.get("steps", [])}
    yield row("what", "result", "commit")
    yield row("---", "---", "---")
    whole = results.get("build", {}).get("commit", "")[:12]
    for name, title in STEPS:
        step = steps.get(name)
        if step is None or step["result"] == "skipped":
            why = f" ({step['detail']})" if step else ""
            yield row(title, NOT_RUN + why.replace("|", "/"), "")
        else:
            yield row(title, f"{step['result']}: {step['detail']}".replace("|", "/"),
                      step.get("commit", whole))


def all_table(found):
    if not any("microseconds" in line for line in found.lines):
        return [f"All rows: {NOT_RUN}."]
    lines = [row("what", "shape", "by", "us", "GB/s", "TFLOP/s", "% of copy", "% of matmul", "note"),
             row(*["---"] * 9)]
    for line in found.lines:
        if line.get("name") == "version":
            continue
        if "error" in line:
            cells = [f"failed: {line['error'].replace('|', '/')[:80]}", "", "", "", "", ""]
        else:
            fields = ["microseconds", "gbps", "tflops", "percent_of_copy", "percent_of_matmul"]
            cells = [f"{line[field]:.4g}" if field in line else "" for field in fields]
            cells.append(line.get("note", ""))
        lines.append(row(line.get("name", ""), line.get("shape", ""), line.get("by", ""), *cells))
    return lines


def document(results):
    found = Measurements(results)
    return "\n".join([
        "# Measured on a GPU",
        "",
        "Written by `tests/gpu/report.py` from what `tests/gpu/run.sh` measured; `../gpu.md` says how. A row",
        f"without a figure says why; `{NOT_RUN}` is not a figure.",
        "",
        *facts(results),
        "",
        "## Targets",
        "",
        "Rates of a copy and of a matrix product are those of the same GPU in the same run, not of a data sheet.",
        "",
        row("what", "Tessera", "peer", "target", "of the target"),
        row(*["---"] * 5),
        *memory_rows(found), *product_rows(found), *dgsa_rows(found), *decode_rows(found),
        *training_rows(found),
        "",
        "DGSA: a layer of 32 heads in 8 KV groups, d 128, bf16, one group global, window 1024, 4 blocks per",
        "doubling of the sequence, with pooling, scores, choice, lists, gate losses and gate backward. Its gate",
        "queries drift, so that neighbours choose alike; independent ones are below.",
        "",
        "## Tests",
        "",
        *tests_table(results),
        "",
        "## All measurements",
        "",
        *all_table(found),
    ]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--changed", nargs=2, metavar=("STEP", "WHAT"))
    parser.add_argument("--output", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.add:
        if arguments.results is None or not KEPT.exists():
            parser.error(f"--add needs RESULTS, and {KEPT} to add them to")
        kept = added(json.loads(KEPT.read_text()), json.loads(arguments.results.read_text()))
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        arguments.results = KEPT
    if arguments.changed:
        kept = json.loads(KEPT.read_text())
        step, what = arguments.changed
        kept["changed"] = [*kept.get("changed", []), {"step": step, "what": what}]
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    source = arguments.results or (KEPT if KEPT.exists() else None)
    text = document(json.loads(source.read_text()) if source else {})
    if arguments.check:
        if DOCUMENT.exists() and DOCUMENT.read_text() == text:
            return 0
        print(f"{DOCUMENT} is not what tests/gpu/report.py writes; run it")
        return 1
    (arguments.output or DOCUMENT).write_text(text)
    if arguments.results and not arguments.output and arguments.results.resolve() != KEPT:
        shutil.copyfile(arguments.results, KEPT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
