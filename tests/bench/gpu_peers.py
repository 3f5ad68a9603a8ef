#!/usr/bin/env python3
"""What PyTorch reaches on this GPU, in the shapes of gpu_memory_bench, gpu_matmul_bench and
gpu_attention_bench, and timed as they are: by the GPU's clock, with another tensor read before each
call so that inputs come from memory, the median of many calls after a warm-up.

  gpu_peers.py [--quick] [--dry-run] [GROUP...]     all groups unless some are given

One line of JSON for each on stdout; what this PyTorch lacks gets a line that says so. --dry-run
lists what would be measured, without PyTorch.
"""

import argparse
import json
import math
import statistics
import sys

TOKENS = 16384
LENGTHS = {"8k tokens": 8192, "32k tokens": 32768, "128k tokens": 131072}
HEADS, KV_HEADS, HEAD_DIM, WINDOW, BLOCK = 32, 8, 128, 1024, 64
PEERS = []  # (group, by, name, shape, quick, function)


def peer(group, by, name, shape, *arguments, quick=True):
    """Registers a function that is given torch and `arguments` and returns (call, bytes, flops), and
    a note when the call differs from what its name says."""

    def register(function):
        PEERS.append((group, by, name, shape, quick, lambda torch: function(torch, *arguments)))
        return function

    return register


class Clock:
    def __init__(self, torch, quick):
        self.torch, self.budget_us = torch, 1e5 if quick else 3e5
        self.filler = torch.zeros(64 << 20, device="cuda")

    def median_us(self, call, calls):
        event = lambda: self.torch.cuda.Event(enable_timing=True)
        pairs = [(event(), event()) for _ in range(calls)]
        for begin, end in pairs:
            self.filler.sum()
            begin.record()
            call()
            end.record()
        self.torch.cuda.synchronize()
        return statistics.median(1e3 * begin.elapsed_time(end) for begin, end in pairs)

    def time_us(self, call):
        for _ in range(2):
            call()
        first = self.median_us(call, 2)
        if first > self.budget_us:
            return first, 2
        calls = int(min(100, max(3, self.budget_us / max(first, 1))))
        return self.median_us(call, calls), calls


def normal(torch, *shape, dtype="bfloat16", grad=False):
    return torch.randn(*shape, device="cuda", dtype=getattr(torch, dtype)).requires_grad_(grad)


def compiled(torch, function):
    return torch.compile(function, dynamic=False)


# Rates to compare with.


@peer("copy", "PyTorch", "copy", "[268435456]")
def copy(torch):
    x = normal(torch, 256 << 20, dtype="float32")
    y = torch.empty_like(x)
    return lambda: y.copy_(x), 8 * x.numel(), 0


@peer("matmul", "PyTorch", "matmul_rate", "8192 x 8192 x 8192")
def matmul_rate(torch):
    a, b = normal(torch, 8192, 8192), normal(torch, 8192, 8192)
    return lambda: a @ b.t(), 0, 2 * 8192**3


# Matrix products.


def linear(torch, m, n, k, which):
    x, w, y = normal(torch, m, k), normal(torch, n, k), normal(torch, m, n)
    calls = {"forward": lambda: x @ w.t(), "dx": lambda: y @ w, "dw": lambda: y.t() @ x}
    return calls[which], 0, 2 * m * n * k


for m, n, k in [(TOKENS, 4096, 4096), (TOKENS, 28672, 4096), (TOKENS, 4096, 14336),
                (TOKENS, 2560, 2048), (2048, 151936, 4096)]:
    for which in ["forward", "dx", "dw"]:
        peer("matmul", "PyTorch", f"matmul_{which}", f"{m} x {n} x {k}", m, n, k, which,
             quick=n == k)(linear)


def grouped(torch, experts, rows, n, k, which):
    function = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    x, w, y = normal(torch, experts * rows, k), normal(torch, experts, n, k), normal(torch, experts * rows, n)
    ends = torch.arange(1, experts + 1, device="cuda", dtype=torch.int32) * rows
    calls = {"forward": lambda: function(x, w.transpose(-2, -1), offs=ends),
             "dx": lambda: function(y, w, offs=ends), "dw": lambda: function(y.t(), x, offs=ends)}
    return calls[which], 0, 2 * experts * rows * n * k


for which in ["forward", "dx", "dw"]:
    peer("grouped", "torch._grouped_mm", f"grouped_matmul_{which}", "16 x 2048 x 768 x 2048",
         16, 2048, 768, 2048, which)(grouped)


# Attention.


def attention_flops(n):
    return 2 * 2 * HEADS * HEAD_DIM * n * (n + 1) / 2


