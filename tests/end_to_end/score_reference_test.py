"""Trains tiny models with the program, scores random tokens, and compares every number with
reference_model.py. Usage: score_reference_test.py TESSERA [CASE]..."""

import copy
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import numpy as np
except ImportError:
    print("skipped: this Python has no numpy, which the reference model needs")
    sys.exit(77)

import reference_model as reference

# What f32 may cost. A wrong term in any formula is orders of magnitude above it.
FORWARD, DERIVATIVE = 1e-5, 1e-4
BF16_LOGITS, BF16_LOSS, BF16_GRADIENTS = 3e-3, 1e-2, 5e-2

MODEL = {
    "vocabulary": 270, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8,
    "intermediate": 40, "init_std": 0.2,
    "attention": {"global_groups": 1, "block": 16, "gate_dim": 8, "gate_keys": 2, "window": 24,
                  "sink_tokens": 2, "sink_blocks": 1, "window_blocks": 1, "kept_blocks": 2},
}
EVERYTHING = {"smear_tokens": 2, "qk_norm": True, "output_gate": True, "attention.sink_logit": True}
MOE = {"experts": 4, "experts_per_token": 2, "intermediate": 24, "shared_experts": 1,
       "dense_layers": 1, "balance_loss": 0.1, "z_loss": 0.01}
SPARSITY = {"dense_steps": 4, "gate_warmup_steps": 2, "transition_steps": 4, "dense_refresh": 7,
            "kl": 1.0, "final_kl": 0.3, "entropy": 0.01, "z_loss": 1e-3}
STEPS = 10

# Name: (fields of the model, steps to score as). The gate rests in steps 1 and 2 and warms up in 3
# and 4; 5 to 8 are the transition, 7 a dense refresh; 9 on are fully sparse. None: never sparse.
CASES = {
    "dense": ({"tie_embeddings": True}, None),
    "one_gate_key": ({"attention.gate_keys": 1}, [2, 9]),
    "everything": ({**EVERYTHING, "moe": {**MOE, "router": "SIGMOID", "router_scale": 1.5,
                                          "balance_bias_rate": 0.05}}, [4, 6, 7, 9]),
    "detached_gate": ({**EVERYTHING, "attention.gate_trunk_grad": False,
                       "attention.window_blocks": 2, "attention.global_groups": 2,
                       "moe": {**MOE, "router": "SOFTMAX_NORMALIZED", "shared_experts": 0,
                               "balance_scope": "MICRO_BATCH"}}, [9]),
    "softmax": ({"rope_base": 500.0, "norm_epsilon": 1e-3, "attention.sink_blocks": 0,
                 "moe": {**MOE, "router": "SOFTMAX", "dense_layers": 0}}, [6]),
    "softmax_topk": ({"qk_norm": True, "moe": {**MOE, "router": "SOFTMAX_TOPK"}}, [9]),
}


def model_of(fields):
    model = copy.deepcopy(MODEL)
    for path, value in fields.items():
        *parents, name = path.split(".")
        at = model
        for parent in parents:
            at = at[parent]
        at[name] = value
    return model


