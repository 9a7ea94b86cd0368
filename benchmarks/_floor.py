"""A bus of a few lines that does what this one promises and no more: the floor that ``bus.py`` shows.

For one class of messages, with nothing to choose, nothing to subscribe and no failure to tell: a message
gets its place, sequence and time, is kept in a ring, and is what its handlers do is caused by; whoever
published it gets a receipt, which can be awaited. Whoever finds a quicker way has lowered the floor.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import types
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextvars import ContextVar
from typing import Any

from atlas.core.messages import stamp

_CAUSE: ContextVar[Any] = ContextVar("cause", default=None)


class Receipt:
    __slots__ = ("message",)
    message: Any


def places() -> Iterator[tuple[int, int, int]]:
    times = itertools.starmap(time.time_ns, itertools.repeat(()))
    return zip(itertools.repeat(1), itertools.count(1), times, strict=False)


def floor_sync(handlers: list[Callable[[Any], None]]) -> Callable[[Any], object]:
    place, keep = places(), deque[Any](maxlen=1024).append
    cause, enter, leave = _CAUSE.get, _CAUSE.set, _CAUSE.reset

    def publish(event: Any) -> Receipt:
        known: Any = next(place) if cause() is None else (next(place), cause())
        stamp(event, known)
        keep(event)
        receipt = Receipt()
        receipt.message = event
        token = enter(known)
        try:
            for handler in handlers:
                handler(event)
        finally:
            leave(token)
        return receipt

    return publish


def floor_async(handlers: list[Callable[[Any], Awaitable[None]]]) -> Callable[[Any], Any]:
    place, keep = places(), deque[Any](maxlen=1024).append
    cause, enter, leave = _CAUSE.get, _CAUSE.set, _CAUSE.reset

    @types.coroutine
    def run(event: Any) -> Generator[Any, Any, None]:
        token = enter(event._stamp)
        try:
            for handler in handlers:
                yield from handler(event)  # type: ignore[misc]  # awaits a coroutine
        finally:
            leave(token)

    class AwaitedReceipt:
        __slots__ = ("message",)
        message: Any

        def __await__(self) -> Generator[Any, Any, AwaitedReceipt]:
            yield from run(self.message)  # type: ignore[misc]
            return self

    def publish(event: Any) -> AwaitedReceipt:
        stamp(event, next(place) if cause() is None else (next(place), cause()))
        keep(event)
        receipt = AwaitedReceipt()
        receipt.message = event
        return receipt

    return publish


def floor_observed(
    handlers: list[Callable[[Any], Awaitable[None]]],
) -> tuple[Callable[[Any], object], Callable[[], Awaitable[None]]]:
    """Return what publishes to observers, each with a queue of its own, and what empties these."""
    place, keep = places(), deque[Any](maxlen=1024).append
    cause, enter = _CAUSE.get, _CAUSE.set
    queues: list[deque[Any]] = [deque() for _ in handlers]

    def publish(event: Any) -> Receipt:
        stamp(event, next(place) if cause() is None else (next(place), cause()))
        keep(event)
        for queue in queues:
            queue.append(event)
        receipt = Receipt()
        receipt.message = event
        return receipt

    async def observe() -> None:
        for queue, handler in zip(queues, handlers, strict=True):
            while queue:
                event = queue.popleft()
                enter(event._stamp)
                await handler(event)

    async def observed() -> None:
        # in a context of its own, which keeps no cause from whoever waits
        await asyncio.create_task(observe())

    return publish, observed
