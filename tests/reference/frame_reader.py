"""Frames and block payloads, read by docs/format.md alone. Checksums are not looked at."""

import dataclasses
import math
import struct

from data_loss import require

DTYPES = {1: "F16", 2: "BF16", 3: "F32"}


@dataclasses.dataclass
class Frame:
    dtype: str  # F16, BF16 or F32
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
