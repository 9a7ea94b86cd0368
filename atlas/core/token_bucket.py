"""A token bucket: so many per second on average, a little more after a lull."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["TokenBucket"]

_BURST_SECONDS = 0.05


class TokenBucket:
    """Grants ``rate`` items per second, and after a lull up to a twentieth of a second's worth.

    It starts full, holds at least one token, and is not safe from several threads at once.

    Args:
        rate: Tokens per second; more than 0.
        monotonic: Where it reads the time, in seconds.
    """

    __slots__ = ("_burst", "_monotonic", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, monotonic: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = max(1.0, rate * _BURST_SECONDS)
        self._monotonic = monotonic
        self._tokens = self._burst
        self._updated = monotonic()

    def available(self) -> int:
        """Return how many may be spent now."""
        now = self._monotonic()
        earned = max(0.0, now - self._updated) * self._rate
        self._tokens = min(self._burst, self._tokens + earned)
        self._updated = now
        # A wait of exactly one token's time may fall short of it by a rounding error.
        return int(self._tokens + 1e-6)

    def spend(self, count: int) -> None:
        """Take out ``count`` tokens."""
        self._tokens -= count

    def delay(self) -> float:
        """Return the seconds until there will be a whole token."""
        return max(0.0, 1.0 - self._tokens) / self._rate
