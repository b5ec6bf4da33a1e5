"""An entry as it lies on disk or in a server: a header that binds the payload to its key, and the payload."""

import hashlib
import struct
import zlib

from ._store import Payload

# Magic, version, bytes of the payload, id, CRC-32 of the payload; 64 bytes, so that a payload stays aligned.
_HEADER = struct.Struct("<4sIQ20sI24x")
_MAGIC, _VERSION = b"KVCE", 1
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


def header_of(entry_id: bytes, payload: memoryview) -> bytes:
    return _HEADER.pack(_MAGIC, _VERSION, len(payload), entry_id, zlib.crc32(payload))


def payload_of(entry_id: bytes, entry: Payload) -> memoryview | str:
    """A view of the payload, or what is wrong with the entry. No bit of it can be changed unseen by chance."""
    view = memoryview(entry)
    if len(view) < HEADER_SIZE:
        return f"{len(view)} bytes are no entry"
    magic, version, size, found, _ = _HEADER.unpack_from(view)
    payload = view[HEADER_SIZE:]
    if magic != _MAGIC or version != _VERSION:
        return "this is no entry of a store"
    if found != entry_id:
        return "this is the entry of another key"
    if size != len(payload):
        return f"{len(payload)} bytes are there of {size}"
    if header_of(entry_id, payload) != view[:HEADER_SIZE]:
        return "the checksum differs"
    return payload
