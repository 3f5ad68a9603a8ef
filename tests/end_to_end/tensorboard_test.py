"""What a run writes for TensorBoard, read by TensorBoard itself.

  tensorboard_test.py TESSERA SOURCE_FOLDER

Trains the tiny model, goes on from an earlier checkpoint as after a kill, and reads both files as
one run. 77: there is no TensorBoard (pip install tensorboard); event_file_test checks the format
without it.
"""

import glob
import json
import os
import subprocess
import sys
import tempfile

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError as error:
    print(f"skipped: {error}; pip install tensorboard, or run scripts/test.sh, which does it")
    sys.exit(77)

tessera, source = (os.path.realpath(name) for name in sys.argv[1:3])


def train(*more):
    command = [tessera, "train", f"{source}/configs/tiny.textproto", "--set", "run_dir=run", *more]
    for setting in ("steps=12", "checkpoint.every=4", "checkpoint.background=false",
                    "sparsity.dense_steps=4", "sparsity.gate_warmup_steps=2",
                    "sparsity.transition_steps=4", "monitor.gate_every=2",
                    "monitor.heat_map_every=4", "monitor.experts_every=3"):
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


with tempfile.TemporaryDirectory() as work:
    os.chdir(work)
    headers = sorted(glob.glob(f"{source}/kernels/*.h"))
    subprocess.run([tessera, "data", "prepare", "--input", *headers, "--output", "data/tiny"],
                   check=True, capture_output=True)
    train()
    # As after a kill: the last four steps are done again.
    subprocess.run(["rm", "-r", "run/checkpoints/step-00000012"], check=True)
    train()
    files = sorted(os.listdir("run/tensorboard"))
    assert len(files) == 2, files

    seen = EventAccumulator("run/tensorboard", size_guidance={"scalars": 0, "images": 0,
                                                              "histograms": 0})
    seen.Reload()
    lines = [json.loads(line) for line in open("run/metrics.jsonl")]
    assert [line["step"] for line in lines] == [*range(1, 13), *range(9, 13)]
    last = {line["step"]: line for line in lines}
    losses = seen.Scalars("loss")
    assert [event.step for event in losses] == list(range(1, 13)), losses
    for event in losses:
        assert abs(event.value - last[event.step]["loss"]) < 1e-6, event
    numbers = {name for name, value in last[12].items() if isinstance(value, (int, float))}
    missing = numbers - {"step", "steps", "time"} - set(seen.Tags()["scalars"])
    assert not missing, missing

    maps = [tag for tag in seen.Tags()["images"] if tag.startswith("heat_map/")]
    assert maps, seen.Tags()
    for event in seen.Images(maps[0]):
        assert event.encoded_image_string.startswith(b"\x89PNG"), event
        assert event.width == event.height == 256, event
    experts = [tag for tag in seen.Tags()["histograms"] if tag.startswith("expert_tokens/")]
    for event in seen.Histograms(experts[0]):
        assert event.histogram_value.num > 0, event
    print(f"TensorBoard reads {len(seen.Tags()['scalars'])} scalars of {len(losses)} steps, "
          f"{len(maps)} heat maps and the tokens of experts in {len(experts)} layers")
