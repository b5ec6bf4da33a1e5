"""Tensors, and chains to send them through, drawn at random: each number of a draw gives one, the same everywhere."""

import dataclasses
import math

import numpy as np
from element_types import KINDS, OPAQUE, values_in

ROLES = {"batch": 1, "layer": 2, "heads": 3, "seq": 4, "head_dim": 5}
BLOCK = 1 << 17
VALUES = [name for name in KINDS if name not in OPAQUE]


@dataclasses.dataclass
class Draw:
    name: str
    dtype: str
    shape: tuple
    axes: list
    spec: str
    values: np.ndarray  # flat


def real(chance, low, high):
    """A number of few digits, so that specs stay readable."""
    return f"{chance.uniform(low, high):.3g}"


def draw_int(chance):
    return f"int{chance.choice([2, 3, 4, 5, 6, 8])}(group={chance.choice([32, 64, 128])})"


def draw_quant(chance):
    options = {"bits": chance.integers(2, 13), "per": chance.choice(["block", "channel", "token", "group"])}
    if chance.random() < 0.7:
        options["group"] = 1 << chance.integers(5, 13)
    if chance.random() < 0.5:
        options["symmetric"] = "false"
    if chance.random() < 0.4:
        options["outliers"] = real(chance, 0, 0.1)
    if chance.random() < 0.3:
        options["layout"] = "bytes"
    return "quant(" + ",".join(f"{key}={value}" for key, value in options.items()) + ")"


def draw_blocknorm(chance):
    return f"blocknorm(block={chance.choice([32, 64, 128, 256])},topk={real(chance, 0, 1)},bits={chance.integers(2, 13)})"


def draw_scaling(chance):
    kind = chance.choice(["linear", "llama3", "yarn"])
    options = f",scaling={kind},factor={real(chance, 1, 40)}"
    if kind == "yarn" or (kind == "llama3" and chance.random() < 0.5):
        options += f",low={real(chance, 0.1, 3)},high={real(chance, 4, 50)},original={chance.integers(1, 10000)}"
    return options


def draw_rotated(chance):
    options = f"bits={chance.integers(2, 5)}"
    if chance.random() < 0.5:
        options += f",sinks={chance.integers(0, 17)}"
    if chance.random() < 0.2:
        options += f",start={chance.integers(0, 17)}"
    if chance.random() < 0.4:
        options += ",mean=channel"
        if chance.random() < 0.6:
            options += f",theta={chance.choice([2, 10000, 500000])}"
            if chance.random() < 0.5:
                options += draw_scaling(chance)
        if chance.random() < 0.3:
            options += ",rotary=interleaved"
        if chance.random() < 0.3:
            options += f",rotary_dims={chance.integers(0, 70)}"
    return f"rotated({options})"


def draw_planes(chance):
    return f"planes(split={chance.choice(['auto', 'bytes', 'fields', 'coded'])},delta={chance.choice(['auto', 'none', 'token', 'xor'])})"


def draw_bounded(chance):
    bounds = []
    if chance.random() < 0.7:
        bounds.append(f"min_snr={real(chance, 5, 70)}")
    if chance.random() < 0.3:
        bounds.append(f"min_token_snr={real(chance, 5, 70)}")
    if chance.random() < 0.3:
        bounds.append(f"max_error={real(chance, 0.001, 2)}")
    if chance.random() < 0.3 or not bounds:
        bounds.append(f"min_cosine={real(chance, 0.9, 1)}")
    return "bounded(" + ",".join(bounds) + ")"


CODECS = [draw_int, draw_int, draw_quant, draw_quant, draw_blocknorm, draw_planes, draw_bounded, lambda chance: "raw", lambda chance: "exact"]
WHOLE_CODECS = [*CODECS, draw_rotated]  # with those that cannot stand within another

TRANSFORMS = [
    lambda chance: f"sparse(ratio={real(chance, 0, 1)})",
    lambda chance: f"clip(percentile={real(chance, 0, 100) if chance.random() < 0.3 else real(chance, 90, 100)})",
    lambda chance: "clip_range(low={},high={})".format(*sorted([float(real(chance, 0, 100)), float(real(chance, 0, 100))])),
    lambda chance: f"clip_sigma(sigma={real(chance, 0, 5)})",
    lambda chance: f"clamp(limit={10 ** chance.uniform(-6, 6):.3g})",
    lambda chance: f"truncate(mantissa={chance.integers(0, 24)})",
    lambda chance: f"cast(to={chance.choice(['f16', 'bf16'])})",
]
PER_VALUE = TRANSFORMS[-3:]  # those that do not look at the whole tensor
BYTE_CODECS = [
    lambda chance: "rans",
    lambda chance: "huffman",
    lambda chance: "smallest",
    lambda chance: f"lz4(level={chance.integers(-64, 13)})",
    lambda chance: f"zstd(level={chance.integers(-7, 6)})",
    lambda chance: "stored",
]
SLOW_BYTE_CODECS = [lambda chance: "arithmetic", lambda chance: "cabac"]


