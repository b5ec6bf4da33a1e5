"""Reads artifacts by docs/format.md, "Artifacts", alone."""

import dataclasses
import json
import re
import struct

import numpy as np

DTYPES = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
PARTS = {"mean": "F32", "sigma": "F32", "step": "F32", "forward": "F16", "inverse": "F16"}


@dataclasses.dataclass
class Tensor:
    mean: np.ndarray  # [groups, d]
    sigma: np.ndarray
    step: float
    forward: np.ndarray  # [groups, d, d]
    inverse: np.ndarray


@dataclasses.dataclass
class Artifact:
    metadata: dict
    tensors: dict  # name: Tensor

    @property
    def group_dim(self):
        return int(self.metadata["group_heads"]) * int(self.metadata["head_dim"])


def read(path):
    data = path.read_bytes()
    assert len(data) <= 2 ** 30
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__")
    assert metadata["kvcompress.artifact"] == "1"
    heads, head_dim, group_heads, layers = (int(metadata[key]) for key in ("heads", "head_dim", "group_heads", "layers"))
    assert heads % group_heads == 0
    dim = group_heads * head_dim
    shapes = {1: (heads // group_heads, dim), 2: (heads // group_heads, dim, dim)}
    parts = {}
    for name, entry in header.items():
        layer, kind, part = re.fullmatch(r"layer_(0|[1-9]\d*)_(key|value)\.(\w+)", name).groups()
        assert int(layer) < layers and entry["dtype"] == PARTS[part]
        assert tuple(entry["shape"]) == ((1,) if part == "step" else shapes[2 if part in ("forward", "inverse") else 1])
        raw = data[8 + length:][slice(*entry["data_offsets"])]
        values = np.frombuffer(raw, DTYPES[entry["dtype"]]).reshape(entry["shape"])
        parts.setdefault(f"layer_{layer}_{kind}", {})[part] = values.astype(np.float64)
    tensors = {}
    for name, found in parts.items():
        found.setdefault("inverse", found["forward"].transpose(0, 2, 1))
        tensors[name] = Tensor(**{**found, "step": float(found["step"][0])})
        assert (tensors[name].sigma > 0).all() and tensors[name].step > 0
        product = tensors[name].forward @ tensors[name].inverse
        assert abs(product - np.eye(dim)).max() <= 1 / 32
    return Artifact(metadata, tensors)
