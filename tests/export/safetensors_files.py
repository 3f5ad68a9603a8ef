"""Reading and writing safetensors files, in one piece or sharded, with numpy alone."""

import json

import numpy as np

NAMES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.int32): "I32"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


class BFloat16:
    """The upper halves of float32 numbers; made from numbers that need no rounding."""

    def __init__(self, values):
        self.bits = (values.astype("<f4").view("<u4") >> 16).astype("<u2")

    @staticmethod
    def cut(values):
        """`values` with the bits that bf16 lacks set to 0."""
        return (values.astype("<f4").view("<u4") & 0xFFFF0000).astype("<u4").view("<f4")


def read_file(path):
    """Tensors of one file as float64."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__", {}).get("format", "pt") == "pt"
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"]).astype(np.float64)
    return tensors


def read_model(folder):
    """Tensors of model.safetensors, or of all files that the index names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return read_file(folder / "model.safetensors")
    tensors = {}
    weight_map = json.loads(index.read_text())["weight_map"]
    for file in sorted(set(weight_map.values())):
        inside = read_file(folder / file)
        assert sorted(inside) == sorted(n for n, f in weight_map.items() if f == file)
        tensors.update(inside)
    return tensors


def write_file(path, tensors):
    header, data = {}, b""
    for name, values in tensors.items():
        bits = values.bits if isinstance(values, BFloat16) else values
        dtype = "BF16" if isinstance(values, BFloat16) else NAMES[values.dtype]
        offsets = [len(data), len(data) + bits.nbytes]
        header[name] = {"dtype": dtype, "shape": bits.shape, "data_offsets": offsets}
        data += bits.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_model(folder, tensors, files):
    """In `files` files, tensors dealt out in turn; one file has no index."""
    if files == 1:
        write_file(folder / "model.safetensors", tensors)
        return
    names = [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
    weight_map = {name: names[i % files] for i, name in enumerate(tensors)}
    for file in names:
        write_file(folder / file, {n: t for n, t in tensors.items() if weight_map[n] == file})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
