"""Streams: a subscription read with ``async for``."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Literal, Protocol, Self, TypeVar, cast, get_args

from atlas.core.inner_loop import here
from atlas.core.messages import Message
from atlas.core.receipts import loop_of
from atlas.core.selectors import Selector
from atlas.core.subscriptions import Subscription, check_capacity, check_one_of
from atlas.errors import BufferOverflowError, BusError

__all__ = ["MessageStream", "StreamOverflow"]

M_co = TypeVar("M_co", bound=Message, covariant=True)

StreamOverflow = Literal["block", "drop_oldest", "drop_newest", "latest", "error"]

_running_loop = asyncio._get_running_loop


class Source(Protocol):
    """What a stream asks of its bus."""

    _streams: set[MessageStream[Any]]

    def subscribe(
        self,
        selector: Selector,
        handler: Callable[[Any], object],
        *,
        where: Callable[[Any], object] | None,
        loop: asyncio.AbstractEventLoop | None,
        name: str | None,
    ) -> Subscription[Any]:
        """Subscribe a handler."""
        ...


class MessageStream(Generic[M_co]):
    """Messages of a subscription as an async iterator; made by `EventBus.stream`.

    It collects from entering the ``async with`` block to leaving it, and is read on the loop that
    entered it. Several tasks may read it: each message goes to one of them. When the bus closes, what
    is waiting can still be read, then the iteration ends. Nothing ends it silently and nothing keeps
    it hanging.

    Attributes:
        dropped: How many messages the overflow policy has dropped.
    """

    def __init__(
        self,
        bus: Source,
        selector: Selector,
        where: Callable[[Any], object] | None,
        capacity: int,
        overflow: StreamOverflow,
    ) -> None:
        check_capacity(capacity)
        check_one_of("overflow", overflow, get_args(StreamOverflow))
        self._bus = bus
        self._selector = selector
        self._where = where
        self._capacity = 1 if overflow == "latest" else capacity
        self._overflow = overflow
        self._items: deque[M_co] = deque()
        self._lock = threading.RLock()  # reentrant: a finalizer may publish while it is held
        self._readers: list[asyncio.Future[None]] = []
        self._room: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscription: Subscription[Any] | None = None
        self._error: BaseException | None = None
        self._ended = False
        self.dropped: int = 0

    async def __aenter__(self) -> Self:
        if self._loop is not None:
            raise BusError(
                "This stream was entered before, and a stream is entered once. Get another one from "
                "`bus.stream(...)`; several tasks may read the same one."
            )
        self._loop = loop_of("bus.stream")
        handler = self._put_when_room if self._overflow == "block" else self._push
        self._subscription = self._bus.subscribe(
            self._selector, handler, where=self._where, loop=self._loop, name="stream"
        )
        self._bus._streams.add(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        self._items.clear()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> M_co:
        place = here()
        if place is None:
            return await self._take()
        # In a run, what comes is recorded. It is taken out when the run has it, so that a reader
        # who gives up in between loses nothing.
        found = await place.inner.supervisor.wait_outside(place, "stream", self._look)
        if self._items and self._items[0] in (found or ()):
            self._items.popleft()
        self._make_room()
        if not found:
            raise StopAsyncIteration
        return cast("M_co", found[0])

    async def _look(self) -> tuple[M_co, ...]:
        try:
            item = await self._take()
        except StopAsyncIteration:
            return ()
        self._items.appendleft(item)
        return (item,)

    async def _take(self) -> M_co:
        while True:
            if self._items:
                item = self._items.popleft()
                self._make_room()
                return item
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._ended:
                raise StopAsyncIteration
            await self._next_arrival()

    async def _next_arrival(self) -> None:
        if self._loop is None:
            raise BusError(
                "This stream was not entered, so nothing comes in. Read it inside of "
                "`async with bus.stream(...) as messages:`."
            )
        if self._loop is not asyncio.get_running_loop():
            raise BusError(
                "This stream is read on another event loop than the one that entered it; enter a "
                "stream of its own on each loop."
            )
        with self._lock:
            if self._items or self._ended:
                return
            reader = self._loop.create_future()
            self._readers.append(reader)
        await reader

    # -- the bus's side ---------------------------------------------------------------------------

    def _push(self, message: Any) -> None:
        """Take a message by policy. Called in the publisher's thread."""
        with self._lock:
            if self._ended:
                return
            if len(self._items) >= self._capacity and not self._give_way():
                return
            self._items.append(message)
        self._tell_readers()

    def _give_way(self) -> bool:
        if self._overflow == "error":
            self._error = BufferOverflowError(
                f"A stream of {self._selector!r} held {self._capacity} messages, its capacity, and "
                f"one more came. Read faster, give it a larger capacity, or another overflow policy.",
                capacity=self._capacity,
            )
            self._end_soon()
            return False
        if self._overflow == "drop_newest":
            self.dropped += 1
            return False
        with contextlib.suppress(IndexError):  # the reader, who takes no lock, emptied it just now
            self._items.popleft()
            self.dropped += 1
        return True

    async def _put_when_room(self, message: Any) -> None:
        """Take a message once there is room: the overflow policy "block". On the reader's loop."""
        while len(self._items) >= self._capacity and not self._ended:
            assert self._loop is not None
            room = self._loop.create_future()
            self._room.append(room)
            await room
        if not self._ended:
            self._items.append(message)
            self._tell_readers()

    def _make_room(self) -> None:
        while self._room:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)
                return

    def _tell_readers(self) -> None:
        if not self._readers:
            return
        # all of them: one that gave up meanwhile would keep it from the others
        readers, self._readers = self._readers, []

        def wake() -> None:
            for reader in readers:
                if not reader.done():
                    reader.set_result(None)

        self._on_loop(wake)

    def _on_loop(self, call: Callable[[], object]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if _running_loop() is loop:
            call()
        else:
            loop.call_soon_threadsafe(call)

    def _end_soon(self) -> None:
        self._ended = True
        self._on_loop(self._close)
        self._tell_readers()

    def _close(self) -> None:
        """End the stream; what waits in it stays readable. Any thread."""
        self._ended = True
        self._bus._streams.discard(self)
        if self._subscription is not None:
            self._subscription.close()
        self._tell_readers()
        self._on_loop(self._free_all)

    def _free_all(self) -> None:
        while self._room:
            self._make_room()
