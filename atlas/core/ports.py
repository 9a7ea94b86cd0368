"""Ports: how asynchronous handlers get their messages, in order, on their own loops.

A *port* is one event loop as one bus sees it: its inbox (filled from any thread, emptied in the
loop's thread) and what runs the handlers of the lanes there.

Messages take the short way when they can. While none of its handlers is suspended, those of a message
run one after another in one coroutine (*express*): either in the task that awaits the receipt, or in
a runner that empties the inbox; no lane is touched. What a handler publishes and awaits goes within
its own express, if no handler belongs to both. The moment a handler suspends, the loop comes to
`Port.wake`, which was scheduled when the message was posted: it breaks every express off, and what had
not begun is distributed to the lanes and goes on in another runner. So there is one task per
suspended handler, one wake per burst, and a slow handler holds up nobody but its own lane.

Everything here runs in the loop's thread, except where the docstring says "any thread".
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import types
from asyncio import AbstractEventLoop, CancelledError
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, Token, copy_context
from operator import length_hint
from threading import get_ident
from typing import Any, Self, TypeVar

from atlas.core.causality import CURRENT, Scope, cause_of
from atlas.core.inner_loop import HERE, here, outside_context
from atlas.core.lanes import AsyncHandler, Lane, ObserverLane
from atlas.core.messages import Message, Origin, Place, Stamp, causation_in, origin_in
from atlas.core.receipts import M, M_co, Receipt, answered
from atlas.errors import BufferOverflowError, BusError, SubscriptionError

__all__ = ["Failed", "Group", "Pending", "Port", "Waits"]

PendingT = TypeVar("PendingT", bound="Pending[Any]")

Failed = Callable[[Any, Message, BaseException], None]
"""Makes it known that the handler of a subscription has failed on a message."""

_running_loop = asyncio._get_running_loop
_current_cause = CURRENT.get
_enter = CURRENT.set
_reset = CURRENT.reset
_place_in_run = HERE.get


class _Whereabouts:
    """Tells the thread in which a loop runs of which it is not known otherwise."""

    __slots__ = ("_loop",)

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def _thread_id(self) -> int | None:
        return get_ident() if _running_loop() is self._loop else None


class Waits:
    """What the handlers of one message are waiting for, and what caused that message."""

    __slots__ = ("causation", "receipts")

    def __init__(self, causation: Origin | None) -> None:
        self.causation: Origin | None = causation
        self.receipts: list[Pending[Any]] = []


class Group:
    """The lanes of one message class on one port, in order, with their handlers side by side."""

    __slots__ = ("__weakref__", "_lane_set", "handlers", "lanes", "only", "port")

    def __init__(self, port: Port, lanes: tuple[Lane, ...]) -> None:
        self.port: Port = port
        self.lanes: tuple[Lane, ...] = lanes
        self._lane_set: frozenset[Lane] | None = None  # made when it is first asked for
        self._take([lane.handler for lane in lanes])

    def _take(self, handlers: Sequence[AsyncHandler]) -> None:
        self.handlers: tuple[AsyncHandler, ...] = tuple(handlers)
        self.only: AsyncHandler | None = handlers[0] if len(handlers) == 1 else None

    def post(self, message: M) -> Pending[M]:
        """Send a message on its way to these lanes. Any thread; never blocks."""
        receipt: Pending[M] = Pending()  # no `__init__`: made for every message, so made quickly
        receipt.message = message
        receipt.group = self
        # handlers are no part of the publisher's run, if there is one
        receipt.context = copy_context() if _place_in_run() is None else outside_context()
        receipt.stage = _WAITS
        receipt.notes = None
        port = self.port
        inbox = port.inbox
        if len(inbox) >= port.limit:
            port.refuse(receipt)
            return receipt
        inbox.append(receipt)
        if not port.woken:
            port.call_wake()
        return receipt

    def is_free(self) -> bool:
        """Whether nothing is handled in these lanes, waits for them, or is yet to come to them."""
        port = self.port
        if port.busy:
            for lane in self.lanes:
                if lane.busy:
                    return False
        receipt = port.express
        while receipt is not None:
            if self._shares_lanes_with(receipt.group):
                return False
            receipt = receipt.outer
        return True

    def _shares_lanes_with(self, other: Group) -> bool:
        if self._lane_set is None:
            self._lane_set = frozenset(self.lanes)
        return not self._lane_set.isdisjoint(other.lanes)

    def refresh(self) -> None:
        """Make messages already on their way skip subscriptions that are closed."""
        self._take([lane.handler if lane.subscription.is_open else _skip for lane in self.lanes])


async def _skip(message: Message) -> None:
    pass


_WAITS, _EXPRESS, _TAKEN, _OVER = range(4)
_NONE_LEFT: Iterator[AsyncHandler] = iter(())


class _Notes:
    """What few receipts have: failures, and callbacks that wait for the end."""

    __slots__ = ("failures", "waiters")

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.waiters: deque[Callable[[], object]] = deque()


_noting = threading.RLock()  # reentrant: a finalizer may publish while it is held
"""Guards only the creation of a receipt's notes; never held while anything runs."""


