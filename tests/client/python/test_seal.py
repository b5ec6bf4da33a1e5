"""Sealed frames: who opens them and who does not, and what a second reader makes of them."""

import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor

import kvcompress
import pytest

pytest.importorskip("cryptography")
import seal_reader
from kvcompress.seal import Sealer

MIB = 1 << 20
SIZES = [0, 1, 100, MIB - 1, MIB, MIB + 1, 3 * MIB + 5]


def write_key(folder, name, text=None, mode=0o600):
    path = folder / name
    path.write_bytes(secrets.token_bytes(32) if text is None else text)
    path.chmod(mode)
    return path


@pytest.fixture
def keys(tmp_path):
    for name in ("one", "two"):
        write_key(tmp_path, name)
    return tmp_path


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_comes_back_and_a_second_reader_gets_it_too(keys, size):
    frame, sealer = os.urandom(size), Sealer(keys, "one", tenant=b"acme")
    sealed = sealer.seal(frame)
    assert len(sealed) == size + sealer.overhead(size)
    assert sealer.open(sealed) == Sealer(keys, "two", tenant=b"acme").open(memoryview(sealed)) == frame
    assert seal_reader.open_sealed(sealed, {"one": (keys / "one").read_bytes()}, b"acme") == frame
    assert size < 8 or frame[:100] not in sealed


def test_nothing_repeats(keys):
    sealer, frame = Sealer(keys, "one"), bytes(2 * MIB)
    one, two = sealer.seal(frame), sealer.seal(frame)
    assert one[16:32] != two[16:32], "the salt"
    head = len(one) - len(frame) - 32
    chunks = [sealed[head + i * (MIB + 16):][:MIB] for sealed in (one, two) for i in range(2)]
    assert len(set(chunks)) == 4


@pytest.mark.parametrize("size", [0, 64])
def test_no_byte_can_change(keys, size):
    sealer = Sealer(keys, "one")
    sealed = sealer.seal(bytes(range(size)))
    for at in range(len(sealed)):
        damaged = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1:]
        with pytest.raises((kvcompress.DataLoss, kvcompress.FailedPrecondition, kvcompress.Unimplemented)):
            sealer.open(damaged)
        with pytest.raises(kvcompress.DataLoss):
            sealer.open(sealed[:at])
    with pytest.raises(kvcompress.DataLoss):
        sealer.open(sealed + b"x")


def test_chunks_keep_their_places(keys):
    sealer, frame = Sealer(keys, "one"), os.urandom(3 * MIB)
    sealed, other = sealer.seal(frame), sealer.seal(frame)
    head, step = len(sealed) - 3 * (MIB + 16), MIB + 16
    parts = [sealed[head + i * step:][:step] for i in range(3)]
    for wrong in ([1, 0, 2], [0, 0, 2], [0, 1, 1]):
        with pytest.raises(kvcompress.DataLoss, match="it was changed"):
            sealer.open(sealed[:head] + b"".join(parts[i] for i in wrong))
    with pytest.raises(kvcompress.DataLoss, match="it was changed"):
        sealer.open(other[:head] + b"".join(parts))
    with pytest.raises(kvcompress.DataLoss, match="not those of a frame"):
        sealer.open(sealed[:-step])


def test_another_key_or_tenant_opens_nothing(keys, tmp_path_factory):
    sealed = Sealer(keys, "one", tenant=b"acme").seal(b"frame")
    elsewhere = tmp_path_factory.mktemp("keys")
    write_key(elsewhere, "one")
    for other in (Sealer(keys, "one"), Sealer(keys, "one", tenant=b"acm"), Sealer(elsewhere, "one", tenant=b"acme")):
        with pytest.raises(kvcompress.DataLoss, match="another key, for another tenant"):
            other.open(sealed)
    write_key(elsewhere, "own")
    (elsewhere / "one").unlink()
    with pytest.raises(kvcompress.FailedPrecondition, match="key 'one' cannot be read: No such file"):
        Sealer(elsewhere, "own").open(sealed)


