"""Frames that only who has a key can read: AES-256-GCM around frames, after compression and before decompression.

Needs the package cryptography (`kvcompress[seal]`). Neither the daemon nor a store sees keys or what they seal."""

import hashlib
import os
import pathlib
import re
import stat
import struct
import threading
from collections.abc import Iterator

from ._errors import DataLoss, FailedPrecondition, InvalidArgument, Unimplemented, refusing
from ._items import FrameBytes, checked_fingerprint

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
except ImportError as error:
    raise ImportError("kvcompress.seal needs the package cryptography: pip install 'kvcompress[seal]'") from error

# docs/format.md, "Sealed frames".
_MAGIC, _VERSION = b"KVCS", 1
_HEADER = struct.Struct("<4sBBHQ16s")  # magic, version, bytes of the id, zero, bytes of the frame, salt
_CHUNK_BYTES, _TAG_BYTES = 1 << 20, 16
_KEY_BYTES = 32
_PURPOSE = b"kvcompress sealed frame"
_NOT_OPEN = "sealed frame: it was changed, or sealed with another key, for another tenant or under another fingerprint"
_KEY_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_OF_THREAD = threading.local()
_HEX_KEY = re.compile(rb"[0-9A-Fa-f]{64}\n?")


class Sealer:
    """Seals frames with the key `key_id`, and opens those of all keys in the folder `keys`. Its files are named after
    the ids of keys and hold 32 bytes each, or 64 hexadecimal digits; one that other users may read or write, or that
    its group may write, is refused. `tenant`: bytes that all keys are derived with, so that what is sealed for one
    tenant opens for no other.

    Threads may share it. A key is read when it is first needed, and kept. FailedPrecondition, which tells nothing of
    what is in a file, for a key that is not there or is refused; for `key_id` when the sealer is made."""

    def __init__(self, keys: str | os.PathLike[str], key_id: str, *, tenant: bytes = b""):
        if not isinstance(tenant, bytes):
            raise InvalidArgument(f"a tenant is bytes, not {type(tenant).__name__}")
        with refusing("keys is no folder"):
            self._folder = pathlib.Path(keys)
        self._key_id, self._tenant = key_id, tenant
        self._keys: dict[str, bytes] = {}
        self._key(key_id)

    def __repr__(self) -> str:
        return f"Sealer({str(self._folder)!r}, {self._key_id!r})"

    @property
    def tenant_digest(self) -> str:
        """The same for sealers of one tenant."""
        return hashlib.sha256(_PURPOSE + self._tenant).hexdigest()

    def seal(self, frame: FrameBytes, *, fingerprint: bytes | None = None) -> bytes:
        """`fingerprint`: whose frame it is. It is not stored, and who opens the frame must say the same."""
        data, name = memoryview(frame).cast("B"), self._key_id.encode()
        salt = os.urandom(16)
        header = _HEADER.pack(_MAGIC, _VERSION, len(name), 0, len(data), salt) + name
        bound = header + checked_fingerprint(fingerprint)
        cipher = self._cipher(self._key_id, salt)
        sealed = _scratch(len(header) + _sealed_bytes(len(data)))
        sealed[: len(header)] = header
        chunks = sealed[len(header) :]
        for nonce, plain, coded in _places(len(data)):
            cipher.encrypt_into(nonce, data[plain], bound, chunks[coded])
        return sealed.tobytes()

    def open(self, sealed: FrameBytes, *, fingerprint: bytes | None = None) -> bytes:
        """The frame. DataLoss for what was not sealed with that key for this tenant and under this fingerprint, or was
        changed since: which of these it was cannot be told."""
        view = memoryview(sealed).cast("B")
        if len(view) < _HEADER.size:
            raise DataLoss("sealed frame: cut off in its header")
        magic, version, name_bytes, zero, size, salt = _HEADER.unpack_from(view)
        if magic != _MAGIC:
            raise DataLoss("sealed frame: bad magic, this is no sealed frame")
        if version != _VERSION:
            raise Unimplemented(f"sealed frame: version {version} is not supported")
        end = _HEADER.size + name_bytes
        if zero or len(view) != end + _sealed_bytes(size):
            raise DataLoss(f"sealed frame: {len(view)} bytes are not those of a frame of {size}")
        header = bytes(view[:end])
        try:
            cipher = self._cipher(header[_HEADER.size :].decode("ascii", "replace"), salt)
        except InvalidArgument:
            raise DataLoss("sealed frame: it has the id of no key") from None
        bound = header + checked_fingerprint(fingerprint)
        frame, chunks = _scratch(size), view[end:]
        try:
            for nonce, plain, coded in _places(size):
                cipher.decrypt_into(nonce, chunks[coded], bound, frame[plain])
        except InvalidTag:
            raise DataLoss(_NOT_OPEN) from None
        return frame.tobytes()

    def overhead(self, frame_bytes: int) -> int:
        """Bytes that sealing adds to a frame of that size."""
        return _HEADER.size + len(self._key_id) + _sealed_bytes(frame_bytes) - frame_bytes

    def _cipher(self, key_id: str, salt: bytes) -> AESGCM:
        """With a key of one frame's own, so that its nonces, which count its chunks, do not repeat."""
        return AESGCM(HKDF(SHA256(), _KEY_BYTES, salt, _PURPOSE + self._tenant).derive(self._key(key_id)))

    def _key(self, key_id: str) -> bytes:
        key = self._keys.get(key_id)
        if key is None:
            key = self._keys[key_id] = _read_key(self._folder, key_id)
        return key


