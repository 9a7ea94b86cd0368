"""A clock that stands still until a test moves it."""

from __future__ import annotations

from math import isfinite

from atlas.errors import ValidationError

__all__ = ["ManualClock"]


class ManualClock:
    """A `atlas.typing.Clock` for tests. Any thread may read and move it.

    Args:
        start: Wall-clock time at the start, in seconds since 1970 (UTC).
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start_ns = _nanoseconds("start", start)
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
            ValidationError: It is no number of seconds, or less than 0: time does not go back.
        """
        passed = _nanoseconds("seconds", seconds)
        if passed < 0:
            raise ValidationError(
                "ManualClock", "seconds", seconds, "a number from 0, to go forward,"
            )
        self._passed_ns += passed


def _nanoseconds(name: str, seconds: object) -> int:
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and isfinite(seconds):
        return round(seconds * 1_000_000_000)
    raise ValidationError("ManualClock", name, seconds, "a number of seconds")
