"""Writes tiny models as Hugging Face has them, with random weights, imports them, and compares
`tessera score` with the papers' formulas in float64. The files are the only thing both sides see.

usage: import_reference.py TESSERA CONFIG
"""

import json
import os
import pathlib
import sys
import tempfile

import numpy as np

from dense_model import expect_logits
from program import Program
from safetensors_files import BFloat16, read_file, write_file, write_model

HIDDEN, LAYERS, HEADS, GROUPS, VOCABULARY = 32, 2, 4, 2, 257
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": 8,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "torch_dtype": "float32", "max_position_embeddings": 64,
}
MIXTRAL = LLAMA | {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
    "num_experts_per_tok": 2, "sliding_window": None, "rope_theta": 1e6,
}
QWEN3 = LLAMA | {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "use_sliding_window": False,
}
QWEN3_MOE = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [0], "tie_word_embeddings": False,
}
# config.json, dtype of the files, number of files
MODELS = {
    "llama": (LLAMA, "F32", 1),
    "llama_f16": (LLAMA | {"rope_theta": 500.0}, "F16", 2),
    "qwen3": (QWEN3, "BF16", 3),
    "mixtral": (MIXTRAL, "F32", 3),
    "qwen3_moe": (QWEN3_MOE, "BF16", 2),
    "qwen3_moe_sums": (QWEN3_MOE | {"norm_topk_prob": False}, "F32", 1),
}


def shapes_of(config):
    heads, groups, dim = HEADS * config["head_dim"], GROUPS * config["head_dim"], config["head_dim"]
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)

    def add_mlp(name, parts, width):
        for part in parts[:2]:
            shapes[f"{name}.{part}.weight"] = (width, HIDDEN)
        shapes[f"{name}.{parts[2]}.weight"] = (HIDDEN, width)

    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes[f"{name}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{name}.post_attention_layernorm.weight"] = (HIDDEN,)
        for part, rows in (("q", heads), ("k", groups), ("v", groups)):
            shapes[f"{name}.self_attn.{part}_proj.weight"] = (rows, HIDDEN)
        shapes[f"{name}.self_attn.o_proj.weight"] = (HIDDEN, heads)
        if config["model_type"].startswith("qwen3"):
            shapes[f"{name}.self_attn.q_norm.weight"] = (dim,)
            shapes[f"{name}.self_attn.k_norm.weight"] = (dim,)
        mixtral = config["model_type"] == "mixtral"
        mlp, parts = f"{name}.mlp", ("gate_proj", "up_proj", "down_proj")
        if mixtral:
            mlp, parts = f"{name}.block_sparse_moe", ("w1", "w3", "w2")
        if mixtral or layer not in config.get("mlp_only_layers", range(LAYERS)):
            count = config["num_local_experts" if mixtral else "num_experts"]
            width = config["intermediate_size" if mixtral else "moe_intermediate_size"]
            shapes[f"{mlp}.gate.weight"] = (count, HIDDEN)
            for expert in range(count):
                add_mlp(f"{mlp}.experts.{expert}", parts, width)
        else:
            add_mlp(mlp, parts, config["intermediate_size"])
    return shapes


def make_model(folder, config, dtype, files, random):
    """Writes the model; returns its weights as float64."""
    folder.mkdir()
    tensors, weights = {}, {}
    for name, shape in shapes_of(config).items():
        values = random.normal(1.0 if "norm" in name else 0.0, 0.3, shape).astype(np.float32)
        if dtype == "F16":
            values = values.astype(np.float16)
        if dtype == "BF16":
            values = BFloat16.cut(values)
        weights[name] = values.astype(np.float64)
        tensors[name] = BFloat16(values) if dtype == "BF16" else values
    write_model(folder, tensors, files)
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def main():
    program, base = Program(sys.argv[1]), pathlib.Path(sys.argv[2]).read_text()
    random = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        tokens = random.integers(0, VOCABULARY, (2, 40), np.int32)
        write_file(pathlib.Path("tokens.safetensors"), {"tokens": tokens})
        for name, (config, dtype, files) in MODELS.items():
            weights = make_model(pathlib.Path(name), config, dtype, files, random)
            # The suggested model in place of the configuration's own.
            model = program.run("checkpoint", "import", name, "--print-config")
            attention = "attention { global_groups: 1 block: 16 gate_dim: 8 window: 16 }"
            model = model.rstrip().removesuffix("}") + attention + "}\n"
            rest = base[base.index("data {"):]
            pathlib.Path(f"{name}.textproto").write_text(f"steps: 20 {model} {rest}")
            program.run("checkpoint", "import", name, "--config", f"{name}.textproto",
                        "--run", f"run_{name}", "--set", "sparsity=")
            program.run("score", "--checkpoint", f"run_{name}", "--input", "tokens.safetensors",
                        "--output", f"{name}/scores", "--precision", "f32")
            expect_logits(name, f"{dtype} in {files} files", tokens, weights, config,
                          read_file(pathlib.Path(name, "scores"))["logits"])


main()
