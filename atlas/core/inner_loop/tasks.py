"""Tasks and timers of a run, and the deliveries that cancel the ones and set off the others."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

from atlas.core.inner_loop.place import Delivery, Place

__all__ = ["InnerTask", "InnerTimer"]


class Fired(Delivery):
    """A timer of the run has gone off."""

    __slots__ = ("timer",)

    def __init__(self, timer: InnerTimer) -> None:
        super().__init__(timer.effect, "timer", repr(timer.delay))
        self.timer: InnerTimer = timer

    @property
    def is_stale(self) -> bool:
        return self.timer.cancelled() or self.timer.fired

    def hand_in(self) -> None:
        self.timer.fire()


class Cancelled(Delivery):
    """A task of the run was cancelled by somebody outside."""

    __slots__ = ("cancel", "task")

    def __init__(self, path: str, task: asyncio.Task[Any], cancel: Callable[[], object]) -> None:
        super().__init__(path, "cancel")
        self.task: asyncio.Task[Any] = task
        self.cancel: Callable[[], object] = cancel

    @property
    def is_stale(self) -> bool:
        return self.task.done()

    def hand_in(self) -> None:
        self.cancel()


# Any, here and below: whatever the coroutine returns
class InnerTask(asyncio.Task[Any]):
    """A task of a run. Cancelled from outside the run, it is when the run is quiet.

    Its hash is its number in the run: sets of tasks, which asyncio's own `wait`, `as_completed` and
    `TaskGroup` iterate over, are then in the same order in every process.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        place: Place,
        *,
        is_counted: bool = True,
        **options: Any,
    ) -> None:
        inner = place.inner
        self._place = place
        self._number = inner.count_task() if is_counted else 0
        super().__init__(coroutine, loop=inner.loop, **options)

    __eq__ = object.__eq__

    def __hash__(self) -> int:
        return self._number

    def cancel(self, msg: object = None) -> bool:
        """Cancel the task; see `asyncio.Task.cancel`."""
        inner = self._place.inner
        if inner.inside or inner.closed:
            return super().cancel(msg)
        if self.done():
            return False
        if inner.is_passed_on(self, msg):
            return True
        inner.deliver(Cancelled(self._place.path, self, functools.partial(super().cancel, msg)))
        return True


class InnerTimer(asyncio.TimerHandle):
    """A callback of a run that is due at some time. The real timer is outside.

    Attributes:
        effect: The id under which its going off is written down.
        delay: Seconds from the moment of the run in which it was set, to the microsecond: some Pythons
            tell a moment instead, and the difference of two moments is not exact.
    """

    __slots__ = ("_inner", "_real", "delay", "effect", "fired")

    def __init__(
        self,
        place: Place,
        delay: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None,
    ) -> None:
        inner = place.inner
        super().__init__(inner.moment + delay, callback, args, inner.loop, context)
        self._inner = inner
        self._real: asyncio.TimerHandle | None = None
        self.effect = place.next_effect()
        self.delay: float = round(delay, 6)
        self.fired: bool = False

    def arm(self) -> None:
        """Set the real timer."""
        inner = self._inner
        delay = max(0.0, self.when() - inner.moment)
        self._real = inner.hooks.set_timer(delay, inner.deliver, Fired(self), context=Context())

    def fire(self) -> None:
        """Schedule the callback, as the loop would."""
        self._disarm()
        self.fired = True
        self._inner.ready.append(self)

    def cancel(self) -> None:
        """Never call the callback."""
        if not self.cancelled():
            self._disarm()
            # not TimerHandle's own, which would tell the loop about a timer it does not have
            asyncio.Handle.cancel(self)

    def _disarm(self) -> None:
        self._inner.timers.pop(self.effect, None)
        if self._real is not None:
            self._real.cancel()
            self._real = None
