"""Where a frame ends, by the sizes that stand in it: docs/format.md, "Frame"."""

import math
import struct

import numpy as np

_FRONT = struct.Struct("<4sBBH")  # magic, version, flags, bytes of the header
_FINGERPRINT = 2
_SHAPE = struct.Struct("<BBHI")  # dtype, rank, bytes of the codec, elements of a block; extents follow
_END = struct.Struct("<4sI")  # magic, blocks; their table and a checksum follow
_CHECKSUM_BYTES, _SIZE_BYTES = 8, 4
_BLOCK_BYTES = _SIZE_BYTES + _CHECKSUM_BYTES  # in front of its payload
_BITS = {18: 4, 19: 6, 20: 6}  # of dtypes whose values have less than a byte


def ends_with_its_bytes(data: memoryview) -> bool:
    """Whether these bytes are a frame from its first to its last, whatever else is wrong with it: a reader of such a
    one waits for no more. False for what is compact, or of a version that is not known here."""
    try:
        magic, version, flags, header_bytes = _FRONT.unpack_from(data)
        if magic != b"KVCF" or (version, flags) not in ((1, 0), (3, _FINGERPRINT)):
            return False
        at = _FRONT.size + (1 + data[_FRONT.size] if flags else 0)
        dtype, rank, _, block_elements = _SHAPE.unpack_from(data, at)
        extents = struct.unpack_from(f"<{rank}Q", data, at + _SHAPE.size)
    except (struct.error, IndexError):
        return False
    if block_elements == 0:
        return False
    blocks = -(-(math.prod(extents) * _BITS.get(dtype, 8) // 8) // block_elements)
    end = len(data) - _END.size - _SIZE_BYTES * blocks - _CHECKSUM_BYTES
    if blocks == 0 or end < header_bytes + _BLOCK_BYTES * blocks or _END.unpack_from(data, end) != (b"KVCE", blocks):
        return False
    table = np.frombuffer(data, "<u4", blocks, end + _END.size).astype(np.int64)
    ends = header_bytes + np.cumsum(table + _BLOCK_BYTES)
    if ends[-1] != end:
        return False
    begins = ends - table - _BLOCK_BYTES
    said = np.frombuffer(data, np.uint8)[begins[:, None] + np.arange(_SIZE_BYTES)].view("<u4")
    return bool((said[:, 0] == table).all())
