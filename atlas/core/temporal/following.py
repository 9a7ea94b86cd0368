"""Following a timeline: what is there, then what is appended, by whichever process."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from itertools import islice
from time import monotonic
from types import TracebackType
from typing import Self

from atlas.core.log.engine import Engine
from atlas.core.temporal.events import Entry, EventCodec, entries_in
from atlas.core.temporal.history import CHUNK, History
from atlas.errors import LogClosedError, LogError

__all__ = ["Bell", "Follower"]

_SLICE = 0.5
"""Seconds after which a blocked follower looks whether it was closed."""


class Bell:
    """Wakes the followers on event loops when the log has grown; one thread for all of a store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Future[None], tuple[int, asyncio.AbstractEventLoop]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nobody is woken any more."""
        return self._closed

    async def beyond(self, position: int, seconds: float) -> None:
        """Return when there may be a record after this position, or the time is up."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._closed:
                return
            self._waiting[future] = position, loop
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="atlas-follow", daemon=True)
                self._thread.start()
        try:
            # The thread may be waiting for a later position.
            if (self._engine.last_position() or 0) <= position:
                await asyncio.wait([future], timeout=seconds)
        finally:
            with self._lock:
                self._waiting.pop(future, None)
            future.cancel()

    def close(self) -> None:
        """Wake everybody, and nobody any more."""
        with self._lock:
            self._closed = True
        self._ring(None)

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed or not self._waiting:
                    self._thread = None
                    return
                position = min(position for position, _ in self._waiting.values())
            try:
                if self._engine.wait_beyond(position, _SLICE):
                    self._ring(self._engine.last_position() or 0)
            except LogError:
                # Those who wait meet the same error when they read on, and can tell it.
                with self._lock:
                    self._thread = None
                self._ring(None)
                return

    def _ring(self, position: int | None) -> None:
        """Wake those who wait for something before this position; None: all."""
        with self._lock:
            for future, (after, loop) in list(self._waiting.items()):
                if position is None or after < position:
                    del self._waiting[future]
                    _wake(future, loop)


def _wake(future: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.call_soon_threadsafe(_settle, future)
    except RuntimeError:
        return  # its loop is closed, and nobody waits there any more


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Follower:
    """The events of a timeline as they come, for ``for`` in a thread and ``async for`` on a loop.

    It ends when it is closed, the store is, or it has given what it was asked for. One consumer at
    a time. Use it as a context manager, or close it, where the loop may be left early.
    """

    def __init__(
        self,
        history: History,
        codec: EventCodec,
        bell: Bell,
        *,
        after: int,
        until: int | None,
        timeout: float | None,
    ) -> None:
        self._history = history
        self._codec = codec
        self._bell = bell
        self._version = after
        self._until = until
        self._timeout = timeout
        self._ready: deque[Entry] = deque()
        self._closed = False
        self._quiet_since = monotonic()

    @property
    def version(self) -> int:
        """The version of the last event given; go on after it another time."""
        return self._version

    def close(self) -> None:
        """End the iteration, also one that waits in another thread; within half a second."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Entry:
        while True:
            position = self._look()
            if self._ready:
                return self._take()
            if position is None:
                raise StopIteration
            self._history.engine.wait_beyond(position, self._patience())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Entry:
        while True:
            position = self._look()
            if self._ready:
                return self._take()
            if position is None:
                raise StopAsyncIteration
            await self._bell.beyond(position, self._patience())

    def _look(self) -> int | None:
        """Read on unless something is ready; return the position to wait beyond, None at the end."""
        if (
            self._closed
            or self._bell.closed
            or (self._until is not None and self._version >= self._until)
        ):
            self._ready.clear()
            return None
        if self._ready:
            return 0
        is_over = self._timeout is not None and self._left() <= 0
        engine = self._history.engine
        try:
            # Asked first, so that what is appended while reading ends the wait.
            position = engine.last_position() or 0
            for record, last in islice(self._history.records(self._version, self._until), CHUNK):
                time_ns = self._history.time_ns(record)
                entries = entries_in(record, self._codec, time_ns)
                self._ready.extend(e for e in entries if self._version < e.version <= last)
        except LogClosedError:
            return None
        return None if is_over and not self._ready else position

    def _take(self) -> Entry:
        entry = self._ready.popleft()
        self._version = entry.version
        self._quiet_since = monotonic()
        return entry

    def _left(self) -> float:
        return self._quiet_since + (self._timeout or 0) - monotonic()

    def _patience(self) -> float:
        return _SLICE if self._timeout is None else max(min(_SLICE, self._left()), 0)
