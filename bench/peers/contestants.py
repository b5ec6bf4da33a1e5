"""Codecs that take turns in `measure.py`, each under the name that its row has: functions of the tensors that return
what the codec does with all of them.

A tensor is a C-contiguous array of uint16, the bits of BF16 values, with the axes (batch, heads, tokens, channels).
What a contestant imports is that of its own environment.
"""

import dataclasses
import typing

import numpy as np

GROUP = 64  # values that share a scale, of all that quantize to 4 bits


@dataclasses.dataclass(frozen=True)
class Codec:
    encode: typing.Callable  # tensor -> what it becomes
    decode: typing.Callable  # what it becomes, tensor to write to or to be like -> array of its bits
    size: typing.Callable  # what it becomes -> bytes, with everything that decoding needs
    version: str


def copy():
    """memcpy: what moving the bytes costs."""
    return Codec(np.copy, lambda coded, tensor: np.copy(coded), lambda coded: coded.nbytes, np.__version__)


def kvcompress(spec):
    """This project's codec in the process, on one thread."""
    import kvcompress
    import ml_dtypes

    client = kvcompress.LocalClient(threads=1)
    out = {}

    def decode(frame, tensor):
        into = out.setdefault(tensor.shape, np.empty(tensor.shape, ml_dtypes.bfloat16))
        return client.decompress(frame, out=into).view(np.uint16)

    return Codec(
        lambda tensor: client.compress(tensor.view(ml_dtypes.bfloat16), spec, name="layer_1_key"),
        decode,
        lambda frame: len(frame.data),
        kvcompress.__version__,
    )


def zstandard(level):
    import zstandard

    press, unpress = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return Codec(
        press.compress,
        lambda coded, tensor: np.frombuffer(unpress.decompress(coded), np.uint16),
        len,
        zstandard.__version__,
    )


def lz4():
    import lz4.block

    return Codec(
        lz4.block.compress,
        lambda coded, tensor: np.frombuffer(lz4.block.decompress(coded), np.uint16),
        len,
        lz4.__version__,
    )


def blosc2():
    """Bytes of one significance together, then zstd, level 5, as its documentation advises for floats."""
    import blosc2

    blosc2.set_nthreads(1)

    def encode(tensor):
        return blosc2.compress2(tensor, typesize=2, filters=[blosc2.Filter.SHUFFLE], codec=blosc2.Codec.ZSTD, clevel=5)

    return Codec(
        encode, lambda coded, tensor: np.frombuffer(blosc2.decompress2(coded), np.uint16), len, blosc2.__version__
    )


def zipnn():
    import importlib.metadata

    import zipnn

    coder = zipnn.ZipNN(bytearray_dtype="bfloat16", threads=1)
    return Codec(
        lambda tensor: coder.compress(tensor.tobytes()),
        lambda coded, tensor: np.frombuffer(coder.decompress(coded), np.uint16),
        len,
        importlib.metadata.version("zipnn"),
    )


def openzl():
    """Exponents apart from signs and fractions, as OpenZL's profile of BF16 does, each entropy-coded."""
    import importlib.metadata

    import openzl.ext as zl

    compressor = zl.Compressor()
    compressor.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
    graph = zl.nodes.BFloat16Deconstruct()(
        compressor, zl.graphs.Compress()(compressor), zl.graphs.Entropy()(compressor)
    )
    compressor.select_starting_graph(graph)

    def encode(tensor):
        press = zl.CCtx()
        press.ref_compressor(compressor)
        press.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        return press.compress([zl.Input(zl.Type.Numeric, tensor.reshape(-1))])

    def decode(coded, tensor):
        return zl.DCtx().decompress(coded)[0].content.as_nparray().view(np.uint16)

    return Codec(encode, decode, len, importlib.metadata.version("openzl"))


def quanto():
    """What transformers' quantized cache calls for 4 bits by default."""
    import importlib.metadata

    import torch
    from optimum.quanto import MaxOptimizer, qint4, quantize_weight

    torch.set_num_threads(1)

    def encode(tensor):
        values = torch.from_numpy(tensor.view(np.int16)).view(torch.bfloat16).reshape(-1, tensor.shape[-1])
        scale, shift = MaxOptimizer()(values, qint4, 0, GROUP)
        return quantize_weight(values, qint4, 0, scale, shift, GROUP, optimized=False)

    def size(coded):
        packed = coded._data._data if hasattr(coded._data, "_data") else coded._data
        return sum(part.numel() * part.element_size() for part in (packed, coded._scale, coded._shift))

    return Codec(
        encode,
        lambda coded, tensor: coded.dequantize().view(torch.int16).numpy().view(np.uint16),
        size,
        importlib.metadata.version("optimum-quanto"),
    )


def hqq():
    """Half-quadratic quantization without its iterations: the speed of a cache, not of weights."""
    import importlib.metadata

    import torch
    from hqq.core.quantize import Quantizer

    torch.set_num_threads(1)

    def encode(tensor):
        values = torch.from_numpy(tensor.view(np.int16)).view(torch.bfloat16)
        return Quantizer.quantize(
            values,
            nbits=4,
            channel_wise=True,
            group_size=GROUP,
            optimize=False,
            axis=1,
            device="cpu",
            compute_dtype=torch.bfloat16,
            view_as_float=False,
        )

    def size(coded):
        packed, meta = coded
        return sum(part.numel() * part.element_size() for part in (packed, meta["scale"], meta["zero"]))

    def decode(coded, tensor):
        return Quantizer.dequantize(*coded).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)

    return Codec(encode, decode, size, importlib.metadata.version("hqq"))


@dataclasses.dataclass(frozen=True)
class Contestant:
    make: typing.Callable  # -> Codec
    packages: tuple[str, ...]  # of its environment, besides what the tests' has; empty: the tests' own
    exact: bool  # whether what is decoded must equal the tensor


CONTESTANTS = {
    "memcpy": Contestant(copy, (), True),
    **{
        f"kvcompress {spec}": Contestant(lambda spec=spec: kvcompress(spec), (), exact)
        for spec, exact in [
            ("int4(group=64)", False),
            ("rotated(bits=4)", False),
            ("kv4", False),
            ("kv3", False),
            ("int4(group=64)|rans", False),
            ("lossless", True),
            ("lossless-fast", True),
        ]
    },
    "quanto int4": Contestant(quanto, ("optimum-quanto==0.2.7",), False),
    "hqq int4": Contestant(hqq, ("hqq==0.2.8.post1",), False),
    "zipnn": Contestant(zipnn, ("zipnn==0.5.4",), True),
    "openzl bf16": Contestant(openzl, ("openzl==0.3.0",), True),
    "blosc2 zstd -5": Contestant(blosc2, ("blosc2==4.14.1",), True),
    **{f"zstd -{level}": Contestant(lambda level=level: zstandard(level), (), True) for level in (1, 3)},
    "lz4": Contestant(lz4, (), True),
}
