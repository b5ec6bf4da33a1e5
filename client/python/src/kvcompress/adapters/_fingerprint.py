"""Whose frame it is: what the frames of adapters carry, so that none is taken for another."""

import hashlib

FINGERPRINT_BYTES = 32


def fingerprint(*what: object) -> bytes:
    """Of what tells a frame from every other: model, layout, the chunk's key, the tensor's name. The same for the same
    texts, numbers, and lists of these, in every process."""
    return hashlib.sha256(repr(what).encode()).digest()
