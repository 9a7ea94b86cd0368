"""A bounded buffer between the producers of a stream and any number of readers.

A `StreamBuffer` hands every item to every reader, in order, each at its own pace; it is where a
fast source meets slow consumers. It is safe from any thread and any event loop, needs no loop to
exist, and starts neither task nor thread. It knows nothing of the bus.

How it works, and why it is fast:

- Each reader owns a deque. A put appends to all of them; a read is one ``popleft``. Both are
  atomic, so that reading takes no lock, and an item is gone as soon as every reader passed it.
- Producers share one lock and a number, ``_room``: that many items surely fit before any reader
  can have reached the high-water mark. Readers only ever make more room, so the number stays true
  without looking at them, and a put is: decrement, append, return.
- Everything rare (full, empty, paused, rate-limited, ended) goes by the slow path, under the lock.
- Waiters are woken once per burst: whoever wakes a sleeper takes it off the list first, and the
  sleeper looks at the deque itself. Nothing is handed over through a future, hence a cancelled
  waiter can lose neither an item nor a wake-up.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from types import TracebackType
from typing import Generic, Literal, TypeVar, cast

from atlas.core.buffer_reader import BufferReader, Ending, OverflowPolicy, ReaderStats
from atlas.core.ordered_calls import OrderedCalls
from atlas.core.token_bucket import TokenBucket
from atlas.core.waiters import ThreadWaiter, Waiter, new_future, wake
from atlas.errors import (
    BufferClosedError,
    BufferOverflowError,
    BufferTimeoutError,
    ConfigurationError,
    StreamBufferError,
)
from atlas.typing import Clock

__all__ = ["BufferReader", "BufferStats", "Ending", "OverflowPolicy", "ReaderStats", "StreamBuffer"]

T = TypeVar("T")
W = TypeVar("W", asyncio.Future[None], ThreadWaiter)

_POLICIES = ("block", "drop_oldest", "drop_newest", "coalesce", "error")
_COMPACT_AT = 256


@dataclass(frozen=True, slots=True)
class BufferStats:
    """The counts of a buffer at one moment.

    Attributes:
        accepted: Items taken from producers, including those a policy then dropped.
        delivered: Items handed out, summed over all readers there ever were.
        dropped: Items lost to the policy, cancellation or a closing reader, summed likewise.
        merged: Items folded into another one, summed likewise.
        missed: Items that were gone when a reader joined, summed likewise.
        pending: Items the slowest open reader has not taken yet; without a reader, the items kept
            for the first one.
        high_water_hits: How often the high-water mark was reached.
        readers: Readers open now.
    """

    accepted: int
    delivered: int
    dropped: int
    merged: int
    missed: int
    pending: int
    high_water_hits: int
    readers: int


# -- parts ----------------------------------------------------------------------------------------


class _Accumulator(Generic[T]):
    """Everything accepted so far, folded into one value when somebody asks for it."""

    __slots__ = ("_folded", "_merge", "pieces")

    def __init__(self, merge: Callable[[T, T], T] | None) -> None:
        self._merge = merge  # None: the pieces are text
        self._folded: list[T] = []
        self.pieces: list[T] = []

    def fold(self, pieces: list[T]) -> T:
        """Merge ``pieces`` (at least one) from left to right, text in linear time."""
        if len(pieces) == 1:
            return pieces[0]
        if self._merge is not None:
            return reduce(self._merge, pieces)
        try:
            # Without a merge function the first piece was text, hence T is str.
            return cast("T", "".join(cast("list[str]", pieces)))
        except TypeError as error:
            raise StreamBufferError(
                f"The buffer began with text and then got something else ({error}). "
                f"Give the buffer a `merge` function that takes both."
            ) from error

    def compact(self) -> None:
        """Fold what came since the last time, so that a long stream is not kept as small pieces."""
        if len(self.pieces) >= _COMPACT_AT:
            self._folded.append(self.fold(self.pieces))
            self.pieces.clear()

    def value(self) -> T | None:
        parts = self._folded + self.pieces
        if not parts:
            return None
        if len(parts) > 1:
            self._folded = [self.fold(parts)]
            self.pieces.clear()
            return self._folded[0]
        return parts[0]


class StreamBuffer(Generic[T]):
    """A bounded stream that every reader sees whole, with backpressure to its producers.

    Every method may be called from any thread, with or without an event loop.

    Overflow policies, applied for each reader by itself when it has ``capacity`` unread items:

    - ``"block"``: `put` waits, `put_nowait` returns False. Nothing is ever lost.
    - ``"drop_oldest"``: the reader loses its oldest unread item.
    - ``"drop_newest"``: the reader never sees the new item.
    - ``"coalesce"``: what does not fit is merged into the reader's last unread item.
    - ``"error"``: the put raises `BufferOverflowError` and no reader sees the item.

    Under ``"block"``, `put` waits as soon as some reader has ``high_water`` unread items and goes
    on when none has more than ``low_water``, so that producer and reader take turns in strides
    rather than item by item.

    Before there is a reader the buffer keeps what arrives for the first one, within its capacity
    and by its policy; so it does when the last reader was closed. A reader that joins later first
    gets what it missed as one item (for text: everything so far), then the live items. Without a
    way to merge, it gets the items the slowest reader has not read yet, and the rest is counted
    as ``missed``.

    Order: the items of one producer arrive in the order of its puts, and all readers see all
    producers' items in the same order.

    Args:
        capacity: Most unread items per reader; at least 1.
        overflow: What happens to an item beyond that.
        merge: Folds two neighbouring items into one; must be associative, quick, and not use the
            buffer. Text (when the first item is a `str`) needs none: it is joined. What can be
            merged is remembered, merged, for late readers as long as the buffer lives.
        high_water: Unread items of the slowest reader at which `put` begins to wait and
            ``on_high`` is called; default ``capacity``.
        low_water: Unread items of the slowest reader at which `put` goes on and ``on_low`` is
            called; default half of ``high_water``.
        rate: Items per second that a reader is given at most, None for no limit. A pause builds
            up credit for a twentieth of a second, at least one item. The rest waits in the
            buffer, under its policy.
        on_high: Called without arguments after the high-water mark was reached, in the thread of
            the put that reached it.
        on_low: Called after the low-water mark was reached again, in the thread of the read (or
            closing) that did. An exception in either callback is logged, not raised.
        clock: Where the rate limit reads the time; default the system's monotonic clock.

    Raises:
        ConfigurationError: If these settings contradict each other.

    Example:
        >>> buffer = StreamBuffer[str](capacity=8)
        >>> buffer.put_nowait("Hello, ")
        True
        >>> buffer.put_nowait("world")
        True
        >>> buffer.close()
        >>> list(buffer.read())
        ['Hello, ', 'world']
    """

    __slots__ = (
        "__weakref__",
        "_accumulator",
        "_acquire",
        "_blocked",
        "_calls",
        "_capacity",
        "_ending",
        "_error",
        "_give",
        "_high",
        "_high_water",
        "_hits",
        "_keep",
        "_lock",
        "_low_water",
        "_merge",
        "_monotonic",
        "_nothing",
        "_on_high",
        "_on_low",
        "_overflow",
        "_parked",
        "_paused",
        "_promised",
        "_rate",
        "_readers",
        "_release",
        "_retired",
        "_room",
        "_sleepers",
        "_traceback",
        "_unclaimed",
    )

    def __init__(
        self,
        capacity: int = 256,
        *,
        overflow: OverflowPolicy = "block",
        merge: Callable[[T, T], T] | None = None,
        high_water: int | None = None,
        low_water: int | None = None,
        rate: float | None = None,
        on_high: Callable[[], object] | None = None,
        on_low: Callable[[], object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        high_water = capacity if high_water is None else high_water
        low_water = high_water // 2 if low_water is None else low_water
        _check_settings(capacity, overflow, high_water, low_water, rate)
        self._capacity = capacity
        self._overflow = overflow
        self._merge = merge
        self._high_water = high_water
        self._low_water = low_water
        self._rate = rate
        self._on_high = on_high
        self._on_low = on_low
        self._monotonic = time.monotonic if clock is None else clock.monotonic

        self._lock = threading.Lock()
        self._acquire = self._lock.acquire
        self._release = self._lock.release
        self._nothing: deque[T] = deque(maxlen=0)
        self._accumulator = None if merge is None else _Accumulator(merge)
        self._readers: list[BufferReader[T]] = []
        # What a put does when nothing stands in its way; see `_rebuild`.
        self._keep: Callable[[T], None]
        self._give: Callable[[T], None]
        self._retired = ReaderStats(0, 0, 0, 0, 0)
        # Items that fit before any reader can have reached the high-water mark; see the module.
        # Zero before the first put, above the mark, and after the end.
        self._room = 0
        # Everything accepted, plus the room: one decrement per put keeps both numbers.
        self._promised = 0
        self._high = False
        self._hits = 0
        self._paused = False
        self._ending: Literal["closed", "failed", "cancelled"] | None = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        # Readers waiting for an item; anything waiting for a change of state or for time to
        # pass; producers waiting for room.
        self._sleepers: list[Waiter] = []
        self._parked: list[Waiter] = []
        self._blocked: list[Waiter] = []
        self._calls = OrderedCalls()
        # Keeps what arrives while nobody reads; becomes the first reader.
        self._unclaimed: BufferReader[T] | None = self._new_reader(joined_at=0)

    def __repr__(self) -> str:
        stats = self.stats
        return (
            f"<StreamBuffer {self._overflow} {stats.pending}/{self._capacity} "
            f"readers={stats.readers} ending={self._ending!r}>"
        )

    # -- producing --

    def put_nowait(self, item: T) -> bool:
        """Put ``item`` into the buffer without waiting.

        Returns:
            True if every open reader will see the item. False under ``"block"`` if the buffer is
            full: nothing happened. False under ``"drop_newest"`` if some reader is full: that
            reader will not see it.

        Raises:
            BufferClosedError: If the stream has ended.
            BufferOverflowError: If the buffer is full and its policy is ``"error"``.
        """
        # The fast path: see the module. The last bit of room is given out by the slow path,
        # which finds out how much there is by then, or that the high-water mark is reached.
        # `acquire` and `release` cost half of what `with` does.
        self._acquire()
        try:
            if self._room > 1:
                self._room -= 1
                self._keep(item)
                self._give(item)
                if not self._sleepers:
                    return True
                sleepers = self._sleepers
                self._sleepers = []
            else:
                sleepers = None
        finally:
            self._release()
        if sleepers is None:
            return self._put_slowly(item)
        wake(sleepers)
        return True

    async def put(self, item: T) -> None:
        """Put ``item`` into the buffer; under ``"block"`` wait while it is above its marks.

        Cancelling a waiting put takes it back: the item was not put. While there is room, `put`
        returns without giving other tasks a turn.

        Raises:
            BufferClosedError: If the stream has ended, also while waiting.
            BufferOverflowError: If the buffer is full and its policy is ``"error"``.
        """
        # The fast path of `put_nowait` once more: calling that would cost a tenth of the put.
        self._acquire()
        try:
            if self._room > 1:
                self._room -= 1
                self._keep(item)
                self._give(item)
                if not self._sleepers:
                    return
                sleepers = self._sleepers
                self._sleepers = []
            else:
                sleepers = None
        finally:
            self._release()
        if sleepers is not None:
            wake(sleepers)
            return

        while True:
            waiter = self._put_or_enter(item, new_future)
            if isinstance(waiter, bool):
                return
            try:
                await waiter
            except BaseException:
                self._leave(waiter)
                raise

    def put_from_thread(self, item: T, timeout: float | None = None) -> None:
        """Do what `put` does, blocking the calling thread, for at most ``timeout`` seconds.

        Never call it in the thread of an event loop that the readers need.

        Raises:
            BufferTimeoutError: If there was no room in time; the item was not put.
            BufferClosedError: If the stream has ended, also while waiting.
            BufferOverflowError: If the buffer is full and its policy is ``"error"``.
        """
        # False from `put_nowait` says that nothing happened only under this policy.
        if self._room > 1 and (self.put_nowait(item) or self._overflow != "block"):
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            waiter = self._put_or_enter(item, ThreadWaiter)
            if isinstance(waiter, bool):
                return
            if deadline is not None:
                waiter.timeout = max(0.0, deadline - time.monotonic())
            try:
                waiter.sleep()
            finally:
                self._leave(waiter)
            if timeout is not None and waiter.timeout == 0.0:
                raise BufferTimeoutError(
                    f"The buffer had no room for {timeout!r} seconds, because a reader is slow, "
                    f"paused or gone without being closed. Close readers that are not read to "
                    f"the end, or choose an overflow policy other than 'block'.",
                    timeout=timeout,
                )

    def close(self) -> None:
        """End the stream: readers read what is there and come to their end.

        Puts, also waiting ones, raise `BufferClosedError`. Does nothing if the stream has ended.
        """
        self._end("closed", None)

    def fail(self, error: BaseException) -> None:
        """End the stream with an error: each reader gets what is there, then ``error`` is raised.

        Puts, also waiting ones, raise `BufferClosedError`. Does nothing if the stream has ended.
        """
        self._end("failed", error)

    def cancel(self) -> None:
        """End the stream at once: nothing more is delivered and everyone who waits wakes up.

        Readers end without an error, with ``ending == "cancelled"``; what they had not read is
        dropped (the text is still in `accumulated`). Puts, also waiting ones, raise
        `BufferClosedError`. Also cuts short the delivery of a stream that was closed or failed.
        """
        with self._lock:
            if self._ending != "cancelled":
                self._ending = "cancelled"
                self._set_room(0)
                for reader in list(self._readers):
                    reader._drop_all()
                    self._retire(reader, "cancelled")
            waiters = self._take_all_waiters()
        wake(waiters)

    def _end(self, ending: Literal["closed", "failed"], error: BaseException | None) -> None:
        with self._lock:
            if self._ending is None:
                self._ending = ending
                self._error = error
                self._traceback = None if error is None else error.__traceback__
                self._set_room(0)
            waiters = self._take_all_waiters()
        wake(waiters)

    # -- holding --

    def pause(self) -> None:
        """Hold all readers, and thereby, once the buffer is full, the producers under ``"block"``.

        A read that is already under way in another thread may still get its item.
        """
        with self._lock:
            self._paused = True
            self._gate_readers()
            # Items that arrive now are no reason to wake anybody.
            self._parked += self._sleepers
            self._sleepers = []

    def resume(self) -> None:
        """Let the readers go on after `pause`."""
        with self._lock:
            self._paused = False
            self._gate_readers()
            waiters, self._parked = self._parked, []
        wake(waiters)

    # -- reading --

    def read(self, from_start: bool = True) -> BufferReader[T]:
        """Return a new reader, at any time, also after the end of the stream.

        Args:
            from_start: Whether the reader first gets what was put before (see the class for how
                a late reader gets it); else it begins with the next item.
        """
        with self._lock:
            reader = self._join(from_start=from_start)
            reader._gate(held=self._paused, nothing=self._nothing)
            self._rebuild()
            if self._ending == "cancelled":
                reader._drop_all()
                self._retire(reader, "cancelled")
            elif self._ending is None:
                self._settle()
            blocked = self._fall()
        wake(blocked)
        self._calls.run()
        return reader

    # -- facts --

    @property
    def capacity(self) -> int:
        """Most unread items per reader."""
        return self._capacity

    @property
    def paused(self) -> bool:
        """Whether the readers are held."""
        return self._paused

    @property
    def closed(self) -> bool:
        """Whether the stream has ended, in whatever way; readers may still have items to read."""
        return self._ending is not None

    @property
    def ending(self) -> Literal["closed", "failed", "cancelled"] | None:
        """How the stream ended, None while it has not."""
        return self._ending

    @property
    def is_high(self) -> bool:
        """Whether the buffer reached its high-water mark and is not yet back at the low one."""
        return self._high

    @property
    def accumulated(self) -> T | None:
        """Everything accepted so far, merged into one item; None before the first one.

        Merging is done when asked and remembered, so that the whole stream is merged in linear
        time, however it is cut. Includes items that a policy dropped for slow readers.

        Raises:
            StreamBufferError: If the items are not text and the buffer was given no ``merge``.
        """
        with self._lock:
            if self._accumulator is not None:
                return self._accumulator.value()
            if self._accepted == 0:
                return None
        raise StreamBufferError(
            "The items of this buffer cannot be merged. Give the buffer a `merge` function."
        )

    @property
    def stats(self) -> BufferStats:
        """The counts of this moment."""
        with self._lock:
            counts = [self._retired, *(reader._count() for reader in self._readers)]
            return BufferStats(
                accepted=self._accepted,
                delivered=sum(count.delivered for count in counts),
                dropped=sum(count.dropped for count in counts),
                merged=sum(count.merged for count in counts),
                missed=sum(count.missed for count in counts),
                pending=max((count.pending for count in counts), default=0),
                high_water_hits=self._hits,
                readers=len(self._readers) - (self._unclaimed is not None),
            )

    # -- the slow path of putting; everything from here on is called under the lock, but for
    # -- `_put_slowly`, `_put_or_enter`, `_relieve`, `_detach` and `_leave` --

    def _put_slowly(self, item: T) -> bool:
        return self._put_or_enter(item, None) is True

    def _put_or_enter(self, item: T, make_waiter: Callable[[], W] | None) -> bool | W:
        """Put the item, or return False, or, for a patient producer, a waiter to sleep on."""
        with self._lock:
            self._refuse_if_ended()
            if not self._has_room(patient=make_waiter is not None):
                if make_waiter is None:
                    return False
                waiter = make_waiter()
                self._blocked.append(waiter)
                return waiter
            whole = self._accept(item)
            self._settle()
            sleepers, self._sleepers = self._sleepers, []
            blocked = self._fall()
        wake(sleepers)
        wake(blocked)
        self._calls.run()
        return whole

    def _refuse_if_ended(self) -> None:
        if self._ending is not None:
            raise BufferClosedError(
                f"The stream is {self._ending} and takes no more items. "
                f"Make a new buffer for a new stream."
            ) from self._error

    def _has_room(self, *, patient: bool) -> bool:
        if self._overflow == "block":
            return not (patient and self._high) and self._lag() < self._capacity
        if self._overflow == "error" and self._lag() >= self._capacity:
            raise BufferOverflowError(
                f"The buffer is full: a reader has {self._capacity!r} unread items. Read faster, "
                f"raise `capacity`, or choose another overflow policy.",
                capacity=self._capacity,
            )
        return True

    def _accept(self, item: T) -> bool:
        self._prepare_to_merge(item)
        self._promised += 1
        if self._accumulator is not None:
            self._accumulator.pieces.append(item)
        seen = [reader._place(item, self._overflow, self._capacity) for reader in self._readers]
        return all(seen)

    def _prepare_to_merge(self, item: T) -> None:
        if self._accumulator is not None:
            self._accumulator.compact()
        elif self._accepted == 0 and isinstance(item, str):
            self._accumulator = _Accumulator(None)
            self._rebuild()
        elif self._overflow == "coalesce":
            raise StreamBufferError(
                f"{item!r} cannot be merged, which the policy 'coalesce' must be able to do. "
                f"Give the buffer a `merge` function, or choose another policy."
            )

    def _fold(self, items: list[T]) -> T:
        assert self._accumulator is not None
        return self._accumulator.fold(items)

    # -- room and marks --

    @property
    def _accepted(self) -> int:
        return self._promised - self._room

    def _set_room(self, room: int) -> None:
        self._promised += room - self._room
        self._room = room

    def _lag(self) -> int:
        return max((reader._lag for reader in self._readers), default=0)

    def _settle(self) -> None:
        """Find out how much room there is, and whether the high-water mark is reached."""
        if self._high or self._accepted == 0:
            return  # the first put takes the slow path, which looks at what kind of item it is
        room = self._high_water - self._lag()
        overflowing = any(reader._overflow for reader in self._readers)
        # Behind an overflow nothing may be appended, or it would overtake.
        self._set_room(0 if overflowing else max(0, room))
        if room > 0:
            return
        self._high = True
        self._hits += 1
        # From now on readers tell of their reads. What they read before they see this is found
        # by the `_fall` that follows every `_settle`.
        for reader in self._readers:
            reader._watched = True
        if self._on_high is not None:
            self._calls.add(self._on_high)

    def _fall(self) -> list[Waiter]:
        """Return the producers to wake, if the low-water mark is reached."""
        if not self._high or self._lag() > self._low_water:
            return []
        self._high = False
        for reader in self._readers:
            reader._watched = False
        if self._ending is None:
            self._settle()
        if self._on_low is not None:
            self._calls.add(self._on_low)
        blocked, self._blocked = self._blocked, []
        return blocked

    def _relieve(self, reader: BufferReader[T]) -> None:
        """Called by a reader after a read while the buffer is high."""
        if reader._lag > self._low_water:
            return
        with self._lock:
            blocked = self._fall()
        wake(blocked)
        self._calls.run()

    # -- readers --

    def _new_reader(self, *, joined_at: int) -> BufferReader[T]:
        bucket = None if self._rate is None else TokenBucket(self._rate, self._monotonic)
        reader = BufferReader(self, joined_at=joined_at, bucket=bucket)
        reader._watched = self._high
        self._readers.append(reader)
        self._rebuild()
        return reader

    def _rebuild(self) -> None:
        """Prepare the two calls of the fast path: remember the item, give it to the readers."""
        appends = [reader._items.append for reader in self._readers]
        kept = self._nothing if self._accumulator is None else self._accumulator.pieces
        self._keep = kept.append
        # With one reader, which is the rule, both are calls into C.
        self._give = appends[0] if len(appends) == 1 else partial(_call_each, appends)

    def _gate_readers(self) -> None:
        for reader in self._readers:
            reader._gate(held=self._paused, nothing=self._nothing)

    def _join(self, *, from_start: bool) -> BufferReader[T]:
        accepted = self._accepted
        reader = self._unclaimed
        self._unclaimed = None
        kept_all = reader is not None and reader._joined_at == 0 and not reader._dropped
        if reader is None:
            reader = self._new_reader(joined_at=accepted)

        if not from_start:
            reader._restart((), joined_at=accepted)
        elif not kept_all and accepted:
            self._catch_up(reader, accepted)
        return reader

    def _catch_up(self, reader: BufferReader[T], accepted: int) -> None:
        """Give a late reader what it missed: all of it as one item, or the window that is left."""
        if self._accumulator is not None:
            text = cast("T", self._accumulator.value())
            reader._restart((text,), joined_at=0, merged=accepted - 1)
            return
        # Copying a deque is one step for the interpreter, so a read cannot come in between.
        window = max((other._items for other in self._readers), key=len).copy()
        dropped = reader._dropped
        reader._restart(window, joined_at=0)
        reader._dropped = dropped
        reader._missed = accepted - len(window) - dropped

    def _retire(self, reader: BufferReader[T], ending: Ending) -> None:
        """Take leave of a reader that has nothing more to expect."""
        reader._left_at = self._accepted
        reader._ending = ending
        self._readers.remove(reader)
        self._rebuild()
        counts, before = reader._count(), self._retired
        self._retired = replace(
            before,
            delivered=before.delivered + counts.delivered,
            dropped=before.dropped + counts.dropped,
            merged=before.merged + counts.merged,
            missed=before.missed + counts.missed,
        )

    def _detach(self, reader: BufferReader[T]) -> None:
        with self._lock:
            if reader._ending is not None:
                return
            reader._drop_all()
            self._retire(reader, "detached")
            if not self._readers and self._ending is None:
                self._unclaimed = self._new_reader(joined_at=self._accepted)
            waiters = self._fall()
            if reader._waiting is not None and self._unlist(reader._waiting):
                waiters.append(reader._waiting)
        wake(waiters)
        self._calls.run()

    def _raise_failure(self) -> None:
        if self._ending == "failed" and self._error is not None:
            # Several readers raise the one error: each starts from the producer's traceback, lest
            # they pile theirs on top of each other's.
            raise self._error.with_traceback(self._traceback)

    # -- waiters --

    def _leave(self, waiter: Waiter) -> None:
        """Called by a waiter that gave up waiting."""
        with self._lock:
            self._unlist(waiter)

    def _unlist(self, waiter: Waiter) -> bool:
        for waiters in (self._sleepers, self._parked, self._blocked):
            if waiter in waiters:
                waiters.remove(waiter)
                return True
        return False

    def _take_all_waiters(self) -> list[Waiter]:
        waiters = self._sleepers + self._parked + self._blocked
        self._sleepers, self._parked, self._blocked = [], [], []
        return waiters


def _call_each(calls: list[Callable[[T], None]], item: T) -> None:
    for call in calls:
        call(item)


def _check_settings(
    capacity: int, overflow: str, high_water: int, low_water: int, rate: float | None
) -> None:
    if capacity < 1:
        raise ConfigurationError(f"capacity is {capacity!r}; a buffer holds at least 1 item.")
    if overflow not in _POLICIES:
        raise ConfigurationError(f"overflow is {overflow!r}; choose one of {', '.join(_POLICIES)}.")
    if not 0 <= low_water < high_water <= capacity:
        raise ConfigurationError(
            f"low_water {low_water!r}, high_water {high_water!r} and capacity {capacity!r} do not "
            f"fit together; choose 0 <= low_water < high_water <= capacity."
        )
    if rate is not None and not rate > 0:
        raise ConfigurationError(
            f"rate is {rate!r} items per second; choose more than 0, or None for no limit."
        )
