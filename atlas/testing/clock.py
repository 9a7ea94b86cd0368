"""A clock that stands still until a test moves it."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """A `atlas.typing.Clock` for tests. Any thread may read and move it.

    Args:
        start: Wall-clock time at the start, in seconds since 1970 (UTC).
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start_ns = round(start * 1_000_000_000)
        self._passed_ns = 0

    def time_ns(self) -> int:
        """Return the wall-clock time in nanoseconds since 1970 (UTC)."""
        return self._start_ns + self._passed_ns

    def monotonic(self) -> float:
        """Return the seconds passed since the start."""
        return self._passed_ns / 1_000_000_000

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            ValueError: Time does not go back.
        """
        if seconds < 0:
            raise ValueError(f"{seconds} seconds would turn the clock back; give 0 or more.")
        self._passed_ns += round(seconds * 1_000_000_000)
