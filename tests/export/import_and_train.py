"""Export in several files, import, go on training: on one rank and on two, sparse from the first
step. And what must not happen: a full disk or a hostile directory that leaves half a model behind.

usage: import_and_train.py TESSERA CONFIG
"""

import json
import os
import pathlib
import resource
import shutil
import sys
import tempfile

from program import Program

SPARSE = "sparsity={dense_steps: 1 gate_warmup_steps: 1 transition_steps: 2}"


def losses(run):
    lines = pathlib.Path(run, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def train_on(program, base, run, *before):
    mesh = ["--set", "mesh.tensor=2"] if before else []
    return program.run("train", base, "--steps", "4", "--set", SPARSE, "--set", f"run_dir={run}",
                       *mesh, before=before)


def goes_on_sparsely(program, base):
    """Without gates, as a pretrained model has none: they begin, learn, and attention is sparse."""
    program.run("checkpoint", "export", "runs/tiny", "--output", "dense", "--shard-size", "50KB",
                "--precision", "f32")
    for run in ("one", "two"):
        said = program.run("checkpoint", "import", "dense", "--config", base, "--run", run,
                           "--seed", "5")
        assert "8 parameters are not in the files and begin as in a new run, with seed 5" in said
    program.run("checkpoint", "diff", "one", "two")  # a pure function of files and seed
    assert "sparsity" in train_on(program, base, "one")
    train_on(program, base, "two", "mpirun", "-np", "2", "--oversubscribe", "--bind-to", "none")
    one, two = losses("one"), losses("two")
    assert len(one) == len(two) == 4
    assert all(abs(a - b) < 0.01 * a for a, b in zip(one, two)), (one, two)
    untrained = program.run("train", base, "--steps", "1", "--set", "run_dir=untrained")
    assert one[0] < 0.8 * losses("untrained")[0], (one, untrained)
    program.run("checkpoint", "import", "dense", "--config", base, "--run", "three")
    program.run("generate", "--checkpoint", "three", "--prompt", "12", "--tokens", "4")


def comes_back(program, base):
    program.run("checkpoint", "export", "runs/tiny", "--output", "whole", "--shard-size", "20KB",
                "--precision", "f32", "--gates")
    assert len(list(pathlib.Path("whole").glob("model-*.safetensors"))) > 3
    program.run("checkpoint", "import", "whole", "--config", base, "--run", "again")
    said = program.run("checkpoint", "diff", "runs/tiny", "again", "--parameters")
    assert "the checkpoints hold the same state: 0 of" in said, said
    program.run("checkpoint", "verify", "again")
    program.run("checkpoint", "import", "whole", "--config", base, "--run", "again", code=2)


def survives_a_full_disk(program):
    """A file that may not grow stands for it: the write fails after some bytes."""
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    for size in ("5GB", "90KB"):
        done = program.start("checkpoint", "export", "runs/tiny", "--output", "full",
                             "--precision", "f32", "--shard-size", size,
                             preexec_fn=limit, restore_signals=False)
        # In files of 90 kB it fits.
        assert done.returncode == (75 if size == "5GB" else 0), done
        left = os.listdir("full")
        assert (left == []) == (size == "5GB"), left


def refuses_hostile_directories(program, base):
    def refused(change, sentence):
        shutil.rmtree("hostile", ignore_errors=True)
        shutil.copytree("whole", "hostile")
        change(pathlib.Path("hostile"))
        said = program.run("checkpoint", "import", "hostile", "--config", base, "--run", "none",
                           code=65)
        assert sentence in said and len(said) < 2000, said
        assert not os.path.exists("none/checkpoints/step-00000000"), sentence

    def index(name, file):
        def change(folder):
            path = folder / "model.safetensors.index.json"
            text = json.loads(path.read_text())
            text["weight_map"][name] = file
            path.write_text(json.dumps(text))
        return change

    first = sorted(file.name for file in pathlib.Path("whole").glob("model-0*"))[0]

    def rewrite(change):
        def rewritten(folder):
            data = (folder / first).read_bytes()
            (folder / first).write_bytes(change(data))
        return rewritten

    tensor = "model.embed_tokens.weight"
    outside = "expected a file name ending in .safetensors"
    refused(index(tensor, "../whole/" + first), outside)
    refused(index(tensor, "/etc/passwd"), outside)
    refused(index(tensor, "none.safetensors"), "lacks 1 of")
    refused(index("model.ghost", first), "tensors that are not in their files, 1: model.ghost")
    refused(lambda folder: (folder / first).unlink(), "files that its index names: " + first)
    refused(rewrite(lambda data: data[:-1]), "bytes of data, expected")
    refused(rewrite(lambda data: data[:4]), "expected a header")
    refused(rewrite(lambda data: b"\xff" * 8 + data[8:]), "has a header of")
    # More than the format allows, in a file that is large enough: a hole costs no disk.
    def claim(folder):
        with open(folder / first, "wb") as file:
            file.write((100_000_001).to_bytes(8, "little") + b"{")
            file.truncate(10**9)
    refused(claim, "expected at most 100000000")
    refused(lambda folder: (folder / "config.json").write_text("[" * 10**6), "nested too deeply")
    refused(lambda folder: (folder / "config.json").unlink(), "config.json does not exist")
    def pipe(folder):
        (folder / first).unlink()
        os.mkfifo(folder / first)
    refused(pipe, "is not a regular file")


def main():
    program, base = Program(sys.argv[1]), os.path.abspath(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pathlib.Path("a.txt").write_text("\n".join(map(str, range(3000))))
        program.run("data", "prepare", "--input", "a.txt", "--output", "data/tiny")
        program.run("train", base)
        comes_back(program, base)
        goes_on_sparsely(program, base)
        survives_a_full_disk(program)
        refuses_hostile_directories(program, base)


main()