def sdpa(torch, n, backend, which):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = getattr(SDPBackend, backend)
    attend = torch.nn.functional.scaled_dot_product_attention
    q = normal(torch, 1, HEADS, n, HEAD_DIM, grad=True)
    heads, note = KV_HEADS, []
    make = lambda: normal(torch, 1, heads, n, HEAD_DIM, grad=True)
    k, v = make(), make()

    def forward():
        with sdpa_kernel([backends]):
            return attend(q, k, v, is_causal=True, **({"enable_gqa": True} if heads != HEADS else {}))

    try:
        forward()
    except RuntimeError:  # this back end has no groups of heads
        heads, note = HEADS, ["as many keys and values as queries"]
        k, v = make(), make()
    if which == "forward":
        def call():
            with torch.no_grad():
                forward()
        return call, 0, attention_flops(n), *note
    o = forward()
    d_o = torch.randn_like(o)
    return (lambda: torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True), 0,
            2.5 * attention_flops(n), *note)


for backend, title in [("CUDNN_ATTENTION", "PyTorch SDPA, cuDNN"),
                       ("FLASH_ATTENTION", "PyTorch SDPA, FlashAttention")]:
    for shape, n in LENGTHS.items():
        for which in ["forward", "backward"]:
            peer("sdpa", title, f"attention_{which}", shape, n, backend, which,
                 quick=n > 8192 and backend == "CUDNN_ATTENTION")(sdpa)