def textproto(fields, indent=""):
    lines = []
    for name, value in fields.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name} {{", textproto(value, indent + "  "), indent + "}"]
        elif isinstance(value, str) and not value.isupper():
            lines.append(f"{indent}{name}: {json.dumps(value)}")
        else:
            text = str(value).lower() if isinstance(value, bool) else value
            lines.append(f"{indent}{name}: {text}")
    return "\n".join(lines)


def plan_of(model, step, length):
    """The plan of one step, from the schedule in docs/dgsa.md."""
    attention, full = model["attention"], 1 - 2.0**-10
    most = -(-length // attention["block"])
    dense = {"gated": False, "kept": most, "window": length, "strength": 0.0, "kl": 1.0,
             "entropy": 0.0, "z_loss": SPARSITY["z_loss"]}
    first = SPARSITY["dense_steps"]
    if step is None or step <= first - SPARSITY["gate_warmup_steps"]:
        return dense
    if step <= first:
        return {**dense, "gated": True}
    x = min(1.0, (step - first) / SPARSITY["transition_steps"])
    rho = x * x * (3 - 2 * x)
    plan = {**dense, "gated": True, "kl": SPARSITY["final_kl"]**rho,
            "entropy": rho * SPARSITY["entropy"]}
    if x < 1 and step % SPARSITY["dense_refresh"] == 0:
        return plan
    return {**plan, "strength": rho * full,
            "kept": int(np.ceil(most**(1 - rho) * attention["kept_blocks"]**rho - 1e-9)),
            "window": int(round(length**(1 - rho) * attention["window"]**rho))}


def run(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"tessera {' '.join(map(str, arguments))}\nended with {done.returncode}:\n"
                 f"{done.stdout}{done.stderr}")


def prepare_data(program, directory):
    words = ["gate", "block", "sparse", "token", "head", "expert", "ring", "sum", "of", "the"]
    shuffled = random.Random(1)
    texts = directory / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    for i in range(6):
        text = " ".join(shuffled.choice(words) for _ in range(400))
        (texts / f"{i}.txt").write_text(text + "\n")
    run(program, "data", "prepare", "--input", texts, "--output", directory / "data")
    return directory / "data"


def train(program, directory, data, model, sparse):
    config = {"model": model, "data": {"path": str(data)},
              "batch": {"sequences": 2, "micro_sequences": 2, "sequence_length": 112},
              "optimizer": {"learning_rate": 0.01},
              "sparsity": SPARSITY if sparse else {},
              "runtime": {"precision": "F32", "threads": 1},
              "run_dir": str(directory / "run"), "steps": STEPS}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "run.textproto"
    path.write_text(textproto(config) + "\n")
    run(program, "train", path)


def write_input(path):
    """Two rows of random tokens; the first is two documents; some positions have no target."""
    numbers = np.random.default_rng(7)
    tensors = {"tokens": numbers.integers(0, 270, (2, 112)).astype(np.int32),
               "targets": numbers.integers(0, 270, (2, 112)).astype(np.int32),
               "starts": np.array([0, 19, 112, 224, 224], np.int32)}
    tensors["targets"].reshape(-1)[7::11] = -1
    reference.write_safetensors(path, tensors)
    return tensors


def score(program, directory, step, precision, *flags):
    output = directory / f"output.{step}.{precision}.safetensors"
    run(program, "score", "--checkpoint", directory / "run", "--input", directory / "input",
        "--output", output, "--precision", precision, "--step", step or 0, *flags)
    return reference.read_safetensors(output)


def check_step(program, directory, model, step, tensors):
    """Prints the errors of one step and returns what is wrong with them, a list of sentences."""
    plan = plan_of(model, step, tensors["tokens"].shape[1])
    ours = reference.ReferenceModel(model, plan, **tensors)
    output = score(program, directory, step, "f32", "--gradients")
    errors, p, constants, values = reference.forward_errors(ours, output)
    gradients = {name[len("gradient."):]: gradient for name, gradient in output.items()
                 if name.startswith("gradient.")}
    derivatives = reference.derivative_errors(ours, p, constants, gradients)
    worst = max(derivatives, key=derivatives.get)
    print(f"  step {step}: gated {plan['gated']}, kept {plan['kept']}, window {plan['window']}, "
          f"rows {ours.gate_rows}")
    print(f"    f32: logits {errors['logits']:.1e}, losses {errors['losses']:.1e}, "
          f"loss {errors['loss']:.1e}, auxiliary "
          + " ".join(f"{e:.1e}" for e in errors["auxiliary"])
          + f" of {' '.join(f'{a:.3g}' for a in values['auxiliary'])}")
    print(f"    {len(gradients)} gradients: worst {derivatives[worst]:.1e} ({worst}), "
          f"median {np.median(list(derivatives.values())):.1e}")
    wrong = [f"{name} is {errors[name]:.1e} away" for name in ("logits", "losses", "loss")
             if not errors[name] <= FORWARD]
    wrong += [f"auxiliary[{i}] is {e:.1e} away" for i, e in enumerate(errors["auxiliary"])
              if not e <= FORWARD]
    wrong += [f"gradient of {name} is {e:.1e} away" for name, e in derivatives.items()
              if not e <= DERIVATIVE]
    missing = {name for name in p if not name.endswith(".router.bias")} - set(gradients)
    wrong += [f"{name} has no gradient" for name in sorted(missing)]

    wrong += check_bf16(score(program, directory, step, "bf16", "--gradients"), values, gradients)
    return [f"step {step}: {sentence}" for sentence in wrong]


def check_bf16(output, values, gradients):
    """The same weights rounded to bf16: near the f64 logits and loss and the f32 gradients. Of the
    gate, gradients are printed and not judged: a single token that chooses another block, because
    two scores differ by less than bf16 can tell, moves them by as much as their size."""
    logits, loss = output["logits"].reshape(-1, 270).astype(np.float64), float(output["loss"][0])
    metric = reference.error(logits, values["logits"])
    away = {name: reference.error(gradient.astype(np.float64), output["gradient." + name])
            for name, gradient in gradients.items()}
    worst = max(away, key=away.get)
    trunk = {name: e for name, e in away.items() if ".gate." not in name}
    print(f"    bf16, squared: logits {metric:.1e}, gradients worst {away[worst]:.1e} ({worst}), "
          f"without gates {max(trunk.values()):.1e}; loss {abs(loss / values['loss'] - 1):.1e}")
    wrong = [f"bf16 gradient of {name} is {e:.1e} away" for name, e in trunk.items()
             if not e <= BF16_GRADIENTS]
    if not metric <= BF16_LOGITS:
        wrong.append(f"bf16 logits are {metric:.1e} away")
    if not abs(loss / values["loss"] - 1) <= BF16_LOSS:
        wrong.append(f"the bf16 loss is {loss}, expected about {values['loss']}")
    return wrong


def check_cases(program, directory, names):
    data = prepare_data(program, directory)
    wrong = []
    for name in names:
        fields, steps = CASES[name]
        model = model_of(fields)
        print(name, flush=True)
        train(program, directory / name, data, model, steps is not None)
        tensors = write_input(directory / name / "input")
        for step in steps or [None]:
            wrong += [f"{name}, {sentence}"
                      for sentence in check_step(program, directory / name, model, step, tensors)]
    return wrong


def main(program, *names):
    with tempfile.TemporaryDirectory() as directory:
        wrong = check_cases(program, Path(directory), names or CASES)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