class Pending(Receipt[M_co]):
    """The receipt of a message with async handlers on one loop.

    It is at once what waits in the port's inbox and in the lanes. Made by `Group.post`.

    Attributes:
        group: The lanes the message is for.
        context: The publisher's context, a copy.
        stage: Whether the message waits in the inbox, runs in one go (see `Port`), is in the lanes,
            or every handler has ended.
        notes: Failures and waiters, once there is one.
        remaining: How many handlers have not ended, once the message is in the lanes.
        handlers: While it runs in one go: the handlers still to come.
        outer: While it runs in one go: that within which it does, if any.
        awaiter: What was current where it was awaited to run in one go.
        broken: The lane at which going on in one go was broken off.
        reserved: The lanes it has then still to run itself.
    """

    __slots__ = (
        "awaiter",
        "broken",
        "context",
        "group",
        "handlers",
        "notes",
        "outer",
        "remaining",
        "reserved",
        "stage",
    )

    group: Group
    context: Context
    stage: int
    notes: _Notes | None
    remaining: int
    handlers: Iterator[AsyncHandler]
    outer: Pending[Any] | None
    awaiter: Stamp | Place | Scope | None
    broken: Lane
    reserved: deque[Lane]

    @property
    def done(self) -> bool:
        """Whether every reliable handler has ended."""
        return self.stage == _OVER

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """What handlers have raised so far, in the order in which they failed."""
        return () if self.notes is None else tuple(self.notes.failures)

    def fail(self, error: BaseException) -> None:
        """Note that a handler failed."""
        self._noted().failures.append(error)

    def finish_one(self) -> None:
        """Note that one handler has ended. In the loop's thread only."""
        self.remaining -= 1
        if self.remaining == 0:
            self.finish()

    def finish(self) -> None:
        """Note that the last handler has ended, and wake who waits."""
        self.stage = _OVER
        if self.notes is not None:
            _call_all(self.notes.waiters)

    def when_done(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` once when every reliable handler has ended; at once if they have."""
        waiters = self._noted().waiters
        waiters.append(callback)
        if self.stage == _OVER:
            _call_all(waiters)

    def _noted(self) -> _Notes:
        if self.notes is None:
            with _noting:
                if self.notes is None:
                    self.notes = _Notes()
        return self.notes

    # Any: what asyncio sends through an await is its own affair
    # A generator, which hands its result to `await` as it is. A method that returns a coroutine's
    # `__await__()` would hand it over inside a StopIteration, made for each message.
    def __await__(self) -> Generator[Any, Any, Self]:
        port = self.group.port
        if (
            self.stage == _WAITS
            and len(port.inbox) == 1
            and _place_in_run() is None
            and port.whereabouts._thread_id == get_ident()
            and ((port.express is None and not port.busy) or self.group.is_free())
        ):
            port.inbox.popleft()
            self.awaiter = _current_cause()
            yield from port.go(self, True)
            return self if self.notes is None else self._checked()
        if _place_in_run() is not None and here() is not None:
            return (yield from answered(self))
        if self.stage == _OVER:
            return self._checked()
        return (yield from port.join(self).__await__())

    def _checked(self) -> Self:
        if self.group.port.strict:
            return self.raise_for_errors()
        return super()._checked()

    def _refuse_deadlock(self) -> None:
        here = _running_loop()
        if here is not None and any(loop is here for loop in self._loops()):
            raise BusError(
                f"wait() on the receipt of {self.message!r} would block the very event loop that "
                f"has to run its handlers. Use `await receipt` there."
            )

    def _loops(self) -> Iterator[AbstractEventLoop]:
        yield self.group.port.loop

    def _needed(self) -> AbstractContextManager[object]:
        return self.group.port.needed(self)


class Port:
    """One event loop as one bus sees it. See the module's docstring."""

    __slots__ = (
        "awaited",
        "busy",
        "called",
        "ending",
        "express",
        "failed",
        "handed",
        "idle_waiters",
        "inbox",
        "limit",
        "loop",
        "runs",
        "strict",
        "tasks",
        "whereabouts",
        "woken",
    )

    def __init__(
        self,
        loop: AbstractEventLoop,
        failed: Callable[[Any, Message, BaseException], None],
        awaited: dict[Origin, Waits],
        limit: int,
        *,
        strict: bool,
    ) -> None:
        self.loop: AbstractEventLoop = loop
        # What has the thread in which the loop runs: asyncio's own have it themselves. To ask which loop
        # runs here takes a call more, and before 3.12 one of the system, for each await.
        self.whereabouts: Any = loop if hasattr(loop, "_thread_id") else _Whereabouts(loop)
        self.strict: bool = strict
        self.failed: Callable[[Any, Message, BaseException], None] = failed
        self.limit: int = limit
        self.inbox: deque[Pending[Any]] = deque()
        self.called: deque[ObserverLane] = deque()
        self.handed: deque[Lane] = deque()
        self.ending: str = "its event loop is shutting down"
        self.woken: bool = False
        self.busy: int = 0
        self.express: Pending[Any] | None = None
        self.runs: dict[int, deque[Lane]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.idle_waiters: list[Callable[[], object]] = []
        self.awaited: dict[Origin, Waits] = awaited

    # -- any thread -------------------------------------------------------------------------------

    def call(self, lane: ObserverLane) -> None:
        """Have an observer's lane emptied. Any thread; never blocks."""
        self.called.append(lane)
        if not self.woken:
            self.call_wake()

    @property
    def runs_here(self) -> bool:
        """Whether the loop runs in this thread. Any thread."""
        is_here: bool = self.whereabouts._thread_id == get_ident()
        return is_here

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs here. Any thread, for a moment's truth."""
        return not (
            self.inbox or self.called or self.handed or self.busy or self.express or self.tasks
        )

    def call_soon(self, call: Callable[[], object]) -> None:
        """Have something called in the loop's thread, as soon as what runs there suspends."""
        if self.runs_here:
            self.loop.call_soon(call, context=Context())
        else:
            self.loop.call_soon_threadsafe(call, context=Context())

    def in_loop(self, call: Callable[[], object]) -> None:
        """Call something in the loop's thread; here, if the loop is not running. Any thread."""
        if self.runs_here or not self.loop.is_running():
            call()
        else:
            self.loop.call_soon_threadsafe(call)

    def call_wake(self) -> None:
        """Have `wake` called, once for all that comes until then. Any thread."""
        self.woken = True
        try:
            self.call_soon(self.wake)
        except RuntimeError:
            self.woken = False
            if not self.loop.is_closed():
                raise
            self.abandon("its event loop is closed")

    def refuse(self, receipt: Pending[Any]) -> None:
        """Fail a message for which there is no room. Any thread."""
        text = (
            f"{{}} has {self.limit} messages waiting for its event loop, its limit, and takes no "
            f"more. Await the receipts to publish no faster than it handles, or subscribe it with "
            f"a larger capacity."
        )
        for lane in receipt.group.lanes:
            error = BufferOverflowError(text.format(lane.subscription.name), capacity=self.limit)
            receipt.fail(error)
            self.failed(lane.subscription, receipt.message, error)
        receipt.finish()

    def abandon(self, why: str) -> None:
        """Fail everything that waits here: no loop will ever run it. Any thread."""
        waiting = [(receipt, receipt.group.lanes) for receipt in _emptied(self.inbox)]
        for receipt, lanes in waiting:
            for lane in lanes:
                self._lost(lane, receipt, why)
            receipt.finish()
        for called in _emptied(self.called):
            called.called = False
            self._give_up(called, why)
        for run in list(self.runs.values()):
            self.handed.extend(run)
            run.clear()
        for lane in _emptied(self.handed):
            self._give_up(lane, why)

    def _give_up(self, lane: Lane, why: str) -> None:
        if isinstance(lane, ObserverLane):
            lane.close()
        else:
            for receipt in _emptied(lane.queue):
                self._lost(lane, receipt, why)
                receipt.finish_one()
        self._free(lane)

    def _lost(self, lane: Lane, receipt: Pending[Any], why: str) -> None:
        if not lane.subscription.is_open:
            return
        error = SubscriptionError(
            f"{lane.subscription.name} could not handle {receipt.message!r}: {why}. Subscribe it "
            f"on a loop that runs for as long as the subscription is open, or close it before."
        )
        receipt.fail(error)
        self.failed(lane.subscription, receipt.message, error)

    # -- the loop's thread ------------------------------------------------------------------------

    def wake(self) -> None:
        """Start a runner for all that waits. Called by the loop: so whatever ran is suspended."""
        self.woken = False
        if self.express is not None:
            self._break_express()
        ready: deque[Lane] = deque()
        for run in self.runs.values():
            ready.extend(run)
            run.clear()
        ready.extend(_emptied(self.handed))
        for lane in _emptied(self.called):
            lane.called = False
            if not lane.busy and lane.queue:
                self._occupy(lane)
                ready.append(lane)
        if self.busy:
            for receipt in _emptied(self.inbox):
                self._distribute(receipt, ready)
        if ready or self.inbox:
            self._start(self._run(ready))
        else:
            self._report_idle()

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = self.loop.create_task(work, context=Context())
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
        self._report_idle()

    async def _run(self, ready: deque[Lane]) -> None:
        self.runs[id(ready)] = ready
        if not self.woken:
            self.call_wake()
        try:
            many = len(self.inbox)
            while many and self.inbox and not self.busy and self.express is None:
                many -= 1
                receipt = self.inbox.popleft()
                receipt.awaiter = None
                await _within(receipt.context, self.go(receipt, False))
            while ready:
                await self._drain(ready.popleft())
        except CancelledError:
            self.abandon(self.ending)
            raise
        finally:
            del self.runs[id(ready)]

    def _distribute(
        self, receipt: Pending[Any], ready: deque[Lane], *, is_awaited: bool = False
    ) -> None:
        lanes = receipt.group.lanes
        receipt.stage = _TAKEN
        receipt.remaining = len(lanes)
        for lane in lanes:
            if len(lane.queue) >= lane.capacity and not is_awaited:
                self._overflow(lane, receipt)
                continue
            lane.queue.append(receipt)
            if not lane.busy:
                self._occupy(lane)
                ready.append(lane)

    def _overflow(self, lane: Lane, receipt: Pending[Any]) -> None:
        error = BufferOverflowError(
            f"{lane.subscription.name} has {lane.capacity} messages waiting, its capacity, and "
            f"takes no more that nobody awaits. Await the receipts to publish no faster than it "
            f"handles, subscribe it with a larger capacity, or as an observer.",
            capacity=lane.capacity,
        )
        receipt.fail(error)
        self.failed(lane.subscription, receipt.message, error)
        receipt.finish_one()

    def _occupy(self, lane: Lane) -> None:
        lane.busy = True
        self.busy += 1

    def _free(self, lane: Lane) -> None:
        if lane.busy:
            lane.busy = False
            self.busy -= 1

    def _release(self, lane: Lane) -> None:
        if lane.queue:
            self.handed.append(lane)
            if not self.woken:
                self.call_wake()
        else:
            self._free(lane)

    async def _drain(self, lane: Lane) -> None:
        many = len(lane.queue)  # what comes meanwhile lets the loop turn first
        try:
            if isinstance(lane, ObserverLane):
                await self._observe(lane, many)
                return
            while many and lane.queue:
                many -= 1
                receipt = lane.queue.popleft()
                await _within(receipt.context.copy(), self._deliver(lane, receipt).__await__())
        finally:
            self._release(lane)

    # -- running handlers -------------------------------------------------------------------------

    # Any: what asyncio sends through an await is its own affair
    @types.coroutine
    def go(  # `is_awaited` by place, which is quicker than by name
        self, receipt: Pending[Any], is_awaited: bool
    ) -> Generator[Any, Any, None]:
        """Run all handlers of a message in one go, as far as nothing suspends.

        A generator: what awaits it is one, and would take a coroutine only in a wrapper, which costs
        as much as a handler.
        """
        receipt.stage = _EXPRESS
        message = receipt.message
        receipt.outer = self.express
        self.express = receipt
        token = _enter(message._stamp)
        try:
            if (only := receipt.group.only) is not None:
                receipt.handlers = _NONE_LEFT
                yield from only(message)
            else:
                receipt.handlers = handlers = iter(receipt.group.handlers)
                for handler in handlers:
                    yield from handler(message)
        except BaseException as error:  # noqa: BLE001  isolated, and told
            yield from self._go_on(receipt, error, token)
        _reset(token)
        if self.express is receipt:
            self.express = receipt.outer
            receipt.outer = None
            receipt.stage = _OVER
            if receipt.notes is not None:
                receipt.finish()
        else:
            if receipt.stage == _EXPRESS:  # an eager task that a handler started is still at it
                self._break_express()
            yield from self._finish_broken(receipt, is_awaited)

    async def _go_on(
        self, receipt: Pending[Any], error: BaseException | None, token: Token[Any]
    ) -> None:
        """Note a failure and run the handlers after it; or stop, if the task has to end."""
        message = receipt.message
        while error is not None:
            self._note(self._lane_at(receipt), receipt, error)
            if _ends_the_task(error):
                _leave(token, error)
                self._stop_going(receipt)
                raise error
            error = None
            try:
                for handler in receipt.handlers:
                    await handler(message)
            except BaseException as next_error:  # noqa: BLE001
                error = next_error

    def _lane_at(self, receipt: Pending[Any]) -> Lane:
        if receipt.stage != _EXPRESS:
            return receipt.broken
        lanes = receipt.group.lanes
        return lanes[len(lanes) - length_hint(receipt.handlers) - 1]

    def _note(self, lane: Lane, receipt: Pending[Any], error: BaseException) -> None:
        receipt.fail(error)
        if not isinstance(error, GeneratorExit):  # then nothing may be run any more
            self.failed(lane.subscription, receipt.message, error)

    def _stop_going(self, receipt: Pending[Any]) -> None:
        if receipt.stage == _EXPRESS:
            self._break_express()
        lane = receipt.broken
        lane.running.remove(receipt.message._stamp)
        self._hand_over(receipt.reserved)
        self._release(lane)
        receipt.finish_one()
        self._no_longer_awaited(receipt, receipt.awaiter)

    def _hand_over(self, reserved: deque[Lane]) -> None:
        del self.runs[id(reserved)]
        self.handed.extend(_emptied(reserved))
        if self.handed and not self.woken:
            self.call_wake()

    def _break_express(self) -> None:
        """Turn what runs in one go into what is in its lanes, from here on."""
        broken: list[Pending[Any]] = []
        receipt, self.express = self.express, None
        while receipt is not None:
            broken.append(receipt)
            receipt = receipt.outer
        for receipt in reversed(broken):  # what was published first goes into the lanes first
            self._break(receipt)

    def _break(self, receipt: Pending[Any]) -> None:
        receipt.stage = _TAKEN
        receipt.outer = None
        lanes = receipt.group.lanes
        at = len(lanes) - length_hint(receipt.handlers) - 1
        rest = lanes[at + 1 :]
        for _ in receipt.handlers:  # so that the loop over them ends with the handler it is at
            pass
        receipt.broken = lane = lanes[at]
        receipt.remaining = 1 + len(rest)
        receipt.reserved = deque(rest)
        self.runs[id(receipt.reserved)] = receipt.reserved
        lane.running.append(receipt.message._stamp)
        for one in lanes[at:]:
            self._occupy(one)
        for one in rest:
            one.queue.append(receipt)
        self._is_awaited(receipt, receipt.awaiter)

    async def _finish_broken(self, receipt: Pending[Any], is_awaited: bool) -> None:
        lane = receipt.broken
        lane.running.remove(receipt.message._stamp)
        self._release(lane)
        receipt.finish_one()
        try:
            await self._deliver_reserved(receipt, receipt.reserved)
            self._report_idle()
            if is_awaited and receipt.stage != _OVER:
                await _until_done(receipt)
        finally:
            self._no_longer_awaited(receipt, receipt.awaiter)

    async def _deliver_reserved(self, receipt: Pending[Any], reserved: deque[Lane]) -> None:
        """Run a message on lanes that were idle and are kept for it, until `wake` takes them."""
        try:
            while reserved:
                lane = reserved.popleft()
                try:
                    if lane.queue:  # not closed meanwhile
                        lane.queue.popleft()
                        await self._deliver(lane, receipt)
                finally:
                    self._release(lane)
        finally:
            self._hand_over(reserved)

    async def _deliver(self, lane: Lane, receipt: Pending[Any]) -> None:
        """Run one handler of a message."""
        message = receipt.message
        try:
            if lane.subscription.is_open:
                await self._handle(lane, message, receipt)
        finally:
            receipt.finish_one()

    async def _handle(self, lane: Lane, message: Message, receipt: Pending[Any]) -> None:
        cause = message._stamp
        assert cause is not None
        lane.running.append(cause)
        token = CURRENT.set(cause)
        try:
            await lane.handler(message)
        except BaseException as error:
            self._note(lane, receipt, error)
            if _ends_the_task(error):
                _leave(token, error)
                raise
        finally:
            lane.running.remove(cause)
        CURRENT.reset(token)

    async def _observe(self, lane: ObserverLane, many: int) -> None:
        """Run an observer on so many messages, in the context of the runner's task."""
        handler = lane.handler
        subscription = lane.subscription
        queue = lane.queue
        take = queue.popleft
        set_cause = CURRENT.set
        for _ in range(many):
            if not subscription.is_open:
                lane.close()  # publishers that had not heard of it may have gone on filling it
            if not queue:
                return
            message = take()
            set_cause(message._stamp)
            try:
                await handler(message)
            except GeneratorExit:
                raise
            except BaseException as error:
                self.failed(subscription, message, error)
                if _ends_the_task(error):
                    raise

    # -- awaiting ---------------------------------------------------------------------------------

    async def join(self, receipt: PendingT) -> PendingT:
        """Return when the message is handled; handle it here, as far as that is possible.

        Any thread and loop of asyncio. The short way is not taken here: see `Pending.__await__`.
        """
        awaiter = _current_cause()
        self._is_awaited(receipt, awaiter)
        try:
            await self._join(receipt, awaiter)
        finally:
            self._no_longer_awaited(receipt, awaiter)
        return receipt._checked()

    @contextlib.contextmanager
    def needed(self, receipt: Pending[Any]) -> Iterator[None]:
        """Have the handler running here, if one does, wait for what becomes of a message.

        It is not run here, as one that is joined is: the handler waits for an answer, which may come
        before the handlers of the message end. But the message may overtake. Any thread.
        """
        awaiter = _current_cause()
        self._is_awaited(receipt, awaiter)
        try:
            if self.express is not None and self.runs_here:
                self._break_express()
            if receipt.stage != _OVER:
                self._let_overtake(awaiter)
            yield
        finally:
            self._no_longer_awaited(receipt, awaiter)

    def _is_awaited(self, receipt: Pending[Any], awaiter: Stamp | Place | Scope | None) -> None:
        """Note who waits for a message, if it is a handler."""
        me = cause_of(awaiter)
        if me is not None:
            waits = self.awaited.setdefault(origin_in(me), Waits(causation_in(me)))
            waits.receipts.append(receipt)

    def _no_longer_awaited(
        self, receipt: Pending[Any], awaiter: Stamp | Place | Scope | None
    ) -> None:
        me = cause_of(awaiter)
        if me is not None:
            waits = self.awaited[origin_in(me)]
            waits.receipts.remove(receipt)
            if not waits.receipts:
                del self.awaited[origin_in(me)]

    def awaiting_in_one_go(self) -> dict[Origin, Origin | None]:
        """Return the messages whose handlers wait right here, not suspended; with their causes."""
        found: dict[Origin, Origin | None] = {}
        receipt = self.express if self.runs_here else None
        while receipt is not None:
            me = cause_of(receipt.awaiter)
            if me is not None:
                found[origin_in(me)] = causation_in(me)
            receipt = receipt.outer
        return found

    async def _join(self, receipt: Pending[Any], awaiter: Stamp | Place | Scope | None) -> None:
        if receipt.stage == _WAITS and self.runs_here:
            await self._join_in_lanes(receipt)
        if receipt.stage != _OVER:
            self._let_overtake(awaiter)
            await _until_done(receipt)

    async def _join_in_lanes(self, receipt: Pending[Any]) -> None:
        if self.express is not None:
            self._break_express()
        waiting = _emptied(self.inbox)
        if waiting != [receipt]:  # what others published first is not run here: their lanes do
            for one in waiting:
                self._distribute(one, self.handed, is_awaited=one is receipt)
            return
        receipt.stage = _TAKEN
        receipt.remaining = len(receipt.group.lanes)
        reserved: deque[Lane] = deque()
        for lane in receipt.group.lanes:
            lane.queue.append(receipt)
            if not lane.busy:
                self._occupy(lane)
                reserved.append(lane)
        self.runs[id(reserved)] = reserved
        await self._deliver_reserved(receipt, reserved)
        self._report_idle()

    def _let_overtake(self, awaiter: Stamp | Place | Scope | None) -> None:
        """Let messages overtake that wait behind a handler which (in the end) waits for them.

        Handlers that wait for each other in a circle begin to when the last of them begins to wait:
        the one that calls this. So only what it waits for, however indirectly, is looked at.
        """
        me = cause_of(awaiter)
        if me is None:
            return  # no handler: nobody waits for it
        waits, behind = self._waits_from(origin_in(me))
        circle = _reached(origin_in(me), behind)
        for receipt, lane in waits:
            port = receipt.group.port
            if lane not in circle or not lane.busy:
                continue
            if port is not self or receipt.stage == _WAITS or receipt in lane.queue:
                port.call_soon(functools.partial(port._overtake, lane, receipt))

    def _waits_from(
        self, me: Origin
    ) -> tuple[list[tuple[Pending[Any], Lane]], dict[object, list[object]]]:
        """Return what a handler waits for, and who does that it waits for; and who is behind whom.

        Handlers are behind lanes, and lanes behind the handlers that run in them.
        """
        waits: list[tuple[Pending[Any], Lane]] = []
        behind: dict[object, list[object]] = {}
        known: set[object] = {me}
        left = [me]
        while left:
            one = left.pop()
            found = self.awaited.get(one)
            for receipt in () if found is None else list(found.receipts):
                for lane in receipt.group.lanes:
                    waits.append((receipt, lane))
                    behind.setdefault(lane, []).append(one)
                    if lane in known:
                        continue
                    known.add(lane)
                    for at in map(origin_in, list(lane.running)):
                        behind.setdefault(at, []).append(lane)
                        if at not in known:
                            known.add(at)
                            left.append(at)
        return waits, behind

    def _overtake(self, lane: Lane, receipt: Pending[Any]) -> None:
        """Handle a message beside the one its lane is at, and before those queued earlier."""
        if self.inbox:
            self.wake()
        if receipt in lane.queue:
            lane.queue.remove(receipt)
            self._start(self._overtaking(lane, receipt))

    async def _overtaking(self, lane: Lane, receipt: Pending[Any]) -> None:
        await _within(receipt.context.copy(), self._deliver(lane, receipt).__await__())

    # -- ending -----------------------------------------------------------------------------------

    def _report_idle(self) -> None:
        if self.idle_waiters and self.is_idle:
            waiters, self.idle_waiters = self.idle_waiters, []
            for waiter in waiters:
                waiter()

    def when_idle(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` in the loop's thread when nothing waits and nothing runs here."""
        self.idle_waiters.append(callback)
        self._report_idle()

    def cancel(self) -> None:
        """Cancel what runs and fail what waits."""
        self.ending = "the bus is closed"
        self.abandon(self.ending)
        for task in self.tasks:
            task.cancel()


def _reached(start: object, steps: dict[object, list[object]]) -> set[object]:
    """Return where one gets to from here; here included, if one comes back."""
    found: set[object] = set()
    left = [start]
    while left:
        for one in steps.get(left.pop(), ()):
            if one not in found:
                found.add(one)
                left.append(one)
    return found


_ENDED = object()


# Any: what asyncio sends through an await is its own affair
@types.coroutine
def _within(context: Context, steps: Generator[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await something step by step inside a context of its own, in the awaiting task."""
    run = context.run
    try:
        # most often there is one step, and `next` tells the end without making an exception of it
        yielded = run(next, steps, _ENDED)
        while yielded is not _ENDED:
            try:
                sent = yield yielded
            except GeneratorExit:
                run(steps.close)
                raise
            except BaseException as error:  # noqa: BLE001  handed on
                yielded = run(steps.throw, error)
            else:
                yielded = run(steps.send, sent)
    except StopIteration:
        return


def _ends_the_task(error: BaseException) -> bool:
    """Whether an error is more than its handler's own: a cancellation of the task, or worse."""
    if isinstance(error, CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return not isinstance(error, Exception)


def _leave(token: Token[Any], error: BaseException) -> None:
    """Restore the cause, unless the coroutine is being closed, maybe in a foreign context."""
    if not isinstance(error, GeneratorExit):
        CURRENT.reset(token)


async def _until_done(receipt: Pending[Any]) -> None:
    loop = _running_loop()
    if loop is None:
        raise BusError(
            "A receipt can be awaited on asyncio's loops only. Elsewhere (trio, say) wait in a "
            "thread: `await anyio.to_thread.run_sync(receipt.wait)`."
        )
    future = loop.create_future()

    def tell() -> None:
        if not future.done():
            future.set_result(None)

    def ended() -> None:
        if _running_loop() is loop:
            tell()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(tell)

    receipt.when_done(ended)
    await future


def _emptied(queue: deque[Any]) -> list[Any]:
    """Take everything out of a queue that other threads may be filling."""
    return [queue.popleft() for _ in range(len(queue))]


def _call_all(callbacks: deque[Callable[[], object]]) -> None:
    while callbacks:
        try:
            callback = callbacks.popleft()
        except IndexError:  # another thread was faster; it calls it
            return
        callback()
