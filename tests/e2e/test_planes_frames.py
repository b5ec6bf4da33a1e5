"""Frames of `planes` in what the command line writes, decoded by code that was written from docs/format.md alone."""

import pathlib
import struct
import sys

import numpy as np
import pytest

from cli_helpers import File, run_ok, write_file
from test_byte_codecs import decoded_streams, payloads

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "format"))
import planes_decoder  # noqa: E402


def plain_streams(payload):
    sizes = struct.unpack_from("<5I", payload, 0)
    at, streams = 20, []
    for size in sizes:
        streams.append(payload[at:at + size])
        at += size
    assert at == len(payload)
    return streams


@pytest.mark.parametrize("codec", ["planes", "planes(split=fields,delta=token)", "planes(split=bytes,delta=xor)"])
def test_a_second_decoder_reads_real_caches(bin_dir, sample, tmp_path, codec):
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed", "-codec", codec)
    packed, original = File(tmp_path / "packed"), File(sample)
    modes = set()
    for name, _ in original.entries:
        values = b""
        for payload in payloads(packed.bytes[name]):
            streams = plain_streams(payload)
            modes.add(tuple(streams[0][:2]))
            values += planes_decoder.decode(streams, 2)
        assert values == original.bytes[name], name
    if codec != "planes":
        assert modes == {(1, 1) if "token" in codec else (0, 2)}


def test_a_second_decoder_reads_what_lossless_makes_of_any_bits(bin_dir, tmp_path):
    bits = np.random.default_rng(3).integers(0, 1 << 32, 5_000, np.uint64).astype(np.uint32)
    bits[::3] &= 0xff80_0001  # infinities, NaN, subnormals, zeros of both signs
    source = write_file(tmp_path / "in", {"t": bits.view(np.float32)})
    run_ok(bin_dir, "-input", source, "-output", tmp_path / "packed", "-codec", "lossless")
    streams, _ = decoded_streams(File(tmp_path / "packed").bytes["t"], 5)
    assert planes_decoder.decode(streams, 4) == bits.tobytes()