def _sealed_bytes(frame_bytes: int) -> int:
    """Of the chunks of a frame of that size, their tags included."""
    return frame_bytes + _TAG_BYTES * len(_begins(frame_bytes))


def _begins(frame_bytes: int) -> range:
    """Of the chunks. One without bytes stands for a frame of none: its tag is that of the header and fingerprint."""
    return range(0, max(frame_bytes, 1), _CHUNK_BYTES)


def _places(frame_bytes: int) -> Iterator[tuple[bytes, slice, slice]]:
    """Of each chunk the nonce, and where it is in the frame and among the sealed chunks."""
    for index, at in enumerate(_begins(frame_bytes)):
        end, tags = min(at + _CHUNK_BYTES, frame_bytes), index * _TAG_BYTES
        yield index.to_bytes(12, "little"), slice(at, end), slice(at + tags, end + tags + _TAG_BYTES)


def _scratch(size: int) -> memoryview:
    """Memory that this thread had for the frame before: fresh pages take longer than the cipher."""
    held = getattr(_OF_THREAD, "scratch", None)
    if held is None or len(held) < size:
        held = _OF_THREAD.scratch = bytearray(size)
    return memoryview(held)[:size]


def _read_key(folder: pathlib.Path, key_id: str) -> bytes:
    if not isinstance(key_id, str) or _KEY_ID.fullmatch(key_id) is None:
        raise InvalidArgument("the id of a key has 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', and no '.' in front")
    try:
        with open(folder / key_id, "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise FailedPrecondition(f"key {key_id!r} is refused: it is no file")
            if mode & (stat.S_IRWXO | stat.S_IWGRP):
                raise FailedPrecondition(f"key {key_id!r} is refused: others may read or write its file")
            text = file.read(2 * _KEY_BYTES + 2)
    except OSError as error:
        raise FailedPrecondition(f"key {key_id!r} cannot be read: {error.strerror}") from None
    if len(text) == _KEY_BYTES:
        return text
    if _HEX_KEY.fullmatch(text) is None:
        raise FailedPrecondition(f"key {key_id!r} is refused: a key has 32 bytes, or 64 hexadecimal digits")
    return bytes.fromhex(text.decode())


def _without_waiting(path: str, flags: int) -> int:
    """Opens what may be a pipe that nobody writes to."""
    return os.open(path, flags | os.O_NONBLOCK)
