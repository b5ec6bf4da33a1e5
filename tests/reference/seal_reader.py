"""Sealed frames, opened by docs/format.md alone, by the cipher and HMAC-SHA256."""

import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from data_loss import require


def open_sealed(sealed, keys, tenant=b"", fingerprint=b""):
    magic, version, id_bytes, zero, size = struct.unpack_from("<4sBBHQ", sealed)
    require((magic, version, zero) == (b"KVCS", 1, 0), "not a sealed frame of version 1")
    header = sealed[:32 + id_bytes]
    salt, key = header[16:32], keys[header[32:].decode("ascii")]
    extracted = hmac.digest(salt, key, hashlib.sha256)
    derived = hmac.digest(extracted, b"kvcompress sealed frame" + tenant + b"\x01", hashlib.sha256)
    frame, at = b"", len(header)
    for index in range(max(1, -(-size // 2**20))):
        end = at + min(2**20, size - len(frame)) + 16
        frame += AESGCM(derived).decrypt(struct.pack("<QI", index, 0), sealed[at:end], header + fingerprint)
        at = end
    require(at == len(sealed) and len(frame) == size, "the sealed frame has the wrong length")
    return frame
