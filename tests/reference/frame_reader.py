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


@dataclasses.dataclass
class Frame:
    dtype: str
    shape: tuple
    codec: str
    blocks: list  # (payload, number of values) of each


def read_frame(frame):
    magic, version, reserved, header_bytes, dtype, rank, codec_bytes, block_elements = struct.unpack_from("<4sBBHBBHI", frame)
    require((magic, version, reserved) == (b"KVCF", 1, 0), "not a frame of version 1")
    require(header_bytes == 16 + 9 * rank + codec_bytes + 8, "the header has the wrong length")
    shape = struct.unpack_from(f"<{rank}Q", frame, 16)
    codec = frame[16 + 9 * rank:][:codec_bytes].decode("ascii")

    left, at, blocks = math.prod(shape), header_bytes, []
    if BITS[DTYPES[dtype]] < 8:
        bits = left * BITS[DTYPES[dtype]]
        require(bits % 8 == 0, "elements that do not fill their bytes")
        left = bits // 8
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


def split_payload(payload, stream_count, byte_codecs=0):
    """Of each stream: its size as the tensor codec made it, and its bytes after the byte codecs."""
    width = 1 + byte_codecs
    table = struct.unpack_from(f"<{stream_count * width}I", payload)
    at, streams = 4 * len(table), []
    for sizes in zip(*[iter(table)] * width):
        require(list(sizes) == sorted(sizes, reverse=True), "a byte codec made a stream larger")
        streams.append((sizes[0], payload[at:at + sizes[-1]]))
        at += sizes[-1]
    require(at == len(payload), "the streams do not fill the payload")
    return streams
