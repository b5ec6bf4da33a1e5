"""Addresses of daemons, checked before gRPC sees them: it would try those that cannot be, and then speak of something
else."""

import ipaddress
import re

from ._errors import InvalidArgument, checked_text

# Bytes; the system has room for no more.
_MAX_UNIX_PATH = 107
# Their names are resolved by rules of their own.
_UNCHECKED = ("xds:", "google-c2p:", "vsock:")


def check_target(target: str) -> None:
    """InvalidArgument for what no daemon can have for its address."""
    checked_text("a target", target)
    if "\0" in target:
        raise _no_address(target, "it has a zero byte")
    scheme, colon, rest = target.partition(":")
    if colon and scheme in ("unix", "unix-abstract"):
        # gRPC writes absolute paths as unix:///PATH, too.
        _check_unix_path(target, rest[2:] if rest.startswith("///") else rest)
    elif colon and scheme in ("ipv4", "ipv6"):
        for address in rest.split(","):
            _check_host_and_port(target, address)
    elif colon and scheme == "dns":
        _check_host_and_port(target, rest.rpartition("/")[2])
    elif not target.startswith(_UNCHECKED):
        if rest.startswith("//"):
            raise _no_address(target, f"use HOST:PORT or unix:PATH, without {scheme}://")
        if "," in target:
            raise _no_address(target, "a list of IP addresses stands behind ipv4: or ipv6:")
        _check_host_and_port(target, target)


def is_local(target: str) -> bool:
    """Whether the daemon can only be on this machine."""
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


def _no_address(target: str, why: str) -> InvalidArgument:
    return InvalidArgument(f'"{target}" is not the address of a daemon: {why}')


def _check_unix_path(target: str, path: str) -> None:
    size = len(path.encode())
    if size == 0:
        raise _no_address(target, "use HOST:PORT or unix:PATH")
    if size > _MAX_UNIX_PATH:
        raise _no_address(
            target, f"the path of a unix socket has at most {_MAX_UNIX_PATH} bytes, and this one has {size}"
        )


def _check_host_and_port(target: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port:
        raise _no_address(target, "use HOST:PORT or unix:PATH")
    if not re.fullmatch("[0-9]{1,9}", port) or not 1 <= int(port) <= 65535:
        raise _no_address(target, f'the port must be a number from 1 to 65535, not "{port}"')
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise _no_address(target, "an IPv6 address stands in brackets, for example [::1]:50051")
