"""Trains tiny models, exports them, and computes their logits from the exported files alone, in
float64 and from the papers' formulas. They must be those of `tessera score`.

usage: llama_reference.py TESSERA CONFIG
"""

import json
import os
import pathlib
import sys
import tempfile

import numpy as np

from dense_model import expect_logits
from program import Program
from safetensors_files import read_file, read_model, write_file

MODELS = {
    "llama": ["model.moe="],
    "llama_tied": ["model.moe=", "model.tie_embeddings=true", "model.rope_base=500"],
    "qwen3": ["model.moe=", "model.qk_norm=true", "model.head_dim=16"],
    "mixtral": ["model.moe.dense_layers=0"],
    "qwen3_moe": ["model.qk_norm=true"],
    "qwen3_moe_sums": ["model.qk_norm=true", "model.moe.router=SOFTMAX"],
}


def main():
    program, base = Program(sys.argv[1]), os.path.abspath(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pathlib.Path("a.txt").write_text("\n".join(map(str, range(3000))))
        program.run("data", "prepare", "--input", "a.txt", "--output", "data/tiny")
        tokens = np.random.default_rng(1).integers(0, 257, (2, 40), np.int32)
        write_file(pathlib.Path("tokens.safetensors"), {"tokens": tokens})
        for name, overrides in MODELS.items():
            # Large weights: a mistake in any part must show in the logits.
            sets = ["steps=3", f"run_dir={name}", "runtime.precision=F32", "sparsity=",
                    "model.init_std=0.3", *overrides]
            program.run("train", base, *(f"--set={one}" for one in sets))
            program.run("checkpoint", "export", name, "--output", f"{name}/exported", "--strict",
                        "--shard-size", "5GB" if name == "llama" else "30KB")
            program.run("score", "--checkpoint", name, "--input", "tokens.safetensors",
                        "--output", f"{name}/scores", "--precision", "f32")
            exported = pathlib.Path(name, "exported")
            config = json.loads((exported / "config.json").read_text())
            weights = read_model(exported)
            expect_logits(name, config["architectures"][0], tokens, weights, config,
                          read_file(pathlib.Path(name, "scores"))["logits"])


main()
