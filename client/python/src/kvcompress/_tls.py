"""Credentials of TLS, and what is wrong with this side's own."""

import base64
import os
import pathlib
import re
import weakref
from datetime import datetime, timezone

import grpc

from ._errors import InvalidArgument, refusing

Path = str | os.PathLike[str] | None

# Of this side's certificates, by the credentials that hold them.
_OWN_VALIDITY: "weakref.WeakKeyDictionary[grpc.ChannelCredentials, tuple[datetime, datetime]]" = (
    weakref.WeakKeyDictionary()
)
# What credentials were made of: authorities, certificate and key, in PEM.
_PEM: "weakref.WeakKeyDictionary[grpc.ChannelCredentials, tuple[str, str, str]]" = weakref.WeakKeyDictionary()


def tls(ca: Path = None, certificate: Path = None, key: Path = None) -> grpc.ChannelCredentials:
    """Credentials from PEM files: of who vouches for the daemon (the system's, by default), and, for mutual TLS, this
    side's certificate and key. InvalidArgument for one of the two alone, and for files that cannot be read or are not
    in PEM."""
    if (certificate is None) != (key is None):
        raise InvalidArgument("certificate and key go together")
    contents = [None if path is None else _pem(path) for path in (ca, key, certificate)]
    credentials = grpc.ssl_channel_credentials(*contents)
    if contents[0] is not None:
        authorities, own_key, own = ((content or b"").decode("latin-1") for content in contents)
        _PEM[credentials] = (authorities, own, own_key)
    if contents[2] is not None and (validity := _validity(contents[2])):
        _OWN_VALIDITY[credentials] = validity
    return credentials


def pem_of(credentials: grpc.ChannelCredentials) -> tuple[str, str, str] | None:
    """Authorities, certificate and key, in PEM; None for credentials of others, and for those that leave it to gRPC who
    vouches for the daemon: each gRPC has authorities of its own."""
    return _PEM.get(credentials)


def _validity(certificate: bytes) -> tuple[datetime, datetime] | None:
    """From when until when the first certificate of a PEM file is valid; None where that cannot be read."""
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    try:
        der = base64.b64decode(certificate.partition(begin)[2].partition(end)[0])
        # Two values of UTCTime or GeneralizedTime, one after the other, stand nowhere else.
        found = re.search(rb"[\x17\x18][\x0d\x0f](\d+Z)[\x17\x18][\x0d\x0f](\d+Z)", der)
        return None if found is None else (_time(found[1]), _time(found[2]))
    except ValueError:
        return None


def _time(text: bytes) -> datetime:
    form = "%y%m%d%H%M%SZ" if len(text) == 13 else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode(), form).replace(tzinfo=timezone.utc)


def own_fault(credentials: grpc.ChannelCredentials | None) -> str:
    """What is wrong with this side's certificate; "" where that is good, not known, or not there."""
    validity = None if credentials is None else _OWN_VALIDITY.get(credentials)
    if validity is None or validity[0] <= (now := datetime.now(timezone.utc)) <= validity[1]:
        return ""
    return "this side's certificate has expired" if validity[1] < now else "this side's certificate is not valid yet"


def _pem(path: str | os.PathLike[str]) -> bytes:
    # gRPC would only say that it cannot connect.
    with refusing(f"{path!r} cannot be read"):
        content = pathlib.Path(path).read_bytes()
    if b"-----BEGIN " not in content:
        raise InvalidArgument(f"{path} is not in PEM")
    return content
