"""The model once more, in numpy and float64: an outside opinion on what `tessera score` computes.

Written from the equations in docs/ alone, forward only, as plainly as possible; it shares no code
and no trick with the program. Gradients are not derived here: they are central differences.

What the program treats as constant in its backward is constant here, too. `Constants` keeps the
first value it is given under a name, so a second run with changed parameters sees the choices of
blocks and experts, the side of each kink, counts, targets of the gate and detached activations of
the first run.
"""

import json
import struct

import numpy as np

DTYPES = {"F32": np.float32, "I32": np.int32}


def read_safetensors(path):
    """All tensors of a file, by name: an 8-byte length, a JSON header, then the bytes."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    header, blobs, offset = {}, [], 0
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    for name, values in tensors.items():
        blob = np.ascontiguousarray(values).tobytes()
        header[name] = {"dtype": names[values.dtype], "shape": list(values.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


class Constants:
    """Values that a perturbed run takes over from the first one."""

    def __init__(self):
        self.values = {}

    def keep(self, name, compute):
        if name not in self.values:
            self.values[name] = compute()
        return self.values[name]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_sum_exp(x, axis=-1):
    """-inf where there is nothing to sum."""
    if x.shape[axis] == 0:
        return np.full(np.sum(x, axis).shape, -np.inf)
    largest = np.max(x, axis, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        return np.squeeze(largest, axis) + np.log(np.sum(np.exp(x - largest), axis))


def softmax(x):
    return np.exp(x - log_sum_exp(x)[..., None])


def rms_norm(x, weight, epsilon):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + epsilon) * weight


def rope(x, positions, base):
    """Rotates (x[i], x[i + d/2]) of x [tokens, heads, d] by position * base^(-2i/d)."""
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * base ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                           b * np.cos(angle) + a * np.sin(angle)], -1)


def swiglu(x, gate_up, down, weight=1.0):
    """W_down (weight silu(g) u), where (g, u) = W_gate_up x."""
    both = x @ gate_up.T
    g, u = np.split(both, 2, axis=-1)
    return (weight * g * sigmoid(g) * u) @ down.T


class ReferenceModel:
    """`model`: the fields of ModelConfig; `plan`: gated, kept, window, strength, kl, entropy and
    z_loss (the coefficients of one step, not yet divided by the number of rows)."""

    def __init__(self, model, plan, tokens, targets, starts):
        self.model, self.plan = model, plan
        self.attention = model["attention"]
        self.sequences = tokens.shape[0]
        self.tokens, self.targets = tokens.reshape(-1), targets.reshape(-1)
        self.segments = [(a, b) for a, b in zip(starts[:-1], starts[1:]) if b > a]
        self.positions = np.concatenate([np.arange(b - a) for a, b in self.segments])
        self.epsilon = model.get("norm_epsilon", 1e-5)
        count = [np.minimum(self.candidates(b - a).sum(1), plan["kept"]) for a, b in self.segments]
        self.gate_rows = int(np.sum(np.concatenate(count) >= 2))

    def run(self, p, constants=None):
        """logits, losses, loss, auxiliary [5], and their sum, the objective of the gradients."""
        self.p = p
        self.constants = constants or Constants()
        self.auxiliary = np.zeros(5)
        x = self.embed()
        for layer in range(self.model["layers"]):
            name = f"layers.{layer}"
            normed = rms_norm(x, p[name + ".attention_norm.weight"], self.epsilon)
            x = x + self.attend(name + ".attention", normed)
            normed = rms_norm(x, p[name + ".feed_forward_norm.weight"], self.epsilon)
            x = x + self.feed_forward(name, layer, normed)
        x = rms_norm(x, p["head.norm.weight"], self.epsilon)
        head = "embedding.weight" if self.model.get("tie_embeddings") else "head.weight"
        logits = x @ p[head].T
        valid = self.targets >= 0
        chosen = logits[np.arange(len(logits)), np.where(valid, self.targets, 0)]
        losses = np.where(valid, log_sum_exp(logits) - chosen, 0)
        loss = losses.sum() / max(1, valid.sum())
        return {"logits": logits, "losses": losses, "loss": loss, "auxiliary": self.auxiliary,
                "objective": loss + self.auxiliary.sum()}

    def embed(self):
        """Each token's row, and those of the tokens before it in its segment by channel."""
        rows = self.p["embedding.weight"][self.tokens]
        x = rows.copy()
        for j in range(self.model.get("smear_tokens", 0)):
            weight = self.p["embedding.smear.weight"][j]
            for begin, end in self.segments:
                x[begin + j + 1:end] += weight * rows[begin:end - j - 1]
        return x

    # ---- attention

    def attend(self, name, x):
        p, model = self.p, self.model
        heads, kv_heads, dim = model["heads"], model["kv_heads"], model["head_dim"]
        group = heads // kv_heads
        q0 = (x @ p[name + ".query.weight"].T).reshape(-1, heads, dim)
        k0 = (x @ p[name + ".key.weight"].T).reshape(-1, kv_heads, dim)
        v = (x @ p[name + ".value.weight"].T).reshape(-1, kv_heads, dim)
        if model.get("qk_norm"):
            q0 = rms_norm(q0, p[name + ".query_norm.weight"], self.epsilon)
            k0 = rms_norm(k0, p[name + ".key_norm.weight"], self.epsilon)
        base = model.get("rope_base", 10000.0)
        q, k = rope(q0, self.positions, base), rope(k0, self.positions, base)
        sink = p.get(name + ".sink_logit", np.full(heads, -np.inf))
        o = np.zeros_like(q)
        for a, b in self.segments:
            for c in range(kv_heads):
                of = slice(c * group, (c + 1) * group)
                scores = np.einsum("ihd,jd->hij", q[a:b, of], k[a:b, c]) / np.sqrt(dim)
                bias = self.bias(f"{name}|{a}|{c}", name, c, q0[a:b, of], k0[a:b, c], scores)
                scores = scores + bias
                total = np.logaddexp(log_sum_exp(scores), sink[of][:, None])
                o[a:b, of] = np.einsum("hij,jd->ihd", np.exp(scores - total[..., None]), v[a:b, c])
        o = o.reshape(len(x), -1)
        if model.get("output_gate"):
            o = o * sigmoid(x @ p[name + ".output_gate.weight"].T)
        return o @ p[name + ".out.weight"].T

    def bias(self, key, name, c, q0, k0, scores):
        """What is added to the scores of a group in a segment: -inf where nothing is seen."""
        n = len(q0)
        i, j = np.arange(n)[:, None], np.arange(n)[None, :]
        if c >= self.attention["global_groups"]:
            seen = (i - j < self.plan["window"]) | (j < self.attention["sink_tokens"])
            return np.where((j <= i) & seen, 0, -np.inf)
        if not self.plan["gated"]:
            return np.where(j <= i, 0, -np.inf)
        log_gates = self.gate(key, name + ".gate", c, q0, k0, scores)
        return np.where(j <= i, log_gates[:, np.arange(n) // self.attention["block"]], -np.inf)

    def candidates(self, n):
        """[n, blocks]: those before the own block that are neither sink nor window."""
        block = self.attention["block"]
        b, own = np.arange(-(-n // block))[None, :], np.arange(n)[:, None] // block
        return ((b >= self.attention["sink_blocks"]) &
                (b <= own - self.attention["window_blocks"]))

    def gate_scores(self, name, c, q0, k0):
        """z [n, blocks]; 0 for a block that is not complete."""
        p, block, parts = self.p, self.attention["block"], self.attention["gate_keys"]
        n = len(q0)
        complete = n // block
        keys = k0[:complete * block].reshape(complete * parts, block // parts, -1)
        alpha = softmax(keys @ p[name + ".pool"][c])
        pooled = np.einsum("bj,bjd->bd", alpha, keys) @ p[name + ".key.weight"][c].T
        queries = q0.reshape(n, -1) @ p[name + ".query.weight"][c].T
        z = queries @ pooled.T / np.sqrt(self.attention["gate_dim"])
        z = log_sum_exp(z.reshape(n, complete, parts))
        return np.pad(z, ((0, 0), (0, -(-n // block) - complete)))

    def choose(self, z):
        """The best `kept` candidates, and the block after them or -1; of equals the later block."""
        allowed = self.candidates(len(z))
        chosen, runner_up = np.zeros_like(allowed), np.full(len(z), -1)
        for i in range(len(z)):
            order = sorted(np.flatnonzero(allowed[i]), key=lambda b: (z[i, b], b), reverse=True)
            chosen[i, order[:self.plan["kept"]]] = True
            if len(order) > self.plan["kept"]:
                runner_up[i] = order[self.plan["kept"]]
        return chosen, runner_up

    def gate(self, key, name, c, q0, k0, scores):
        """log G [n, blocks], -inf for blocks that are not attended to; adds the gate's losses."""
        keep, strength = self.constants.keep, self.plan["strength"]
        detached_q0, detached_k0 = keep(key + "|q0", q0.copy), keep(key + "|k0", k0.copy)
        live = self.attention.get("gate_trunk_grad", True)
        z = self.gate_scores(name, c, *((q0, k0) if live else (detached_q0, detached_k0)))
        chosen, runner_up = keep(key + "|choice", lambda: self.choose(z))
        width = np.logaddexp(0, self.p[name + ".width"][c])
        u = (z - z[np.arange(len(z)), runner_up][:, None]) / width
        above, below = keep(key + "|kinks", lambda: (u >= 1, u <= 0))
        opened = 1 - strength + strength * np.where(above, 1, np.where(below, 0, u))
        opened = np.where((runner_up >= 0)[:, None], opened, 1)
        own = np.arange(len(z)) // self.attention["block"]
        b = np.arange(z.shape[1])[None, :]
        forced = ~self.candidates(len(z)) & (b <= own[:, None])
        with np.errstate(divide="ignore"):
            log_gates = np.log(np.where(forced, 1, np.where(chosen, opened, 0)))
        self.gate_losses(key, self.gate_scores(name, c, detached_q0, detached_k0), chosen, scores)
        return log_gates

    def gate_losses(self, key, z, chosen, scores):
        rows = chosen.sum(1) >= 2
        if not rows.any():
            return
        z, chosen = np.where(chosen, z, -np.inf)[rows], chosen[rows]
        target = self.constants.keep(key + "|target",
                                     lambda: self.gate_target(scores[:, rows], chosen))
        lse = log_sum_exp(z)
        log_p = np.where(chosen, z - lse[:, None], 0)
        log_t = np.log(np.where(chosen, target, 1))
        kl = np.sum(np.where(chosen, target * (log_t - log_p), 0))
        entropy = -np.sum(np.where(chosen, np.exp(log_p) * log_p, 0))
        self.auxiliary[:3] += np.array([self.plan["kl"] * kl, self.plan["entropy"] * entropy,
                                        self.plan["z_loss"] * np.sum(lse**2)]) / self.gate_rows

    def gate_target(self, scores, chosen):
        """Mean over heads of the share of attention that each chosen block has."""
        block = self.attention["block"]
        padding = -scores.shape[-1] % block
        scores = np.pad(scores, ((0, 0), (0, 0), (0, padding)), constant_values=-np.inf)
        mass = log_sum_exp(scores.reshape(*scores.shape[:2], -1, block))
        return softmax(np.where(chosen, mass, -np.inf)).mean(0)

    # ---- feed-forward

    def feed_forward(self, name, layer, x):
        p, moe = self.p, self.model.get("moe")
        if moe is None or layer < moe.get("dense_layers", 0):
            return swiglu(x, p[name + ".mlp.gate_up.weight"], p[name + ".mlp.down.weight"])
        name += ".moe"
        y = np.zeros_like(x)
        if moe.get("shared_experts", 0) > 0:
            y += swiglu(x, p[name + ".shared.gate_up.weight"], p[name + ".shared.down.weight"])
        chosen, weights = self.route(name, moe, x @ p[name + ".router.weight"].T)
        for e in range(moe["experts"]):
            rows = np.flatnonzero(chosen[:, e])
            y[rows] += swiglu(x[rows], p[name + ".experts.gate_up.weight"][e],
                              p[name + ".experts.down.weight"][e], weights[rows, e][:, None])
        return y

    def route(self, name, moe, logits):
        """Which experts each token goes to, as a mask, and the weights, both [tokens, experts]."""
        mode = moe["router"]
        scores = sigmoid(logits) if mode == "SIGMOID" else softmax(logits)
        bias = self.p.get(name + ".router.bias", 0.0)

        def choose():
            order = np.argsort(-(scores + bias), axis=1, kind="stable")
            mask = np.zeros(logits.shape, bool)
            np.put_along_axis(mask, order[:, :moe["experts_per_token"]], True, axis=1)
            return mask

        chosen = self.constants.keep(name + "|experts", choose)
        self.router_losses(moe, logits, scores / scores.sum(1, keepdims=True), chosen)
        if mode == "SOFTMAX":
            return chosen, np.where(chosen, scores, 0)
        if mode == "SOFTMAX_TOPK":
            return chosen, softmax(np.where(chosen, logits, -np.inf))
        kept = np.where(chosen, scores, 0)
        scale = moe.get("router_scale", 1.0) if mode == "SIGMOID" else 1.0
        return chosen, scale * kept / kept.sum(1, keepdims=True)

    def router_losses(self, moe, logits, share, chosen):
        by_sequence = moe.get("balance_scope", "SEQUENCE") == "SEQUENCE"
        scopes = self.sequences if by_sequence else 1
        length = len(logits) // scopes
        balance = 0.0
        for s in range(scopes):
            rows = slice(s * length, (s + 1) * length)
            f = chosen[rows].sum(0) / (moe["experts_per_token"] * length)
            balance += moe["experts"] * np.sum(f * share[rows].mean(0)) / scopes
        self.auxiliary[3] += moe["balance_loss"] * balance
        self.auxiliary[4] += moe["z_loss"] * np.mean(log_sum_exp(logits)**2)


def error(a, b):
    """1 - 2<a, b> / (<a, a> + <b, b>): the square of a relative error, half of it."""
    both = np.sum(a * a) + np.sum(b * b)
    return float(np.sum((a - b)**2) / both) if both > 0 else 0.0


def forward_errors(model, output):
    """Of logits (largest difference / largest logit, and `error`), loss and auxiliary losses."""
    p = {name[len("parameter."):]: values.astype(np.float64)
         for name, values in output.items() if name.startswith("parameter.")}
    constants = Constants()
    ours = model.run(p, constants)
    logits = output["logits"].reshape(ours["logits"].shape).astype(np.float64)
    difference = np.abs(logits - ours["logits"]).max() / np.abs(ours["logits"]).max()
    auxiliary = output["auxiliary"].astype(np.float64)
    scale = np.maximum(np.abs(ours["auxiliary"]), 1e-12)
    errors = {"logits": float(difference),
              "logits_metric": error(logits, ours["logits"]),
              "losses": float(np.abs(output["losses"].reshape(-1) - ours["losses"]).max()),
              "loss": abs(float(output["loss"][0]) - ours["loss"]) / ours["loss"],
              "auxiliary": (np.abs(auxiliary - ours["auxiliary"]) / scale).tolist()}
    return errors, p, constants, ours


def derivative_errors(model, p, constants, gradients, step=1e-5):
    """Per parameter: |difference quotient - <gradient, direction>| along the gradient, relative to
    its length, and along two random directions, relative to what is to be expected there."""
    random = np.random.default_rng(1)
    errors = {}
    for name, gradient in gradients.items():
        gradient = gradient.astype(np.float64)
        size = np.linalg.norm(gradient)
        directions = [random.standard_normal(gradient.shape) for _ in range(2)]
        directions += [gradient] if size > 0 else []
        worst = 0.0
        for direction in directions:
            direction = direction / np.linalg.norm(direction)
            sides = [model.run({**p, name: p[name] + h * direction}, constants)["objective"]
                     for h in (step, -step)]
            quotient = (sides[0] - sides[1]) / (2 * step)
            inner = np.sum(gradient * direction)
            expected = max(abs(quotient), abs(inner), size / np.sqrt(gradient.size))
            # Below this the quotient itself is rounding.
            worst = max(worst, (abs(quotient - inner) - 1e-10) / max(expected, 1e-30))
        errors[name] = max(worst, 0.0)
    return errors
