"""The element types of frames as NumPy has them: values, or for opaque types integers of as many bytes."""

import numpy as np
from frame_reader import BITS
from uniform_decoder import DTYPES, F8

OPAQUE = {name: np.dtype(f"<u{max(1, bits // 8)}") for name, bits in BITS.items() if name not in DTYPES | F8}
KINDS = DTYPES | F8 | OPAQUE


def values_in(shape_product, dtype):
    """How many values or bytes so many elements are; None where they do not fill their bytes."""
    if BITS[dtype] >= 8:
        return shape_product
    return None if shape_product * BITS[dtype] % 8 else shape_product * BITS[dtype] // 8
