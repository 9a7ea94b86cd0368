"""Waking whoever waits too long: one timer of a loop for any number of deadlines.

Nearly every deadline is set and taken back before it passes. A timer of the loop for each costs more than
most of what happens in between: an object, and a place in a heap that is compared in Python. Here a
deadline is an entry in a heap of tuples, and the loop has one timer, for the earliest.

For what happens outside of recorded runs, whose timers are part of them.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import Context
from types import TracebackType
from typing import Final

__all__ = ["Alarm", "Patience", "clock_of", "set_alarm"]


class Alarm:
    """Something that is done later, unless it is cancelled before; see `set_alarm`."""

    __slots__ = ("_action", "_alarms")

    def __init__(self, alarms: _Alarms, action: Callable[[], object]) -> None:
        self._alarms = alarms
        self._action: Callable[[], object] | None = action

    def cancel(self) -> None:
        """Let it not be done. On the loop's thread; idempotent."""
        if self._action is not None:
            self._action = None
            self._alarms.dropped += 1

    def ring(self) -> None:
        """Do it, if it is not cancelled."""
        action, self._action = self._action, None
        if action is not None:
            action()


def set_alarm(
    seconds: float, action: Callable[[], object], loop: asyncio.AbstractEventLoop | None = None
) -> Alarm:
    """Call ``action`` on the running loop after so many seconds, unless it is cancelled before.

    Alarms ring in the order in which they are due. What an action raises goes to the loop's exception
    handler, and the others ring all the same. Actions run in an empty context.

    Args:
        seconds: From now.
        action: What to do.
        loop: The running loop, from who knows it: to ask for it is not cheap before 3.12.
    """
    loop = loop or asyncio.get_running_loop()
    here: _Here = _HERE
    if here.loop() is not loop:
        here.loop, here.alarms = weakref.ref(loop), _Alarms(clock_of(loop))
    return here.alarms.set(loop, seconds, action)


class Patience:
    """Cancels what happens inside a ``with`` block when it takes too long; `TimeoutError` is raised.

    Does what `asyncio.timeout` does, at a third of its cost. A cancellation by somebody else stays one.
    """

    __slots__ = ("_alarm", "_cancelling", "_is_over", "_seconds", "_task")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether it took too long; a `TimeoutError` before is somebody else's."""
        return self._is_over

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._alarm = set_alarm(self._seconds, self._end, loop)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._alarm.cancel()
        if not self._is_over:
            return
        is_own = self._task.uncancel() <= self._cancelling
        if is_own and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """Return the clock of a loop; where that is the system's, as of asyncio's own, the system's itself."""
    is_plain = getattr(loop.time, "__func__", None) is asyncio.BaseEventLoop.time
    return time.monotonic if is_plain else loop.time


class _Alarms:
    """The alarms of one loop, the earliest first, and the one timer that looks at them.

    Attributes:
        dropped: How many of them were cancelled.
    """

    __slots__ = ("_count", "_heap", "_looks_at", "_now", "_timer", "dropped")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._heap: list[tuple[float, int, Alarm]] = []
        self._count = itertools.count()
        self.dropped = 0
        self._looks_at = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def set(
        self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], object]
    ) -> Alarm:
        alarm = Alarm(self, action)
        due = self._now() + seconds
        heapq.heappush(self._heap, (due, next(self._count), alarm))
        if due < self._looks_at:
            self._look_at(loop, due)
        elif self.dropped > _FEW:
            self._clear()
        return alarm

    def _clear(self) -> None:
        """Clear the heap of what was cancelled, if that is most of it."""
        if self.dropped * 2 > len(self._heap):
            self._heap = [each for each in self._heap if each[2]._action is not None]
            heapq.heapify(self._heap)
            self.dropped = 0

    def _look_at(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = due
        # An empty context: whoever sets the first alarm is kept alive by none of the later ones.
        self._timer = loop.call_at(due, self._look, loop, context=Context())

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._looks_at = None, float("inf")
        now, due = self._now(), []
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2]._action is None):
            alarm = heapq.heappop(self._heap)[2]
            if alarm._action is None:
                self.dropped -= 1
            else:
                due.append(alarm)
        if self._heap:
            self._look_at(loop, self._heap[0][0])
        for alarm in due:
            loop.call_soon(alarm.ring, context=Context())


class _Here(threading.local):
    """The alarms of the loop that ran last in this thread."""

    def __init__(self) -> None:
        self.loop: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None
        self.alarms = _Alarms(time.monotonic)


_FEW: Final = 64
_HERE: Final = _Here()
