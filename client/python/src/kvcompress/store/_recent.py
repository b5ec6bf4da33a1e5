"""What look-ups found lately, in memory."""

import threading
import time

# Entries that are remembered: some ten MB.
_MOST = 1 << 16


class Recent:
    """Whether entries exist, for as long as that is believed without looking again: others store and evict, too."""

    def __init__(self, found_seconds: float, missing_seconds: float):
        self._seconds = {True: found_seconds, False: missing_seconds}
        self.lock = threading.Lock()
        self._known: dict[bytes, tuple[bool, float]] = {}

    def get(self, entry_id: bytes) -> bool | None:
        known = self._known.get(entry_id)
        return known[0] if known is not None and time.monotonic() < known[1] else None

    def set(self, entry_id: bytes, found: bool) -> None:
        with self.lock:
            self._known.pop(entry_id, None)
            self._known[entry_id] = (found, time.monotonic() + self._seconds[found])
            if len(self._known) > _MOST:
                del self._known[next(iter(self._known))]

    def clear(self) -> None:
        with self.lock:
            self._known.clear()
