"""An entry as it lies on disk or in a server: a header that binds the payload to its key, and the payload."""

import hashlib
import struct
import zlib

from .._payload import Payload, Piece, SelfChecked

# Magic, version, bytes of the payload, id, CRC-32 of the payload; 64 bytes, so that a payload stays aligned.
_HEADER = struct.Struct("<4sIQ20sI24x")
_MAGIC, _VERSION = b"KVCE", 1
_SELF_CHECKED = 2  # the version of an entry whose CRC-32 is 0, because its payload checks itself
HEADER_SIZE = _HEADER.size
ID_SIZE = 20


class Ids:
    """Ids of one namespace's keys: keys come from outside, and may be of any length and characters. An id is a digest
    of the key and the namespace, and ends with one of the namespace, so that a namespace's entries can be told."""

    def __init__(self, namespace: str):
        whole = hashlib.blake2b(_bytes(namespace), digest_size=32).digest()
        self._key = whole
        self.suffix = whole[:4]

    def of(self, key: str) -> bytes:
        return hashlib.blake2b(_bytes(key), digest_size=16, key=self._key).digest() + self.suffix


def _bytes(text: str) -> bytes:
    """Of any text, lone surrogates too."""
    return text.encode("utf-8", "surrogatepass")


class Parts:
    """What is put under a key: the pieces of its payload, `size` bytes together."""

    def __init__(self, payload: Payload):
        self.pieces = [memoryview(piece).cast("B") for piece in (payload if isinstance(payload, tuple) else (payload,))]
        self.size = sum(map(len, self.pieces))
        self._version = _SELF_CHECKED if isinstance(payload, SelfChecked) else _VERSION

    def header(self, entry_id: bytes) -> bytes:
        checksum = 0
        for piece in self.pieces if self._version == _VERSION else ():
            checksum = zlib.crc32(piece, checksum)
        return _HEADER.pack(_MAGIC, self._version, self.size, entry_id, checksum)


def payload_of(entry_id: bytes, entry: Piece) -> memoryview | str:
    """A view of the payload, or what is wrong with the entry. No bit of it can be changed unseen by chance, except in a
    payload that checks itself."""
    view = memoryview(entry)
    if len(view) < HEADER_SIZE:
        return f"{len(view)} bytes are no entry"
    magic, version, size, found, _ = _HEADER.unpack_from(view)
    payload = view[HEADER_SIZE:]
    if magic != _MAGIC or version not in (_VERSION, _SELF_CHECKED):
        return "this is no entry of a store"
    if found != entry_id:
        return "this is the entry of another key"
    if size != len(payload):
        return f"{len(payload)} bytes are there of {size}"
    parts = Parts(payload if version == _VERSION else SelfChecked([payload]))
    if parts.header(entry_id) != view[:HEADER_SIZE]:
        return "the checksum differs"
    return payload
