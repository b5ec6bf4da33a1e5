"""Numbers that threads add to."""

import threading
from collections import defaultdict


class Counters:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, float] = defaultdict(int)

    def add(self, **added: float) -> None:
        with self._lock:
            for name, number in added.items():
                self._values[name] += number

    def values(self) -> dict[str, float]:
        """What was ever added, by name."""
        with self._lock:
            return dict(self._values)