def draw_heads(chance, heads):
    """A chain for each of up to three ranges."""
    ends = sorted(chance.choice(heads - 1, min(heads - 1, chance.integers(0, 3)), replace=False)) if heads > 1 else []
    parts, first = [], 0
    for end in ends:
        parts.append((f"{first}-{end}" if end > first else f"{first}", end))
        first = end + 1
    parts.append((f"{first}-", heads))
    return "heads(" + ",".join(f"{label}:{draw_chain(chance, 64, nested=True)}" for label, _ in parts) + ")"


def draw_chain(chance, count, heads=0, nested=False):
    transforms = []
    if chance.random() < 0.35:
        choice = PER_VALUE if nested else TRANSFORMS
        transforms = [draw(chance) for draw in chance.choice(choice, chance.integers(1, 3))]
    codec = draw_heads(chance, heads) if heads and chance.random() < 0.5 else chance.choice(CODECS if nested else WHOLE_CODECS)(chance)
    if codec.startswith(("heads", "rotated")):
        transforms = []
    if not nested and chance.random() < 0.1:
        transforms.append("fallback")
    byte_codecs = []
    if chance.random() < 0.5:
        fast = count > 4096 or chance.random() < 0.9
        byte_codecs = [draw(chance) for draw in chance.choice(BYTE_CODECS if fast else SLOW_BYTE_CODECS, chance.integers(1, 3))]
    return "|".join([*transforms, codec, *byte_codecs])


def draw_shape(chance):
    """Shape and the roles of its axes."""
    kind = chance.random()
    if kind < 0.55:  # a cache, its axes in one of the usual orders
        extents = {"batch": chance.integers(1, 3), "heads": chance.integers(1, 5), "seq": chance.integers(0, 70),
                   "head_dim": chance.choice([1, 8, 33, 64, 80, 128])}
        order = [["batch", "heads", "seq", "head_dim"], ["batch", "seq", "heads", "head_dim"], ["batch", "heads", "head_dim", "seq"],
                 ["heads", "seq", "head_dim"], ["seq", "head_dim"]][chance.integers(0, 5)]
        return tuple(int(extents[role]) for role in order), [ROLES[role] for role in order]
    if kind < 0.57:  # several blocks, which begin and end anywhere
        heads, dim = int(chance.integers(1, 4)), int(chance.choice([64, 80, 96, 128]))
        return (1, heads, BLOCK // (heads * dim) + int(chance.integers(1, 900)), dim), [1, 3, 4, 5]
    rank = int(chance.integers(0, 6))
    return tuple(int(extent) for extent in chance.integers(0 if chance.random() < 0.1 else 1, 12, rank)), [0] * rank


def draw_values(chance, dtype, shape, axes):
    """Values of one of many distributions, flat."""
    count = values_in(math.prod(shape), dtype)
    kind = KINDS[dtype]
    choice = chance.random()
    with np.errstate(over="ignore"):
        if choice < 0.1 or dtype in OPAQUE:  # any bits
            return chance.integers(0, 256, count * kind.itemsize, np.uint8).view(kind)
        values = chance.standard_normal(count)
        if choice < 0.3:
            values = chance.standard_t(2, count)
        elif choice < 0.4:
            values = np.full(count, chance.standard_normal())
        elif choice < 0.5:
            values = np.round(values * chance.choice([1, 4]))
        elif choice < 0.7 and len(shape) > 1 and count > 0:  # channels with constants, as keys have them
            values = values.reshape(-1, shape[-1]) + chance.standard_normal(shape[-1]) ** 3 * chance.choice([1, 30, 300])
        values = values.reshape(-1) * 10.0 ** chance.choice([-7, -3, 0, 0, 0, 0, 2, 5])
        if chance.random() < 0.15:
            values[chance.random(count) < chance.random()] = 0
        values = values.astype(np.float32).astype(kind)
    if len(shape) > 1 and count and chance.random() < 0.2:  # rows that repeat, as values of the first layer do
        rows = values.reshape(-1, shape[-1])
        again = chance.random(len(rows)) < chance.random()
        rows[again] = rows[chance.integers(0, len(rows), int(again.sum()))]
    if chance.random() < 0.05 and count:
        values[chance.integers(0, count, 3)] = np.array([np.nan, np.inf, -np.inf]).astype(kind)
    return values


def draw(number):
    chance = np.random.default_rng(number)
    dtype = str(chance.choice(list(OPAQUE) if chance.random() < 0.1 else VALUES))
    shape, axes = draw_shape(chance)
    if values_in(math.prod(shape), dtype) is None:
        shape = (*shape[:-1], 4 * shape[-1]) if shape else (4,)
        axes = axes or [0]
    heads = shape[axes.index(ROLES["heads"])] if ROLES["heads"] in axes else 0
    name = chance.choice(["layer_0_key", "layer_3_value", "t"])
    spec = draw_chain(chance, math.prod(shape), heads)
    return Draw(str(name), dtype, shape, axes, spec, draw_values(chance, dtype, shape, axes))
