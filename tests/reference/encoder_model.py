"""What any encoder must make of a tensor, in terms of the values that come back: written from docs/format.md alone."""

import math

import int_decoder
import ml_dtypes
import numpy as np
import rotated_decoder
from chain_decoder import undo_byte_codecs
from element_types import KINDS
from frame_reader import read_frame
from spec_reader import read_spec
from uniform_decoder import DTYPES, F8, to_f8
from uniform_encoder import magnitude_bits, quantize_blocknorm, quantize_quant


HEADS = 3  # the role of an axis
BLOCK = 1 << 17  # values of a block


class Refused(Exception):
    """The chain cannot hold a value."""


class AnyOf(Exception):
    """The document leaves the values that come back to the encoder."""


def kind_name(values):
    return next(name for name, kind in KINDS.items() if kind == values.dtype)


def round_toward_zero(number, dtype):
    """The largest value of the dtype that is not above a positive real number."""
    kind = KINDS[dtype]
    largest = float(ml_dtypes.finfo(kind).max)
    if number >= largest:
        return kind.type(largest)
    value = np.array([np.float32(number)]).astype(kind)
    if float(value[0]) > number:
        value = (value.view(f"<u{kind.itemsize}") - 1).astype(f"<u{kind.itemsize}").view(kind)
    return value[0]


def clamp(options, values):
    values = values.copy()
    limit = round_toward_zero(float(options["limit"]), kind_name(values))
    wide = values.astype(np.float32)
    infinite = np.isinf(wide)
    values[np.isnan(wide)] = 0
    above = np.abs(wide) > np.float32(limit)
    values[above] = np.copysign(np.float32(limit), wide[above]).astype(values.dtype)
    finite = np.abs(values[~infinite].astype(np.float32))
    largest = finite.max(initial=np.float32(0))
    values[infinite] = np.copysign(largest, wide[infinite]).astype(values.dtype)
    return values


def clip(options, values):
    if len(values) == 0:
        return values
    bits = magnitude_bits(values)
    k = max(1, math.ceil(float(options["percentile"]) * len(values) / 100))
    threshold = np.sort(bits)[k - 1]
    width = values.dtype.itemsize
    sign = values.view(f"<u{width}").astype(np.uint64) & np.uint64(1 << (8 * width - 1))
    changed = (bits > threshold) & ~np.isnan(values.astype(np.float32))
    return np.where(changed, sign | threshold, sign | bits).astype(f"<u{width}").view(values.dtype)


def sparse(options, values):
    values = values.copy()
    drop = math.floor(float(options["ratio"]) * len(values))
    values[np.argsort(magnitude_bits(values), kind="stable")[:drop]] = 0
    return values


def require_magnitude(values, largest):
    with np.errstate(invalid="ignore"):
        if not (np.abs(values.astype(np.float64)) <= largest).all():
            raise Refused


def require_held(stage, values):
    """Refused for values that the tensor codec does not take."""
    largest = float(np.finfo(np.float32).max)
    if stage.name == "quant":
        require_magnitude(values, largest if stage.options.get("symmetric", "true") == "true" else largest / 4)
    elif stage.name == "blocknorm":
        require_magnitude(values, largest)
    elif stage.name == "rotated":
        require_magnitude(values, rotated_decoder.largest_magnitude(stage.options))
    elif stage.name.startswith("int"):
        require_magnitude(values, int_decoder.LARGEST_MAGNITUDE)


def quantize(stage, values, row, sinks=None):
    """The values of a block that come back from a tensor codec without chains of its own. `sinks` are those of `rotated`."""
    require_held(stage, values)
    match stage.name:
        case "raw" | "planes" | "exact":
            return values
        case "bounded":
            raise AnyOf
        case "rotated" if stage.options.get("mean") == "channel":
            raise AnyOf
    if values.dtype in F8.values():
        return to_f8(quantize(stage, values.astype(np.float16), row, sinks), kind_name(values))
    match stage.name:
        case "quant":
            return quantize_quant(stage.options, values, row)
        case "blocknorm":
            return quantize_blocknorm(stage.options, values, row)
        case "rotated":
            return rotated_decoder.quantize(stage.options, values, row, sinks)
    return int_decoder.quantize(stage.name, stage.options, values)


def heads_of(stage, heads, first, count):
    """Which of a block's values belong to the heads of each range, and the range's chain."""
    stride, number = heads
    head = (first + np.arange(count)) // stride % number
    starts = [int(label.split("-")[0]) for label in stage.options]
    owner = np.searchsorted(starts, head, side="right") - 1
    return [(owner == place, chain) for place, chain in enumerate(stage.options.values())]


def quantize_heads(stage, values, row, heads, first, stream):
    """As quantize. A range whose payload would not be smaller than its values is kept as it is: the stream tells."""
    back = np.empty_like(values)
    ranges = heads_of(stage, heads, first, len(values))
    for (mine, chain), size in zip(ranges, np.frombuffer(stream, "<u4", len(ranges), 24)):
        part = values[mine]
        after = part
        for inner in chain.transforms:
            after = transform(inner, after, BLOCK)
        back[mine] = part if size == part.nbytes else quantize(chain.codec, after, row)
    return back


def order(values):
    """Numbers by which values compare, -0 before +0."""
    wide = values.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(wide < 0, -(wide & 0x7FFFFFFF) - 1, wide)


def clip_to(values, low, high):
    """NaN stays; a bound is of the values' dtype."""
    low, high = np.array([low], values.dtype), np.array([high], values.dtype)
    clipped = np.where(order(values) < order(low), low, np.where(order(values) > order(high), high, values))
    return np.where(np.isnan(values.astype(np.float32)), values, clipped).astype(values.dtype)


