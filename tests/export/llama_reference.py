"""Trains tiny models, exports them, and computes their logits from the exported files alone, in
float64 and from the papers' formulas. They must be those of `tessera score`.

usage: llama_reference.py TESSERA CONFIG
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

MODELS = {
    "llama": ["model.moe="],
    "llama_tied": ["model.moe=", "model.tie_embeddings=true", "model.rope_base=500"],
    "qwen3": ["model.moe=", "model.qk_norm=true", "model.head_dim=16"],
    "mixtral": ["model.moe.dense_layers=0"],
    "qwen3_moe": ["model.qk_norm=true"],
    "qwen3_moe_sums": ["model.qk_norm=true", "model.moe.router=SOFTMAX"],
}
DTYPES = {"F32": np.float32, "I32": np.int32}


def read_safetensors(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__").get("format", "pt") == "pt"
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"]).astype(np.float64)
    return tensors


def write_tokens(path, tokens):
    entry = {"dtype": "I32", "shape": tokens.shape, "data_offsets": [0, tokens.nbytes]}
    header = json.dumps({"tokens": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + tokens.tobytes())


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, weight, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def rope(x, base):
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None, None] * base ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attention(x, weights, name, config):
    """x: [time, hidden]; queries of head h meet keys of head h / (heads / kv_heads)."""
    heads, groups, dim = (
        config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    q, k, v = ((x @ weights[f"{name}.{p}_proj.weight"].T).reshape(len(x), -1, dim) for p in "qkv")
    if config["model_type"].startswith("qwen3"):
        q = norm(q, weights[f"{name}.q_norm.weight"], config["rms_norm_eps"])
        k = norm(k, weights[f"{name}.k_norm.weight"], config["rms_norm_eps"])
    q, k = rope(q, config["rope_theta"]), rope(k, config["rope_theta"])
    out = np.empty_like(q)
    for head in range(heads):
        group = head // (heads // groups)
        scores = q[:, head] @ k[:, group].T / np.sqrt(dim)
        scores[np.triu_indices(len(x), 1)] = -np.inf
        out[:, head] = softmax(scores) @ v[:, group]
    return out.reshape(len(x), -1) @ weights[f"{name}.o_proj.weight"].T


def mlp(x, gate, up, down):
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def experts(x, weights, name, parts, normalized, chosen_per_token):
    probabilities = softmax(x @ weights[f"{name}.gate.weight"].T)
    y = np.zeros_like(x)
    for t, p in enumerate(probabilities):
        chosen = np.argsort(-p)[:chosen_per_token]
        scale = p[chosen].sum() if normalized else 1
        for e in chosen:
            matrices = (weights[f"{name}.experts.{e}.{part}.weight"] for part in parts)
            y[t] += p[e] / scale * mlp(x[t], *matrices)
    return y


def feed_forward(x, weights, layer, config):
    if config["model_type"] == "mixtral":
        name, parts = f"model.layers.{layer}.block_sparse_moe", ("w1", "w3", "w2")
        return experts(x, weights, name, parts, True, config["num_experts_per_tok"])
    name, parts = f"model.layers.{layer}.mlp", ("gate_proj", "up_proj", "down_proj")
    if "num_experts" in config and layer not in config["mlp_only_layers"]:
        normalized = config["norm_topk_prob"]
        return experts(x, weights, name, parts, normalized, config["num_experts_per_tok"])
    return mlp(x, *(weights[f"{name}.{part}.weight"] for part in parts))


def logits(tokens, weights, config):
    x = weights["model.embed_tokens.weight"][tokens]
    epsilon = config["rms_norm_eps"]
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        y = norm(x, weights[f"{name}.input_layernorm.weight"], epsilon)
        x = x + attention(y, weights, f"{name}.self_attn", config)
        y = norm(x, weights[f"{name}.post_attention_layernorm.weight"], epsilon)
        x = x + feed_forward(y, weights, layer, config)
    tied = config["tie_word_embeddings"]
    head = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
    return norm(x, weights["model.norm.weight"], epsilon) @ head.T


def main():
    tessera, base = (os.path.abspath(argument) for argument in sys.argv[1:])
    launcher = ("OMPI_", "PMIX_", "SLURM_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}

    def run(*arguments):
        done = subprocess.run([tessera, *map(str, arguments)], env=environment,
                              capture_output=True, text=True, timeout=120)
        if done.returncode != 0:
            sys.exit(f"tessera {arguments} returned {done.returncode}: {done.stderr}")

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        pathlib.Path("a.txt").write_text("\n".join(map(str, range(3000))))
        run("data", "prepare", "--input", "a.txt", "--output", "data/tiny")
        tokens = np.random.default_rng(1).integers(0, 257, (2, 40), np.int32)
        write_tokens(pathlib.Path("tokens.safetensors"), tokens)
        for name, overrides in MODELS.items():
            # Large weights: a mistake in any part must show in the logits.
            sets = ["steps=3", f"run_dir={name}", "runtime.precision=F32", "sparsity=",
                    "model.init_std=0.3", *overrides]
            run("train", base, *(f"--set={one}" for one in sets))
            run("checkpoint", "export", name, "--output", f"{name}/exported", "--strict")
            run("score", "--checkpoint", name, "--input", "tokens.safetensors",
                "--output", f"{name}/scores", "--precision", "f32")
            exported = pathlib.Path(name, "exported")
            config = json.loads((exported / "config.json").read_text())
            weights = read_safetensors(exported / "model.safetensors")
            expected = np.stack([logits(row, weights, config) for row in tokens])
            found = read_safetensors(pathlib.Path(name, "scores"))["logits"]
            error = np.abs(found - expected).max() / np.abs(expected).max()
            print(f"{name}: {config['architectures'][0]}, error {error:.1e} of the largest logit")
            assert error <= 1e-5, name


main()