def chosen_blocks(torch, n, memory=0.95):
    """[n, blocks] bool: what a global group chooses, by queries that drift as hidden states do."""
    blocks = n // BLOCK
    kept = 4 * math.ceil(math.log2(blocks))
    noise = torch.randn(n, 64) * math.sqrt(1 - memory * memory)
    query = torch.randn(64)
    rows = torch.empty(n, 64)
    for i in range(n):
        query = rows[i] = memory * query + noise[i]
    scores = rows.cuda() @ torch.randn(blocks, 64, device="cuda").t()
    own = (torch.arange(n, device="cuda") // BLOCK)[:, None]
    block = torch.arange(blocks, device="cuda")[None, :]
    candidate = (block >= 1) & (block <= own - WINDOW // BLOCK)
    scores.masked_fill_(~candidate, -math.inf)
    best = torch.zeros(n, blocks, dtype=torch.bool, device="cuda")
    best.scatter_(1, scores.topk(min(kept, blocks), dim=1).indices, True)
    forced = (block < 1) | ((block > own - WINDOW // BLOCK) & (block <= own))
    return (best & candidate) | forced


def flex(torch, n, which):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    chosen = chosen_blocks(torch, n)

    def sees(_, head, i, j):
        near = (i - j < WINDOW) | (j < BLOCK)
        return (j <= i) & torch.where(head < HEADS // KV_HEADS, chosen[i, j // BLOCK], near)

    mask = create_block_mask(sees, 1, HEADS, n, n, device="cuda", _compile=True)
    attend = compiled(torch, flex_attention)
    q = normal(torch, 1, HEADS, n, HEAD_DIM, grad=True)
    k, v = (normal(torch, 1, KV_HEADS, n, HEAD_DIM, grad=True) for _ in range(2))
    forward = lambda: attend(q, k, v, block_mask=mask, enable_gqa=True)
    if which == "forward":
        return forward, 0, 0
    o = forward()
    d_o = torch.randn_like(o)
    return lambda: torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True), 0, 0


for shape, n in list(LENGTHS.items())[:2]:
    for which in ["forward", "backward"]:
        peer("flex", "flex_attention, the same block mask", f"dgsa_layer_{which}", shape, n, which,
             quick=False)(flex)


# Kernels that are bound by memory, compiled by torch.compile.


@peer("compiled", "torch.compile", "rms_norm_forward_residual", "[16384, 4096]")
def rms_norm_forward(torch):
    x, residual, weight = normal(torch, TOKENS, 4096), normal(torch, TOKENS, 4096), normal(torch, 4096)

    def norm(x, residual, weight):
        h = x + residual
        wide = h.float()
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
        return h, (wide * rstd * weight.float()).bfloat16(), rstd

    f = compiled(torch, norm)
    return lambda: f(x, residual, weight), 4 * 2 * x.numel(), 0


@peer("compiled", "torch.compile", "rms_norm_backward_residual", "[16384, 4096]")
def rms_norm_backward(torch):
    dy, h, dresidual = (normal(torch, TOKENS, 4096) for _ in range(3))
    weight, rstd = normal(torch, 4096), normal(torch, TOKENS, 1, dtype="float32")

    def backward(dy, h, dresidual, weight, rstd):
        scaled = h.float() * rstd
        wide = dy.float() * weight.float()
        dh = rstd * (wide - scaled * (wide * scaled).mean(-1, keepdim=True)) + dresidual.float()
        return dh.bfloat16(), (dy.float() * scaled).sum(0)

    f = compiled(torch, backward)
    return lambda: f(dy, h, dresidual, weight, rstd), 4 * 2 * h.numel(), 0


@peer("compiled", "torch.compile", "swiglu_forward", "[16384, 8192]")
def swiglu_forward(torch):
    gate_up = normal(torch, TOKENS, 2 * 8192)

    def swiglu(gate_up):
        gate, up = gate_up.float().chunk(2, -1)
        return (torch.nn.functional.silu(gate) * up).bfloat16()

    f = compiled(torch, swiglu)
    return lambda: f(gate_up), 3 * gate_up.numel(), 0


@peer("compiled", "torch.compile", "swiglu_backward", "[16384, 8192]")
def swiglu_backward(torch):
    gate_up, dy = normal(torch, TOKENS, 2 * 8192), normal(torch, TOKENS, 8192)

    def backward(gate_up, dy):
        gate, up = gate_up.float().chunk(2, -1)
        s, d = torch.sigmoid(gate), dy.float()
        return torch.cat([d * up * s * (1 + gate * (1 - s)), d * gate * s], -1).bfloat16()

    f = compiled(torch, backward)
    return lambda: f(gate_up, dy), 5 * gate_up.numel(), 0


@peer("compiled", "torch.compile", "rope", "[16384, 32, 128]")
def rope(torch):
    x = normal(torch, TOKENS, 32, 128)
    positions = torch.arange(TOKENS, device="cuda")
    turns = 1e6 ** (-torch.arange(0, 64, device="cuda") / 64)

    def rotate(x, positions, turns):
        angle = (positions[:, None].float() * turns)[:, None, :]
        a, b = x.float().chunk(2, -1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).bfloat16()

    f = compiled(torch, rotate)
    return lambda: f(x, positions, turns), 4 * x.numel(), 0


@peer("compiled", "torch.compile", "cross_entropy_both", "[8192, 151936]")
def cross_entropy(torch):
    logits = normal(torch, 8192, 151936)
    targets = torch.randint(0, 151936, (8192,), device="cuda")

    def both(logits, targets):
        wide = logits.float()
        lse = torch.logsumexp(wide, -1, keepdim=True)
        losses = lse[:, 0] - wide.gather(1, targets[:, None])[:, 0]
        hit = torch.arange(wide.shape[1], device=wide.device)[None, :] == targets[:, None]
        return losses, (1e-4 * (torch.exp(wide - lse) - hit.float())).bfloat16()

    f = compiled(torch, both)
    return lambda: f(logits, targets), 3 * 2 * logits.numel(), 0


@peer("adamw", "PyTorch fused AdamW, then a copy to bf16", "adamw", "[134217728]")
def adamw(torch):
    master = normal(torch, 128 << 20, dtype="float32", grad=True)
    master.grad = normal(torch, 128 << 20, dtype="float32")
    value = torch.empty(128 << 20, device="cuda", dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW([master], lr=1e-3, fused=True)

    def step():
        optimizer.step()
        value.copy_(master.detach())

    return step, 30 * master.numel(), 0  # as ours; what it moves itself is 34


def measure(torch, clock, entry, rates):
    _, by, name, shape, _, prepare = entry
    line = {"by": by, "name": name, "shape": shape}
    try:
        call, size, flops, *note = prepare(torch)
        us, calls = clock.time_us(call)
    except Exception as error:  # a line that says so, and the next one
        text = str(error).strip() or type(error).__name__
        return {**line, "error": text.splitlines()[0][:300]}
    line.update(microseconds=us, calls=calls)
    if note:
        line["note"] = note[0]
    if size:
        line.update(bytes=size, gbps=size / us * 1e-3)
    if flops:
        line.update(flops=flops, tflops=flops / us * 1e-6)
    if name == "copy":
        rates["copy"] = line["gbps"]
    if name == "matmul_rate":
        rates["matmul"] = line["tflops"]
    if "gbps" in line and "copy" in rates:
        line["percent_of_copy"] = 100 * line["gbps"] / rates["copy"]
    if "tflops" in line and "matmul" in rates:
        line["percent_of_matmul"] = 100 * line["tflops"] / rates["matmul"]
    return line


def main():
    groups = list(dict.fromkeys(entry[0] for entry in PEERS))
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(groups)}")
    parser.add_argument("--quick", action="store_true", help="what matters most, fewer repeats")
    parser.add_argument("--dry-run", action="store_true", help="only list what would be measured")
    arguments = parser.parse_args()
    for group in arguments.groups:
        if group not in groups:
            parser.error(f"there is no group {group}; there are {', '.join(groups)}")
    # The rates that others are compared with are measured in every run.
    rates = ["copy", "matmul_rate"]
    wanted = [entry for entry in PEERS if entry[2] in rates or
              (not arguments.groups or entry[0] in arguments.groups)
              and (entry[4] or not arguments.quick)]
    if arguments.dry_run:
        for group, by, name, shape, _, _ in wanted:
            print(json.dumps({"by": by, "name": name, "shape": shape, "group": group}))
        return 0
    try:
        import torch
        clock = Clock(torch, arguments.quick)
    except Exception as error:
        print(json.dumps({"by": "PyTorch", "name": "PyTorch", "error": str(error).splitlines()[0]}))
        return 0
    print(json.dumps({"by": "PyTorch", "name": "version", "shape": torch.__version__}), flush=True)
    rates = {}
    for entry in wanted:
        print(json.dumps(measure(torch, clock, entry, rates)), flush=True)
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
