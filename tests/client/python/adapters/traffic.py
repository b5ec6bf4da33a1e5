"""What a scheduler asks of a tier, step by step, while the daemon or the store is slow, stopped or gone."""

import collections
import random
import threading
import time
from dataclasses import dataclass

import numpy as np
from process_helpers import stopped
from tiering import key_of

POISON = 0x5A  # of rows into which nothing was loaded
# Of the chunks that were stored last so many are looked up: a store that evicts has them all.
_RECENT = 64


class Slowed:
    """A process that is stopped most of the time: it runs a share of each period, in seconds."""

    def __init__(self, process, share=0.1, period=0.2):
        self._process, self._share, self._period = process, share, period
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        is_over = False
        while not is_over:
            with stopped(self._process):
                is_over = self._is_over.wait((1 - self._share) * self._period)
            is_over = is_over or self._is_over.wait(self._share * self._period)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._is_over.set()
        self._thread.join()


@dataclass
class Seen:
    """`longest` is the longest call of the scheduler's, in seconds; `most_open` the most jobs at once. Look-ups that
    were asked are hits, of which the chunk stood in its row, or misses; `wrong` are rows with anything else."""

    longest: float = 0.0
    most_open: int = 0
    hits: int = 0
    misses: int = 0
    wrong: int = 0
    stored: int = 0
    unstored: int = 0

    def add(self, other):
        """What was seen afterwards."""
        self.longest, self.most_open = max(self.longest, other.longest), max(self.most_open, other.most_open)
        for name in ("hits", "misses", "wrong", "stored", "unstored"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Traffic:
    """Of the rows the first `sources` hold what is stored, chunk n that of row n % sources; into the others is loaded.
    Each step of `pause` seconds looks a stored chunk up for a new request, loads it if it is there and a row is free,
    and stores a new chunk, as long as fewer than `most_stores` jobs do: as many as a CPU cache would have rows for."""

    def __init__(self, steps, sources, *, pause=0.005, most_stores=10**9):
        self._steps, self._sources, self._pause, self._most_stores = steps, sources, pause, most_stores
        self._rows = steps.cache.rows
        self._free = list(range(sources, len(self._rows)))
        self._stored = []  # numbers of chunks
        self._next = self._requests = 0
        self._asked, self._loads, self._stores = {}, {}, {}
        self._random = random.Random(1)

    def begin(self, count):
        """Stores the first chunks."""
        for _ in range(count):
            self._store(Seen())
        self.settle()
        assert len(self._stored) == count

    def run(self, seconds):
        """What was seen in that time. What has not ended in it goes on in the next one, or in `settle`."""
        seen, begin = Seen(), time.monotonic()
        self._steps.longest = 0.0
        while time.monotonic() < begin + seconds:
            if self._free and self._stored:
                self._ask()
            if len(self._stores) < self._most_stores:
                self._store(seen)
            self._step(seen)
            time.sleep(self._pause)
        seen.longest = self._steps.longest
        return seen

    def settle(self, seconds=60):
        """What was seen until all that was asked has ended."""
        seen, deadline = Seen(), time.monotonic() + seconds
        self._steps.longest = 0.0
        while self._asked or self._loads or self._stores:
            assert time.monotonic() < deadline, "what was asked does not end"
            self._step(seen)
            time.sleep(self._pause)
        assert not self._steps.tier.has_pending_work()
        seen.longest = self._steps.longest
        return seen

    def _ask(self):
        self._requests += 1
        row = self._free.pop()
        self._rows[row] = POISON
        self._asked[f"request {self._requests}"] = (self._random.choice(self._stored[-_RECENT:]), row)

    def _store(self, seen):
        self._next += 1
        job = self._steps.submit([key_of(self._next)], [self._next % self._sources], load=False)
        self._stores[job] = self._next
        seen.most_open = max(seen.most_open, len(self._loads) + len(self._stores))

    def _step(self, seen):
        from vllm.v1.kv_offload.base import LookupResult, ReqContext

        for request, (number, row) in list(self._asked.items()):
            found = self._steps.call("lookup", key_of(number), ReqContext(req_id=request))
            if found is LookupResult.RETRY:
                continue
            del self._asked[request]
            if found is LookupResult.HIT:
                job = self._steps.submit([key_of(number)], [row], load=True, request=request)
                self._loads[job] = (number, row, request)
            else:
                self._missed(seen, row, request)
        seen.most_open = max(seen.most_open, len(self._loads) + len(self._stores))
        for result in self._steps.call("get_finished_jobs"):
            if result.job_id in self._stores:
                self._ended_store(seen, result)
            else:
                self._ended_load(seen, result)
        self._steps.call("on_schedule_end", None)

    def _ended_store(self, seen, result):
        number = self._stores.pop(result.job_id)
        seen.stored += result.success
        seen.unstored += not result.success
        if result.success:
            self._stored.append(number)

    def _ended_load(self, seen, result):
        number, row, request = self._loads.pop(result.job_id)
        if not result.success:
            self._missed(seen, row, request)
            return
        seen.hits += 1
        seen.wrong += not np.array_equal(self._rows[row], self._rows[number % self._sources])
        self._give_back(row, request)

    def _missed(self, seen, row, request):
        seen.misses += 1
        seen.wrong += bool((self._rows[row] != POISON).any())
        self._give_back(row, request)

    def _give_back(self, row, request):
        self._free.append(row)
        context = collections.namedtuple("Context", "req_id")(request)
        self._steps.call("on_request_finished", context)
