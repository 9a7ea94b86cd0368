"""The reader's side of a `StreamBuffer`: a queue of its own, read without a lock as long as it lasts."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Literal, Protocol, Self, TypeAlias, TypeVar

from atlas.core.token_bucket import TokenBucket
from atlas.core.waiters import ThreadWaiter, Waiter, new_future, set_alarm
from atlas.errors import StreamBufferError

__all__ = ["BufferReader", "Ending", "OverflowPolicy", "ReaderStats"]

T = TypeVar("T")
W = TypeVar("W", asyncio.Future[None], ThreadWaiter)

OverflowPolicy: TypeAlias = Literal["block", "drop_oldest", "drop_newest", "coalesce", "error"]
"""What happens to an item that does not fit; see `StreamBuffer`."""

Ending: TypeAlias = Literal["closed", "failed", "cancelled", "detached"]
"""How a reader came to its end: the stream was complete, broke, was cancelled, or the reader itself
was closed by its owner."""


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """What became of the items for one reader.

    ``delivered + dropped + merged + missed + pending`` is the number of items accepted since the
    reader's start (since the buffer's start for a reader with ``from_start=True``).

    Attributes:
        delivered: Items handed to the consumer; merged items count as one.
        dropped: Items this reader lost to the overflow policy, or that were still unread when
            the buffer was cancelled or the reader closed.
        merged: Items that were folded into another one.
        missed: Items that were gone, and could not be merged, when the reader joined.
        pending: Items waiting for the consumer.
    """

    delivered: int
    dropped: int
    merged: int
    missed: int
    pending: int


class Held(Protocol[T]):
    """What a reader asks of its buffer. The lists are touched under the lock only."""

    _lock: threading.Lock
    _ending: Literal["closed", "failed", "cancelled"] | None
    _paused: bool
    _parked: list[Waiter]
    _sleepers: list[Waiter]

    @property
    def _acquire(self) -> Callable[[], object]:
        """Take the lock."""
        ...

    @property
    def _release(self) -> Callable[[], None]:
        """Let go of the lock."""
        ...

    @property
    def _accepted(self) -> int:
        """How many items were taken in."""
        ...

    def _fold(self, items: list[T]) -> T:
        """Merge items into one."""
        ...

    def _raise_failure(self) -> None:
        """Raise what the producer failed with, if it did."""

    def _unlist(self, waiter: Waiter) -> bool:
        """Take a waiter off its list, if it is on one."""
        ...

    def _retire(self, reader: BufferReader[T], ending: Ending) -> None:
        """Let go of a reader that has come to its end."""

    # without the lock

    def _relieve(self, reader: BufferReader[T]) -> None:
        """Hear that a reader above the low-water mark has read."""

    def _leave(self, waiter: Waiter) -> None:
        """Forget a waiter that gave up."""

    def _detach(self, reader: BufferReader[T]) -> None:
        """Let go of a reader that was closed by its owner."""


class BufferReader(Generic[T]):
    """One reader of a `StreamBuffer`: sees every item, in order, at its own pace.

    Iterate it with ``async for`` on any event loop, or with ``for`` in any thread. The loop ends
    when the buffer was closed and everything was read, when it was cancelled, or when the reader
    was closed; `ending` tells which. If the producer failed, its error is raised once everything
    that had arrived was delivered (and again at each further attempt).

    A reader belongs to one consumer at a time: share the buffer, not the reader. Cancelling a
    waiting read loses nothing; the next read goes on where it left off. Close a reader that is not
    read to its end (it is a context manager), or under ``"block"`` it holds the producer.

    Readers are made by `StreamBuffer.read`.
    """

    __slots__ = (
        "_bucket",
        "_buffer",
        "_delay",
        "_dropped",
        "_ending",
        "_items",
        "_joined_at",
        "_left_at",
        "_merged",
        "_missed",
        "_overflow",
        "_ready",
        "_waiting",
        "_watched",
    )

    def __init__(self, buffer: Held[T], *, joined_at: int, bucket: TokenBucket | None) -> None:
        self._buffer = buffer
        self._bucket = bucket
        self._items: deque[T] = deque()
        # What may be taken without asking: `_items`, or a deque that is always empty while the
        # reader is held (paused, rate-limited), which sends every read to the slow path.
        self._ready: deque[T] = self._items
        # What came when the reader was full, waiting to be merged ("coalesce" only).
        self._overflow: list[T] = []
        # Whether the buffer wants to hear of reads: it stands above its low-water mark.
        self._watched = False
        self._waiting: Waiter | None = None
        # For how many seconds the rate limit makes that waiter sleep.
        self._delay: float | None = None
        self._ending: Ending | None = None
        self._joined_at = joined_at
        self._left_at: int | None = None
        self._dropped = 0
        self._merged = 0
        self._missed = 0

    def __repr__(self) -> str:
        return f"<BufferReader pending={self.pending} ending={self._ending!r}>"

    # -- facts --

    @property
    def ending(self) -> Ending | None:
        """How the reader ended, None while there may be more to read."""
        return self._ending

    @property
    def pending(self) -> int:
        """Items waiting for this reader."""
        return len(self._items) + len(self._overflow)

    @property
    def stats(self) -> ReaderStats:
        """What became of the items for this reader so far."""
        with self._buffer._lock:
            return self._count()

    # -- reading --

    def __aiter__(self) -> BufferReader[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            # The fast path: a pop without the lock, see the module. The flag is looked at after
            # the pop, and producers look at the deque after raising it: one sees the other.
            if self._ready:
                try:
                    item = self._ready.popleft()
                except IndexError:
                    continue  # another thread dropped the last item, or paused, in between
                if self._watched:
                    self._buffer._relieve(self)
                return item

            taken = self._take(1, new_future)
            if isinstance(taken, list):
                if taken:
                    return taken[0]
                raise StopAsyncIteration
            try:
                await taken
            except BaseException:
                self._give_up(taken)
                raise

    def __iter__(self) -> BufferReader[T]:
        return self

    def __next__(self) -> T:
        while True:
            if self._ready:
                try:
                    item = self._ready.popleft()
                except IndexError:
                    continue
                if self._watched:
                    self._buffer._relieve(self)
                return item

            taken = self._take(1, ThreadWaiter)
            if isinstance(taken, list):
                if taken:
                    return taken[0]
                raise StopIteration
            try:
                taken.sleep()
            except BaseException:
                self._give_up(taken)
                raise

    async def next_batch(self) -> list[T]:
        """Wait for at least one item and return all that are there; ``[]`` at the end.

        The cheapest way to read a busy stream, and the one to use when items can be handled
        together (one screen update, one write).

        Raises:
            Exception: What the producer gave to `StreamBuffer.fail`.
        """
        while True:
            taken = self._take(None, new_future)
            if isinstance(taken, list):
                return taken
            try:
                await taken
            except BaseException:
                self._give_up(taken)
                raise

    def _take(self, most: int | None, make_waiter: Callable[[], W]) -> list[T] | W:
        """Take up to ``most`` items; none at the end; a waiter when there is nothing to take."""
        buffer = self._buffer
        buffer._acquire()
        try:
            if (
                self._items
                or self._overflow
                or self._ending is not None
                or buffer._ending is not None
                or self._delay is not None
            ):
                taken = self._take_what_may_be(most)
                if taken is not None:
                    return taken
            if self._waiting is not None and not self._waiting.done():
                raise StreamBufferError(
                    "This reader is already being waited on by another consumer. "
                    "Give each consumer a reader of its own: `buffer.read()`."
                )
            self._waiting = waiter = make_waiter()
            if buffer._paused or self._delay is not None:
                self._park(waiter)
            else:
                buffer._sleepers.append(waiter)
            return waiter
        finally:
            buffer._release()
            if self._watched:
                buffer._relieve(self)

    def _take_what_may_be(self, most: int | None) -> list[T] | None:
        """Return items, none at the end, or None if the reader has to wait."""
        buffer = self._buffer
        if self._delay is not None:
            self._delay = None
            if self._waiting is not None:
                # The alarm that woke it did not take the waiter off the list.
                buffer._unlist(self._waiting)
                self._waiting = None
        if self._ending is None and not buffer._paused:
            if self._items or self._overflow:
                return self._grant(most)
            if buffer._ending is not None:
                buffer._retire(self, buffer._ending)
        if self._ending is None:
            return None
        buffer._raise_failure()
        return []

    def _grant(self, most: int | None) -> list[T] | None:
        """Return what may be taken now; or None, and note for how long the rate forbids it."""
        items = self._items
        if self._overflow and not items:
            self._unfold()
        count = len(items) if most is None else min(most, len(items))
        if self._bucket is not None:
            count = min(count, self._bucket.available())
            if count == 0:
                self._delay = self._bucket.delay()
                return None
            self._bucket.spend(count)
        return [items.popleft() for _ in range(count)]

    def _park(self, waiter: Waiter) -> None:
        """Sleep through what is put: only time or a change of state lets the reader go on."""
        if self._delay is not None:
            set_alarm(waiter, self._delay)
        self._buffer._parked.append(waiter)

    def _give_up(self, waiter: Waiter) -> None:
        self._waiting = None
        self._buffer._leave(waiter)

    # -- ending --

    def close(self) -> None:
        """Stop reading: what is unread is dropped, and producers this reader held go on.

        Safe from any thread and at any time, also more than once. A consumer waiting in this
        reader comes to its end.
        """
        self._buffer._detach(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- for the buffer, under its lock --

    @property
    def _lag(self) -> int:
        """How many places of the capacity are taken: the overflow will be one item."""
        return len(self._items) + bool(self._overflow)

    def _place(self, item: T, policy: OverflowPolicy, capacity: int) -> bool:
        """Take the item as the policy says; False if this reader will never see it."""
        items = self._items
        if policy == "coalesce" and (self._overflow or len(items) >= capacity - 1):
            self._overflow.append(item)
            return True
        if policy == "drop_newest" and len(items) >= capacity:
            self._dropped += 1
            return False
        if policy == "drop_oldest" and len(items) >= capacity:
            self._drop_oldest()
        items.append(item)
        return True

    def _drop_oldest(self) -> bool:
        try:
            self._items.popleft()
        except IndexError:
            # The consumer, who takes no lock, was quicker: there is room now.
            return False
        self._dropped += 1
        return True

    def _drop_all(self) -> None:
        self._dropped += len(self._overflow)
        self._overflow.clear()
        while self._drop_oldest():
            pass

    def _unfold(self) -> None:
        """Turn the overflow into one item; once everything before it was read."""
        self._items.append(self._buffer._fold(self._overflow))
        self._merged += len(self._overflow) - 1
        self._overflow.clear()

    def _restart(self, items: Iterable[T], *, joined_at: int, merged: int = 0) -> None:
        """Forget what was kept and start with ``items``."""
        self._overflow.clear()
        self._items.clear()
        self._items.extend(items)
        self._joined_at = joined_at
        self._dropped = 0
        self._merged = merged

    def _gate(self, *, held: bool, nothing: deque[T]) -> None:
        self._ready = nothing if held or self._bucket is not None else self._items

    def _count(self) -> ReaderStats:
        last = self._buffer._accepted if self._left_at is None else self._left_at
        pending = self.pending
        lost = self._dropped + self._merged + self._missed
        return ReaderStats(
            delivered=last - self._joined_at - lost - pending,
            dropped=self._dropped,
            merged=self._merged,
            missed=self._missed,
            pending=pending,
        )
