"""Processes that stand still for a while."""

import contextlib
import pathlib
import signal
import time


@contextlib.contextmanager
def stopped(process):
    """All of its threads: they stop one after the other, and may answer until then."""
    process.send_signal(signal.SIGSTOP)
    try:
        while any(map(_runs, pathlib.Path(f"/proc/{process.pid}/task").glob("*/stat"))):
            time.sleep(0.001)
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _runs(thread):
    with contextlib.suppress(OSError):  # it has ended
        return thread.read_text().rsplit(")", 1)[1].split()[0] not in "TZX"
    return False
