"""Llama, Qwen3, Mixtral and Qwen3-MoE from their papers' formulas, in float64 with numpy: what
Hugging Face's tensors of these names compute. RoPE turns dimension i with i + head_dim / 2."""

import numpy as np


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


def expect_logits(name, what, tokens, weights, config, found):
    """Fails when logits of ours are not those of the float64 model, within 1e-5 of the largest."""
    expected = np.stack([logits(row, weights, config) for row in tokens])
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"{name}: {what}, error {error:.1e} of the largest logit")
    assert error <= 1e-5, name
