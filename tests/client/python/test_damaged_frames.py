"""Frames that are not whole: whoever decodes them ends at once, and with the same words."""

import kvcompress
import numpy as np
import pytest

MIB = 1 << 20


def values(size):
    return np.random.default_rng(1).standard_normal(size).astype(np.float16)


def damaged(frame):
    """What can happen to a frame on its way, as far as it is seen by the number or the order of its bytes."""
    size = len(frame)
    yield "with a byte behind it", frame + b"x"
    yield "twice", frame + frame
    for end in (0, 7, 100, size // 2, size - 20, size - 1):
        yield f"cut at {end}", frame[:end]
    for at in (0, size // 2 // MIB * MIB, (size - 1) // MIB * MIB):
        yield f"cut at chunk {at // MIB}", frame[:at]
        yield f"without chunk {at // MIB}", frame[:at] + frame[at + MIB :]
        yield f"chunk {at // MIB} twice", frame[: at + MIB] + frame[at:]
    # A block that claims more bytes than there are.
    longer = bytearray(frame)
    end = longer.rindex(b"KVCE")
    last = end - 12 - int.from_bytes(longer[-12:-8], "little")
    longer[last : last + 4] = (int.from_bytes(longer[-12:-8], "little") + 1000).to_bytes(4, "little")
    yield "with a block that is longer than the rest", bytes(longer)


def end_of(client, frames, **options):
    """How many results there are, and the error that ends them."""
    results = []
    with pytest.raises((kvcompress.DataLoss, kvcompress.InvalidArgument)) as error:
        results.extend(client.decompress_many(frames, **options))
    return len(results), type(error.value), str(error.value)


@pytest.mark.parametrize(
    ("size", "spec", "is_known"), [(1000, "int4", True), (6 * MIB, "raw", False), (6 * MIB, "planes|rans", True)]
)
def test_they_end_at_once_and_alike(anyone, size, spec, is_known):
    """Of more values than there are buffers for, too; whether or not the caller knows dtype and shape."""
    local, known = kvcompress.LocalClient(threads=2), [("F16", (size,))] if is_known else []
    whole = local.compress(values(size), spec).data
    for what, data in damaged(whole):
        for names in ("x", "wxw"):
            frames = [(name, data if name == "x" else whole, *known) for name in names]
            assert end_of(anyone, frames, timeout=10) == end_of(local, frames), (what, names)
        with pytest.raises((kvcompress.DataLoss, kvcompress.InvalidArgument)):
            anyone.decompress(data, timeout=10)
    assert (anyone.decompress(whole) == local.decompress(whole)).all()
