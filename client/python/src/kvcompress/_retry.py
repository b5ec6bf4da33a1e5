"""When a call is made again that found its daemon busy or gone."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

from ._errors import InvalidArgument, KvCompressError, ResourceExhausted, Unavailable, late

# Seconds that a call has left at this moment; None: no limit. 0 when it is over.
Left = Callable[[], float | None]


@dataclass(frozen=True)
class RetryPolicy:
    """Waits in seconds. The first is `initial_backoff`, each further one `multiplier` times as long, up to
    `max_backoff`, varied by `jitter` of itself, and never shorter than the daemon asks for. A daemon that asks for more
    than `max_retry_after` is not waited for."""

    max_attempts: int = 10
    initial_backoff: float = 0.1
    multiplier: float = 1.6
    max_backoff: float = 2.0
    jitter: float = 0.2
    max_retry_after: float = 30.0

    def __post_init__(self) -> None:
        attempts = isinstance(self.max_attempts, int) and self.max_attempts >= 1
        others = (self.initial_backoff, self.multiplier, self.max_backoff, self.jitter, self.max_retry_after)
        if not attempts or not all(isinstance(other, Real) and other >= 0 for other in others):
            raise InvalidArgument(f"attempts are a number from 1, and what is waited is none below 0: {self}")

    def delay(self, error: KvCompressError, attempt: int) -> float | None:
        """Seconds to wait after attempt number `attempt`, from 1, failed; None: not again. What is over a limit, and
        not only over the budget of the moment, comes without a hint and stays so."""
        hint = error.retry_after
        passes = isinstance(error, Unavailable) or (isinstance(error, ResourceExhausted) and hint is not None)
        if not passes or attempt >= self.max_attempts or (hint or 0.0) > self.max_retry_after:
            return None
        backoff = min(self.initial_backoff * self.multiplier ** (attempt - 1), self.max_backoff)
        return max(hint or 0.0, backoff) * random.uniform(1.0, 1.0 + self.jitter)


DEFAULT_RETRY = RetryPolicy()
NO_RETRY = RetryPolicy(max_attempts=1)
WAIT_READY = RetryPolicy(max_attempts=1 << 30, max_backoff=0.5)

# Seconds that gRPC needs to end a call whose deadline is over.
GRACE = 0.2
# gRPC takes what is far above, infinity too, for times that are over.
_MOST_SECONDS = 1e9


def checked_seconds(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, (float, int, Real)) or not timeout >= 0:
        raise InvalidArgument(f"a timeout is a number of seconds, not {timeout!r}")
    return None if timeout > _MOST_SECONDS else float(timeout)


class Attempts:
    """The attempts of one call, within one deadline, of checked seconds: DeadlineExceeded for 0, which gRPC may still
    answer within."""

    def __init__(self, policy: RetryPolicy, seconds: float | None):
        self._policy = policy
        if seconds == 0:
            raise late()
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._made = 0

    def left(self) -> float | None:
        """As Left."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def delay_after(self, error: KvCompressError) -> float:
        """Seconds until the next attempt; raises `error` when there is none, or the wait would pass the deadline."""
        self._made += 1
        delay = self._policy.delay(error, self._made)
        left = self.left()
        if delay is None or (left is not None and delay >= left):
            raise error
        return delay
