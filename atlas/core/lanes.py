"""Lanes: the queues in which messages wait for asynchronous handlers, one for each subscription.

A lane belongs to one subscription on one event loop and keeps the order in which messages were
published. What runs the handlers is the loop's port: see `atlas.core.ports`.
"""

from __future__ import annotations

import contextlib
import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeAlias

from atlas.core.messages import Message, Place, Stamp, stamp
from atlas.errors import BufferOverflowError, NotAMessageError

__all__ = ["AsyncHandler", "Carrier", "Lane", "ObserverLane", "Owner"]

# Any: what asyncio sends through an await is its own affair
AsyncHandler: TypeAlias = Callable[[Message], Coroutine[Any, Any, object]]


class Owner(Protocol):
    """What a lane asks of its subscription."""

    is_open: bool
    failures: int

    @property
    def name(self) -> str:
        """The name of the subscription, for errors."""
        ...


class Carrier(Protocol):
    """What a lane asks of the port that empties it."""

    loop: AbstractEventLoop

    def call(self, lane: ObserverLane) -> None:
        """Have an observer's lane emptied. Any thread."""

    def in_loop(self, call: Callable[[], object]) -> None:
        """Call something in the loop's thread. Any thread."""


class Lane:
    """The queue of one subscription on one loop.

    It is ``busy`` from when something is to be run until the queue is empty again. ``running`` is
    what its handler is at: more than one stamp only while messages overtake (see `atlas.core.ports`).
    """

    __slots__ = ("busy", "capacity", "handler", "port", "queue", "running", "subscription")

    def __init__(
        self, subscription: Owner, port: Carrier, handler: AsyncHandler, capacity: int
    ) -> None:
        self.subscription: Owner = subscription
        self.port: Carrier = port
        self.handler: AsyncHandler = handler
        self.capacity: int = capacity
        self.queue: deque[Any] = deque()
        self.busy: bool = False
        self.running: list[Stamp | Place] = []

    @property
    def depth(self) -> int:
        """How many messages wait, the one being handled not counted."""
        return len(self.queue)

    def close(self) -> None:
        """Give up what waits; its receipts count it as ended. Any thread."""
        if self.queue:
            self.port.in_loop(self._clear)

    def _clear(self) -> None:
        while self.queue:
            self.queue.popleft().finish_one()


class ObserverLane(Lane):
    """The queue of an observer: filled by the publisher's thread, bounded by a policy.

    When it is full, a message is first merged into the newest one waiting, if the two merge; else
    dropped, or takes the place of one dropped, if the policy and the message allow; else it is kept
    beyond the capacity, up to ``limit``. Beyond that it is refused with an error.

    While fewer than ``room`` wait, publishers append to the queue themselves, without `offer` and
    without the lock: threads that do so at the same moment may overshoot the capacity by one each.
    A lane that merges has no such room, for `merge` takes the newest out for a while.
    """

    __slots__ = (
        "called",
        "droppable",
        "dropped",
        "drops",
        "limit",
        "lock",
        "merge",
        "merged",
        "newest_goes",
        "room",
    )

    def __init__(
        self,
        subscription: Owner,
        port: Carrier,
        handler: AsyncHandler,
        capacity: int,
        *,
        limit: int,
        drops: bool,
        newest_goes: bool,
        droppable: Callable[[Message], bool] | None,
        merge: Callable[[Any, Any], Message | None] | None,
    ) -> None:
        super().__init__(subscription, port, handler, capacity)
        self.limit: int = max(limit, capacity)
        self.drops: bool = drops  # nothing is looked through for what may go where nothing may
        self.newest_goes: bool = newest_goes
        self.droppable: Callable[[Message], bool] | None = droppable  # None: any
        self.merge: Callable[[Any, Any], Message | None] | None = merge
        self.room: int = capacity if merge is None else 0
        # reentrant: `merge`, or a finalizer at any moment, may publish to this very lane
        self.lock: contextlib.AbstractContextManager[bool] = threading.RLock()
        self.called: bool = False
        self.dropped: int = 0
        self.merged: int = 0

    def offer(self, message: Message) -> None:
        """Take a message in, by policy. Any thread.

        Raises:
            BufferOverflowError: The lane is at its limit and nothing in it may be dropped.
        """
        with self.lock:
            if len(self.queue) < self.capacity:
                self.queue.append(message)
            else:
                self._squeeze_in(message)
        if not self.called:
            self.call()

    def call(self) -> None:
        """Have the lane emptied. Any thread."""
        self.called = True
        self.port.call(self)

    def _squeeze_in(self, message: Message) -> None:
        queue = self.queue
        if self.merge is not None and self._merged_in(message, self.merge):
            return
        if self.drops and self.newest_goes and self._may_go(message):
            self.dropped += 1
            return
        made_room = self.drops and not self.newest_goes and self._oldest_dropped()
        if not made_room and len(queue) >= self.limit:
            raise BufferOverflowError(
                f"{self.subscription.name} has {self.limit} messages waiting that may not be "
                f"dropped, and takes no more. Say with `merge` or `droppable` which may be.",
                capacity=self.limit,
            )
        queue.append(message)

    # The runner takes from the left without the lock. So nothing here relies on a place in the queue:
    # the newest is taken out to be merged, and what is dropped is removed as what it is.

    def _merged_in(self, message: Message, merge: Callable[[Any, Any], Message | None]) -> bool:
        try:
            newest = self.queue.pop()
        except IndexError:
            return False
        both: Message | None = None
        try:
            both = _checked_merge(merge(newest, message), self.subscription.name)
        finally:  # a merge that fails must not take the one that waited along
            self.queue.append(newest if both is None else both)
        if both is None:
            return False
        if both._stamp is None and message._stamp is not None:
            stamp(both, message._stamp)
        self.merged += 1
        return True

    def _may_go(self, message: Message) -> bool:
        return self.droppable is None or self.droppable(message)

    def _oldest_dropped(self) -> bool:
        if self.droppable is None:
            with contextlib.suppress(IndexError):  # all are being handled: that makes room too
                self.queue.popleft()
                self.dropped += 1
            return True
        for waiting in list(self.queue):
            if self.droppable(waiting):
                with contextlib.suppress(ValueError):  # it is being handled: that makes room too
                    self.queue.remove(waiting)
                    self.dropped += 1
                return True
        return False

    def close(self) -> None:
        """Give up what waits; it counts as dropped. Any thread."""
        with self.lock:
            while self.queue:
                with contextlib.suppress(IndexError):  # the runner took it just now
                    self.queue.popleft()
                    self.dropped += 1


def _checked_merge(both: object, name: str) -> Message | None:
    if both is None or isinstance(both, Message):
        return both
    raise NotAMessageError(
        f"`merge` of {name} returned {both!r}, which is no message. Return one message for the two "
        f"given, or None if they do not merge."
    )
