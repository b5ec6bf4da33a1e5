"""Frames and block payloads, read by docs/format.md alone. Checksums are not looked at."""

import dataclasses
import math
import struct

from data_loss import require

# By their numbers, from 1 up: the name, and bits of an element.
_TYPES = [("F16", 16), ("BF16", 16), ("F32", 32), ("F8_E4M3", 8), ("F8_E5M2", 8), ("U8", 8), ("I8", 8), ("U16", 16), ("I16", 16),
          ("U32", 32), ("I32", 32), ("U64", 64), ("I64", 64), ("BOOL", 8), ("F64", 64), ("C64", 64), ("F8_E8M0", 8), ("F4", 4),
          ("F6_E2M3", 6), ("F6_E3M2", 6), ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8)]
DTYPES = {1 + place: name for place, (name, _) in enumerate(_TYPES)}
BITS = dict(_TYPES)


WORDS = ["fallback|", "transform(bits=", "transform(snr=", "transform(step=", ",trellis=false", ",sinks=", "false", ",theta=", ",rotary=",
         "interleaved", ",rotary_dims=", ",rotary_offset=", ",start=", ",artifact=", "rotated(bits=", ",mean=channel", "000", "00",
         "|zstd(level=", "|rans", ",scaling=linear,factor=", ",scaling=llama3,factor=", ",scaling=yarn,factor=", ",low=", ",high=",
         ",original="]


class CompactPayload(bytes):
    """A payload of a compact frame, whose table is another."""


@dataclasses.dataclass
class Frame:
    dtype: str
    shape: tuple
    codec: str
    blocks: list  # (payload, number of values) of each
    fingerprint: bytes = b""


def take_leb128(data):
    value = 0
    for i, byte in enumerate(data[:9]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            require(byte != 0 or i == 0, "a number is longer than it needs to be")
            return value, data[i + 1:]
    require(False, "a number does not end")


def words_of(dtype, shape):
    bits = math.prod(shape) * BITS[DTYPES[dtype]]
    if BITS[DTYPES[dtype]] >= 8:
        return math.prod(shape)
    require(bits % 8 == 0, "elements that do not fill their bytes")
    return bits // 8


def read_frame(frame):
    magic, version, flags, header_bytes = struct.unpack_from("<4sBBH", frame)
    require(magic == b"KVCF" and version in (1, 2, 3), "not a frame of version 1, 2 or 3")
    if version == 3:
        return read_extended(frame, flags, header_bytes)
    require(flags == 0, "flags in a version that has none")
    return (read_plain if version == 1 else read_compact)(frame, header_bytes)


def read_extended(frame, flags, header_bytes):
    require(flags in (2, 3), "flags that are not known, or none for a fingerprint")
    size = frame[8]
    require(1 <= size <= 64 and header_bytes >= 9 + size + 8, "a fingerprint of the wrong length")
    rest = (read_compact if flags & 1 else read_plain)(frame[:8] + frame[9 + size:], header_bytes - 1 - size)
    return dataclasses.replace(rest, fingerprint=frame[9:9 + size])


def read_plain(frame, header_bytes):
    dtype, rank, codec_bytes, block_elements = struct.unpack_from("<BBHI", frame, 8)
    require(header_bytes == 16 + 9 * rank + codec_bytes + 8, "the header has the wrong length")
    shape = struct.unpack_from(f"<{rank}Q", frame, 16)
    codec = frame[16 + 9 * rank:][:codec_bytes].decode("ascii")

    left, at, blocks = words_of(dtype, shape), header_bytes, []
    while left > 0:
        count = min(left, block_elements)
        payload_bytes, = struct.unpack_from("<I", frame, at)
        payload = frame[at + 12:at + 12 + payload_bytes]
        require(len(payload) == payload_bytes, "a block is cut off")
        blocks.append((payload, count))
        at += 12 + payload_bytes
        left -= count
    end = struct.pack(f"<4s{1 + len(blocks)}I", b"KVCE", len(blocks), *(len(payload) for payload, _ in blocks))
    require(frame[at:at + len(end)] == end, "the block table differs from the blocks")
    require(len(frame) == at + len(end) + 8, "the frame has the wrong length")
    return Frame(DTYPES[dtype], shape, codec, blocks)


def read_compact(frame, header_bytes):
    dtype, rank, rest = frame[8], frame[9], frame[10:header_bytes - 8]
    shape = ()
    for _ in range(rank):
        extent, rest = take_leb128(rest)
        require(extent <= 1 << 16, "an extent is above the limit")
        shape += (extent,)
    packed = rest[(rank + 1) // 2:]
    require(all(byte < 128 + len(WORDS) for byte in packed), "an unknown word")
    codec = "".join(chr(byte) if byte < 128 else WORDS[byte - 128] for byte in packed)

    count, at, blocks = words_of(dtype, shape), header_bytes, []
    require(count <= 1 << 16, "too many values")
    if count:
        end = at + 7 + int.from_bytes(frame[at:at + 3], "little")
        blocks.append((CompactPayload(frame[at + 7:end]), count))
        at = end
    require(frame[at:] == b"E", "the frame does not end where its block does")
    return Frame(DTYPES[dtype], shape, codec, blocks)


def read_table(payload, sizes, byte_codecs):
    """So many sizes, and where the table ends."""
    if not isinstance(payload, CompactPayload):
        return struct.unpack_from(f"<{sizes}I", payload), 4 * sizes
    table, rest = [], bytes(payload)
    for _ in range(sizes - 1):
        size, rest = take_leb128(rest)
        table.append(size)
    last = len(rest) - sum(table[byte_codecs::1 + byte_codecs])
    require(last >= 0, "the streams are longer than the payload")
    return [*table, last], len(payload) - len(rest)


def split_payload(payload, stream_count, byte_codecs=0):
    """Of each stream: its sizes, as the tensor codec made it and after each byte codec, and its bytes after them."""
    width = 1 + byte_codecs
    (table, at), streams = read_table(payload, stream_count * width, byte_codecs), []
    for sizes in zip(*[iter(table)] * width):
        require(list(sizes) == sorted(sizes, reverse=True), "a byte codec made a stream larger")
        streams.append((sizes, payload[at:at + sizes[-1]]))
        at += sizes[-1]
    require(at == len(payload), "the streams do not fill the payload")
    return streams