@pytest.mark.parametrize("size", [0, 100, 2 * MIB + 5])
def test_another_fingerprint_opens_nothing(keys, size):
    frame, sealer, whose = os.urandom(size), Sealer(keys, "one", tenant=b"acme"), b"model, layer, chunk"
    sealed = sealer.seal(frame, fingerprint=whose)
    assert len(sealed) == size + sealer.overhead(size)
    assert whose not in sealed
    assert sealer.open(sealed, fingerprint=whose) == frame
    assert seal_reader.open_sealed(sealed, {"one": (keys / "one").read_bytes()}, b"acme", whose) == frame
    for wrong in (b"", whose[:-1], whose + b"\0", b"another"):
        with pytest.raises(kvcompress.DataLoss, match="under another fingerprint"):
            sealer.open(sealed, fingerprint=wrong)
    with pytest.raises(kvcompress.DataLoss, match="under another fingerprint"):
        sealer.open(sealer.seal(frame), fingerprint=whose)
    for call in (sealer.seal, sealer.open):
        for wrong, said in (("text", "bytes, not str"), (bytes(65), "at most 64 bytes")):
            with pytest.raises(kvcompress.InvalidArgument, match=said):
                call(sealed, fingerprint=wrong)


def test_a_thread_that_opens_a_frame_of_no_bytes_first(keys):
    sealer = Sealer(keys, "one")
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(sealer.open, sealer.seal(b"")).result() == b""


def test_keys_that_are_refused(keys):
    secret = b"5ecret" * 6
    hexadecimal = secrets.token_hex(32).encode()
    for name, text, mode, said in (
        ("open", None, 0o604, "others may read"), ("written", None, 0o620, "others may read or write"),
        ("short", secret[:31], 0o600, "32 bytes"), ("long", secret[:33], 0o600, "32 bytes"),
        ("half", hexadecimal[:-1], 0o600, "32 bytes"), ("more", hexadecimal + b"\n\n", 0o600, "32 bytes"),
        ("other", hexadecimal[:-1] + b"g", 0o600, "32 bytes"),
    ):
        write_key(keys, name, text, mode)
        with pytest.raises(kvcompress.FailedPrecondition, match=said) as error:
            Sealer(keys, name)
        assert "5ecret" not in str(error.value)
    (keys / "folder").mkdir()
    os.mkfifo(keys / "pipe", 0o600)
    for name in ("folder", "pipe", "missing"):
        with pytest.raises(kvcompress.FailedPrecondition):
            Sealer(keys, name)
    for name in ("", "../one", ".one", "a/b", "x" * 65, "é", "one\n", 7):
        with pytest.raises(kvcompress.InvalidArgument, match="the id of a key"):
            Sealer(keys, name)
    with pytest.raises(kvcompress.InvalidArgument, match="a tenant is bytes"):
        Sealer(keys, "one", tenant="acme")


def test_a_key_may_be_digits_and_is_never_shown(keys):
    digits = secrets.token_hex(32)
    write_key(keys, "digits", digits.encode() + b"\n")
    write_key(keys, "digit2", bytes.fromhex(digits))
    sealer = Sealer(keys, "digits")
    sealed = sealer.seal(b"frame").replace(b"digits", b"digit2")
    assert digits not in repr(sealer) + str(sealer)
    with pytest.raises(kvcompress.DataLoss):  # the id holds for who opens it
        Sealer(keys, "digit2").open(sealed)
    assert Sealer(keys, "digits").open(sealer.seal(b"frame")) == b"frame"


def test_without_the_package_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    monkeypatch.delitem(sys.modules, "kvcompress.seal")
    with pytest.raises(ImportError, match=r"kvcompress\[seal\]"):
        import kvcompress.seal  # noqa: F401
