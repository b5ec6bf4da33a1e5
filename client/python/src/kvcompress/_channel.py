"""What both clients need of gRPC and of the daemon behind it."""

import importlib.metadata
import ipaddress
import os
import pathlib

import grpc

from ._errors import InvalidArgument, KvCompressError, VersionMismatch
from .v1 import kvcompress_pb2 as pb

Path = str | os.PathLike[str] | None

SERVICE = "/kvcompress.v1.KvCompression/"
# Above any message that a daemon sends, and below what would hurt.
_MAX_RECEIVED_MESSAGE = 16 << 20
# Of a message besides the payload: tags, lengths, a header of the longest name, with room to spare.
_MESSAGE_OVERHEAD = 4096


def channel_options() -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", _MAX_RECEIVED_MESSAGE),
        # The daemon stands beside us: a proxy for the web is not asked for it.
        ("grpc.enable_http_proxy", 0),
        # Calls are retried whole by the client; gRPC's own retries would hold on to what was sent.
        ("grpc.enable_retries", 0),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A daemon that is started again is found again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Connections end with their client, whoever else in this process talks to the same daemon.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def tls(ca: Path = None, certificate: Path = None, key: Path = None) -> grpc.ChannelCredentials:
    """Credentials from PEM files: of who vouches for the daemon (the system's, by default), and, for mutual TLS, this
    side's certificate and key. InvalidArgument for one of the two alone, and for files that are not in PEM."""
    if (certificate is None) != (key is None):
        raise InvalidArgument("certificate and key go together")
    contents = [None if path is None else _pem(pathlib.Path(path)) for path in (ca, key, certificate)]
    return grpc.ssl_channel_credentials(*contents)


def _pem(path: pathlib.Path) -> bytes:
    # gRPC would only say that it cannot connect.
    content = path.read_bytes()
    if b"-----BEGIN " not in content:
        raise InvalidArgument(f"{path} is not in PEM")
    return content


Metadata = tuple[tuple[str, str], ...]


def metadata(token: str | None, target: str, encrypted: bool) -> Metadata:
    """What goes with every call. InvalidArgument for a token that is none, and for one that would leave this machine in
    plaintext."""
    if token is None:
        return ()
    if not token or not all("!" <= character <= "~" for character in token):
        raise InvalidArgument("a token is made of printable ASCII characters, without blanks")
    if not encrypted and not _is_local(target):
        raise InvalidArgument(
            f"the token would go to {target!r} in plaintext: use credentials, or a daemon of this machine"
        )
    return (("authorization", f"Bearer {token}"),)


def _is_local(target: str) -> bool:
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    for address in target.removeprefix("ipv4:").removeprefix("ipv6:").split(","):
        host = address.rpartition(":")[0].strip("[]")
        try:
            local = host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False
        if not local:
            return False
    return True


def no_sharing(target: str, wanted: bool) -> str:
    """Why memory cannot be shared with the daemon at `target`; "" where it may be possible."""
    if not wanted:
        return "not wanted"
    if not _is_local(target):
        return "the daemon is on another machine"
    # The next call may go to another of them.
    return "there is more than one daemon" if "," in target else ""


def unchanged(message: bytes) -> bytes:
    """Serializer of messages that are bytes already."""
    return message


def version() -> str:
    return importlib.metadata.version("kvcompress")


def message_bytes(said: pb.CapabilitiesResponse) -> int:
    """The most of a payload in one message to this daemon. VersionMismatch for a daemon that is not of this package's
    major version."""
    ours, theirs = version(), said.build.version
    if ours.split(".")[0] != theirs.split(".")[0]:
        raise VersionMismatch(f"the daemon is version {theirs or 'unknown'}, and this package {ours}")
    most = said.limits.max_message_bytes - _MESSAGE_OVERHEAD
    if most <= 0 or said.recommended_message_bytes == 0:
        raise KvCompressError("the daemon takes no messages")
    return min(most, said.recommended_message_bytes)
