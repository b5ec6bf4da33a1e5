"""Streams of byte codecs in what the command line writes, decoded by code that was written from docs/format.md alone."""

import random
import struct

import arithmetic_decoder
import cabac_decoder
import huffman_decoder
import numpy as np
import pytest
import rans_decoder
import smallest_decoder
from cli_helpers import File, run_ok, write_file
from frame_reader import read_frame, split_payload

DECODERS = {"arithmetic": arithmetic_decoder, "cabac": cabac_decoder, "huffman": huffman_decoder, "rans": rans_decoder,
            "smallest": smallest_decoder}


def payloads(frame):
    return [payload for payload, _ in read_frame(frame).blocks]


def decoded_streams(frame, stream_count, decoder=rans_decoder):
    """The streams of all blocks, one after the other for each place, and how many of them were coded."""
    joined, coded = [b""] * stream_count, 0
    for payload in payloads(frame):
        for place, ((raw_size, *_), data) in enumerate(split_payload(payload, stream_count, byte_codecs=1)):
            if len(data) < raw_size:
                data, coded = decoder.decode(data, raw_size), coded + 1
            joined[place] += data
    return joined, coded


def compress(bin_dir, tmp_path, source, codec):
    run_ok(bin_dir, "-input", source, "-output", tmp_path / "packed", "-codec", codec)
    return File(tmp_path / "packed")


def test_a_second_decoder_reads_real_caches(bin_dir, sample, tmp_path):
    packed, original = compress(bin_dir, tmp_path, sample, "raw|rans"), File(sample)
    for name, _ in original.entries:
        (values,), coded = decoded_streams(packed.bytes[name], 1)
        assert values == original.bytes[name]
        assert coded > 0, name
        assert len(packed.bytes[name]) < 0.8 * len(values)


def test_a_second_decoder_reads_the_streams_of_int4(bin_dir, sample, tmp_path):
    plain = compress(bin_dir, tmp_path, sample, "int4(group=64)")
    packed = compress(bin_dir, tmp_path, sample, "int4(group=64)|rans")
    for name, _ in plain.entries:
        expected = b"", b""
        for payload in payloads(plain.bytes[name]):
            scales_size, codes_size = struct.unpack_from("<2I", payload, 0)
            expected = expected[0] + payload[8:8 + scales_size], expected[1] + payload[8 + scales_size:]
            assert len(payload) == 8 + scales_size + codes_size
        assert tuple(decoded_streams(packed.bytes[name], 2)[0]) == expected


@pytest.mark.parametrize("bits, count", [([0x3c00] * 64, 50_000), ([0x3c00, 0x0001], 9_001), (range(0, 65536, 511), 70_001)])
def test_a_second_decoder_reads_few_and_many_symbols(bin_dir, tmp_path, bits, count):
    choices = np.array(list(bits), np.uint16)
    weights = 0.7 ** np.arange(len(choices))
    drawn = np.random.default_rng(3).choice(choices, count, p=weights / weights.sum())
    source = write_file(tmp_path / "input", {"layer_0_key": drawn.view(np.float16)})
    (values,), coded = decoded_streams(compress(bin_dir, tmp_path, source, "raw|rans").bytes["layer_0_key"], 1)
    assert values == drawn.tobytes()
    assert coded == 1


def test_the_second_decoder_refuses_damage(bin_dir, sample, tmp_path):
    """Else its word would be worth little: most flipped bits leave a state or a word over."""
    packed = compress(bin_dir, tmp_path, sample, "int4(group=64)|rans")
    _, ((raw_size, _), data) = split_payload(payloads(packed.bytes["layer_10_key"])[0], 2, byte_codecs=1)
    assert len(data) < raw_size
    refused, chance = 0, random.Random(7)
    for _ in range(100):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            assert rans_decoder.decode(bytes(damaged), raw_size) != rans_decoder.decode(data, raw_size)
        except rans_decoder.DataLoss:
            refused += 1
    assert refused > 90


OTHERS = pytest.mark.parametrize("codec", ["arithmetic", "cabac", "huffman", "smallest"])


@OTHERS
def test_second_decoders_read_a_part_of_a_real_cache(bin_dir, sample, tmp_path, codec):
    name = File(sample).entries[0][0]
    exponents = np.frombuffer(File(sample).bytes[name], np.uint8)[1::2]
    for count in (30_002, 3_002):  # four lanes, and one
        source = write_file(tmp_path / "input", {"layer_0_key": exponents[:count].copy().view(np.float16)})
        packed = compress(bin_dir, tmp_path, source, f"raw|{codec}").bytes["layer_0_key"]
        (values,), coded = decoded_streams(packed, 1, DECODERS[codec])
        assert values == exponents[:count].tobytes()
        assert coded == 1


@OTHERS
@pytest.mark.parametrize("bits, count", [([0x3c00] * 64, 10_000), ([0x3c00, 0x0001], 1_001), (range(0, 65536, 511), 9_001)])
def test_second_decoders_read_few_and_many_symbols(bin_dir, tmp_path, codec, bits, count):
    choices = np.array(list(bits), np.uint16)
    weights = 0.7 ** np.arange(len(choices))
    drawn = np.random.default_rng(3).choice(choices, count, p=weights / weights.sum())
    source = write_file(tmp_path / "input", {"layer_0_key": drawn.view(np.float16)})
    packed = compress(bin_dir, tmp_path, source, f"raw|{codec}").bytes["layer_0_key"]
    (values,), coded = decoded_streams(packed, 1, DECODERS[codec])
    assert values == drawn.tobytes()
    assert coded == 1


@OTHERS
def test_second_decoders_refuse_truncation(bin_dir, tmp_path, codec):
    drawn = np.random.default_rng(4).choice(np.array([0x3c00, 0x4000, 0x4200], np.uint16), 1000)
    source = write_file(tmp_path / "input", {"layer_0_key": drawn.view(np.float16)})
    packed = compress(bin_dir, tmp_path, source, f"raw|{codec}").bytes["layer_0_key"]
    ((raw_size, _), data), = split_payload(payloads(packed)[0], 1, byte_codecs=1)
    assert DECODERS[codec].decode(data, raw_size) == drawn.tobytes()
    for keep in range(2, len(data), 7):
        with pytest.raises(rans_decoder.DataLoss):
            DECODERS[codec].decode(data[:keep], raw_size)
