"""What happens to machines, rehearsed: the clock jumps, Prometheus goes away in the middle of a scrape."""

import datetime
import pathlib
import signal
import socket
import struct

import pytest
from daemon_helpers import MIB, Client, page, page_value
from load_helpers import Load, expected_hashes

DAY = 86_400
STREAMS = 4
TENSOR = {"tensor_bytes": 4 * MIB, "inputs": 2}


@pytest.fixture
def wall_clock(tmp_path):
    """What makes a program's wall clock another one: its environment, and a function that sets its offset in seconds."""
    library = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    assert library is not None, "libfaketime is not installed"
    offset = tmp_path / "offset"

    def jump(seconds):
        fresh = tmp_path / "fresh"
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(offset)

    jump(0)
    return {"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1"}, jump


def test_calls_and_the_drain_do_not_mind_a_clock_that_jumps(daemon, stubs, bin_dir, wall_clock):
    environment, jump = wall_clock
    server = daemon("--threads", "2", "--drain-timeout", "20s", "--log-format", "json", env=environment)
    client = Client(server, stubs)
    expected = expected_hashes(bin_dir, STREAMS, **TENSOR)
    for seconds in (DAY, -DAY, 0):
        with Load(bin_dir, server.address, streams=STREAMS, calls=20, timeout="30s", **TENSOR) as running:
            jump(seconds)
            outcomes = running.outcomes()
        assert [outcome["codes"] for outcome in outcomes] == [{"OK": 20}] * STREAMS
        assert [outcome["hashes"] for outcome in outcomes] == expected
        assert 0 < client.metrics().uptime_seconds < 600
    with Load(bin_dir, server.address, streams=STREAMS, calls=20, attempts=1, **TENSOR) as running:
        jump(DAY)
        server.signal(signal.SIGTERM)
        jump(-DAY)
        running.outcomes()
    assert server.wait() == 0
    # It is the daemon's clock that jumped.
    for days in (-1, 1):
        assert (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days)).date().isoformat() in server.log()


def test_scrapers_that_vanish_leave_the_page_to_others(daemon, stubs):
    server = daemon("--threads", "1")
    host, port = server.metrics_address.rsplit(":", 1)
    with_reset = struct.pack("ii", 1, 0)  # SO_LINGER: closes at once, with what is on the way
    for request in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") * 30:
        with socket.create_connection((host, int(port)), timeout=5) as scraper:
            scraper.sendall(request)
            scraper.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, with_reset)
    assert page_value(page(server.metrics_address), "kvcompress_in_flight_bytes") == 0
    assert Client(server, stubs).metrics().uptime_seconds > 0
