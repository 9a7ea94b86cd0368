"""What handlers cost and how they fare: counted always, timed if the bus is asked to measure."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

__all__ = ["HandlerMetrics", "Meter"]


@dataclasses.dataclass(frozen=True, slots=True)
class HandlerMetrics:
    """One subscription in figures, at one moment.

    Attributes:
        name: The subscription's name.
        failed: How many messages its handler failed on.
        waiting: How many messages wait on its lanes.
        dropped: How many messages its overflow policy dropped, or its end gave up, as an observer.
        merged: How many messages were merged into others.
        handled: How many messages it has ended, failed ones included; None if the bus does not
            measure. The same holds for the rest.
        p50: Seconds the handler took at the median of its last 1,024 messages.
        p99: Seconds at the 99th percentile of those.
    """

    name: str
    failed: int
    waiting: int
    dropped: int
    merged: int
    handled: int | None = None
    p50: float | None = None
    p99: float | None = None


class Meter:
    """Counts and times the calls of one handler."""

    __slots__ = ("durations", "handled")

    def __init__(self) -> None:
        self.handled: int = 0
        self.durations: deque[float] = deque(maxlen=1024)

    def plain(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a plain handler that is measured."""

        def measured(message: Any) -> object:
            started = perf_counter()
            try:
                return call(message)
            finally:
                self._note(started)

        return measured

    def asynchronous(self, call: Callable[[Any], Any]) -> Callable[[Any], Awaitable[object]]:
        """Return an async handler that is measured, its waiting included."""

        async def measured(message: Any) -> None:
            started = perf_counter()
            try:
                await call(message)
            finally:
                self._note(started)

        return measured

    def _note(self, started: float) -> None:
        self.durations.append(perf_counter() - started)
        self.handled += 1

    def percentile(self, part: float) -> float | None:
        """Return the duration that this part (0 to 1) of the last calls did not exceed."""
        durations = sorted(self.durations)
        return durations[min(int(len(durations) * part), len(durations) - 1)] if durations else None