def clip_range(options, values):
    finite = values[np.isfinite(values.astype(np.float32))]
    if len(finite) == 0:
        return values
    ranked = finite[np.argsort(order(finite), kind="stable")]
    low, high = (ranked[max(1, math.ceil(float(options[end]) * len(ranked) / 100)) - 1] for end in ("low", "high"))
    return clip_to(values, low, high)


def clip_sigma(options, values):
    finite = values[np.isfinite(values.astype(np.float32))].astype(np.float64)
    if len(finite) == 0:
        return values
    mean = sum_in_order(finite) / len(finite)
    spread = float(options["sigma"]) * math.sqrt(sum_in_order((finite - mean) ** 2) / len(finite))
    largest = float(ml_dtypes.finfo(values.dtype).max)
    low, high = (np.array(min(max(bound, -largest), largest)).astype(np.float32).astype(values.dtype)
                 for bound in (mean - spread, mean + spread))
    return clip_to(values, low, high)


def sum_in_order(terms):
    return float(np.cumsum([0.0, *terms])[-1])


def truncate(options, values):
    width = values.dtype.itemsize
    left_out = max(0, ml_dtypes.finfo(values.dtype).nmant - int(options["mantissa"]))
    bits = values.view(f"<u{width}")
    shorter = (bits >> left_out << left_out).astype(bits.dtype)
    return np.where(np.isnan(values.astype(np.float32)), bits, shorter).view(values.dtype)


def cast(options, values):
    if values.dtype != np.float32:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(DTYPES[options["to"].upper()]).astype(np.float32)
    finite = np.isfinite(values)
    if not np.isfinite(narrow[finite]).all():
        raise Refused
    return np.where(finite, narrow, values)


def fallback(options, values):
    return values


WHOLE = {"fallback": fallback, "clip": clip, "clip_range": clip_range, "clip_sigma": clip_sigma, "truncate": truncate, "cast": cast, "sparse": sparse}


def transform(stage, values, block_elements):
    """The values that a transform makes of a tensor's, those that it drops as +0."""
    if stage.name == "clamp":
        blocks = [clamp(stage.options, values[at:at + block_elements]) for at in range(0, len(values), block_elements)]
        return np.concatenate(blocks) if blocks else values
    return WHOLE[stage.name](stage.options, values)


def heads_axis(shape, axes):
    """Of a tensor with one axis of heads: values from a head to the next, and the number of heads."""
    axis = axes.index(HEADS)
    return max(1, math.prod(shape[axis + 1:])), max(1, shape[axis])


def require_block_taken(codec, values, heads, first):
    """Refused for values, from the tensor's value `first` on, that a tensor codec must refuse."""
    if codec.name != "heads":
        require_held(codec, values)
        return
    for mine, inner in heads_of(codec, heads, first, len(values)):
        part = values[mine]
        for stage in inner.transforms:
            part = transform(stage, part, BLOCK)
        if not any(stage.name == "fallback" for stage in inner.transforms):
            require_held(inner.codec, part)


def require_taken(chain, values, shape, axes):
    """Refused for a tensor that the chain, a read spec, must refuse."""
    for stage in chain.transforms:
        values = transform(stage, values, BLOCK)
    if chain.codec.name == "heads" and HEADS not in axes:
        raise Refused
    if not any(stage.name == "fallback" for stage in chain.transforms):
        require_block_taken(chain.codec, values, heads_axis(shape, axes) if chain.codec.name == "heads" else None, 0)


def block_after(chain, payload, after, values, row, heads, sinks, first):
    """The values of a block that come back; `after` has the tensor as each transform made it, and `values` as the last."""
    indices = np.arange(first, first + len(values))
    streams = undo_byte_codecs(chain, payload)
    stored = False
    for stage, side, made in zip(chain.transforms, streams, after):
        if side and stage.name == "fallback":
            stored = True
        elif side:
            kept = np.unpackbits(np.frombuffer(side, np.uint8), bitorder="little", count=len(indices)).astype(bool)
            assert not magnitude_bits(made[indices[~kept]]).any(), "sparse drops what the document keeps"
            assert not magnitude_bits(after[-1][indices[~kept]]).any(), "zeros are left out that a transform changes"
            indices = indices[kept]
    inner = values[indices - first]
    if stored:
        assert_refused(chain, inner, heads, first)
    elif chain.codec.name == "heads":
        inner = quantize_heads(chain.codec, inner, row, heads, first, streams[-1])
    else:
        inner = quantize(chain.codec, inner, row, sinks)
    whole = np.zeros(len(values), values.dtype)
    whole[indices - first] = inner
    return whole


def assert_refused(chain, values, heads, first):
    """That the chain's tensor codec must refuse these values of a block, which a `fallback` has stored."""
    try:
        require_block_taken(chain.codec, values, heads, first)
    except Refused:
        return
    raise AssertionError("stored, where the document's codec takes all values")


def values_after(frame, values, shape, axes):
    """The values that come back of a tensor, flat. AnyOf where the document leaves them to the encoder. What it leaves
    to the encoder in the rest, as which values a `sparse` hands on as a list, is read from the frame."""
    read = read_frame(frame)
    chain = read_spec(read.codec)
    after = []
    for stage in chain.transforms:
        values = transform(stage, values, BLOCK)
        after.append(values)
    row = shape[-1] if shape else 1
    heads = heads_axis(shape, axes) if chain.codec.name == "heads" else None
    back, at = [], 0
    for payload, count in read.blocks:
        sinks = None
        if chain.codec.name == "rotated":
            sinks = rotated_decoder.sinks_at(rotated_decoder.place_of(chain.codec.options, shape, list(axes), at), count, row)
        back.append(block_after(chain, payload, after, values[at:at + count], row, heads, sinks, at))
        at += count
    return np.concatenate(back) if back else values
