"""The event bus: publish typed messages, from anywhere, to whoever subscribed.

Guarantees, each with a test of its name in ``tests/core/test_event_bus*.py``:

- **Plain handlers** run in the publisher's thread, by priority and then in the order subscribed, and
  are through before `publish` returns. What they publish is delivered at once (depth first).
- **Async handlers** run on the loop they were subscribed on, else on the publisher's running loop, else
  on the bus's own. Each subscription handles one message at a time, in the order its publisher
  published them, and never holds up another subscription.
- **Failure**: a failing handler stops nobody. It becomes `HandlerFailed` (``bus.handler_failed``) and
  shows in the receipt. Every message accepted ends handled, failed, or given up with an error.
- **Threads and loops**: everything may be called from any thread, with or without a loop, unless its
  docstring says otherwise. `publish` never blocks and takes no lock.
- **Causes**: what a handler publishes, also from tasks it starts, is linked to what it handles.

How it is done: receivers register in `blinker` signals, one per class or pattern; a change drops the
*routes* (tuples of handlers per message class) it concerns, and the next message rebuilds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import sys
import threading
import traceback
import weakref
from asyncio import AbstractEventLoop, CancelledError
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Self, TypeAlias, TypeVar, Unpack, cast, overload

from atlas.core.answers import Answer
from atlas.core.causality import (
    CURRENT,
    NO_HEADERS,
    Links,
    Scope,
    causal_tree,
    cause_of,
    given,
    inner_scope,
    links_of,
    origin_of,
)
from atlas.core.clock import SystemClock
from atlas.core.event_loops import Ports
from atlas.core.history import History, Keep
from atlas.core.inner_loop import here
from atlas.core.messages import (
    Command,
    Event,
    Message,
    Origin,
    Place,
    Stamp,
    causation_in,
    message,
    origin_in,
    spelled_out,
    stamp,
    stamped_copy,
)
from atlas.core.metrics import HandlerMetrics
from atlas.core.middleware import Middleware, check_said, said_about, steps_of
from atlas.core.ports import Group, Pending, Port
from atlas.core.receipts import (
    Dropped,
    Joint,
    Receipt,
    Settled,
    checked_timeout,
    loop_of,
    receipt_of,
    text_of,
)
from atlas.core.routes import Begin, Call, Route, place_of_failure
from atlas.core.selectors import PatternSelector, Selector, matches, selectors_of
from atlas.core.signals import Part, Receivers, ReceiverSignal
from atlas.core.streams import MessageStream, StreamOverflow
from atlas.core.subscriptions import (
    Choices,
    Mode,
    ObserverOverflow,
    Options,
    Subscription,
    check_choices,
    check_handler,
    check_returned,
    check_weak,
    handler_name,
)
from atlas.errors import (
    AtlasError,
    BusClosedError,
    BusError,
    ConfigurationError,
    NoResponderError,
    NotAMessageError,
    RecursionLimitError,
    SubscriptionError,
    WaitTimeoutError,
)
from atlas.typing import Clock

__all__ = [
    "EventBus",
    "HandlerFailed",
    "HandlerMetrics",
    "History",
    "MessageStream",
    "Middleware",
    "Receipt",
    "Selector",
    "Subscription",
]

M = TypeVar("M", bound=Message)
R = TypeVar("R")
AnswerT = TypeVar("AnswerT")

_log = logging.getLogger("atlas.bus")
_running_loop = asyncio._get_running_loop
_current_cause = CURRENT.get
_enter = CURRENT.set
_leave = CURRENT.reset
_set_stamp = stamp


@message("bus.handler_failed")
class HandlerFailed(Event):
    """A handler raised. Caused by the message it was handling."""

    handler: str
    failed: str
    failed_id: str
    error_type: str
    error: str
    traceback: str


_Entry: TypeAlias = "tuple[Call | None, Begin | None, Iterator[Place], Keep, Route]"
"""A route with what else `EventBus.publish` needs, taken out of one place in one go."""

_NO_ONE = Options()


class EventBus:
    """An in-process bus for typed messages. One object; no globals; no loop needed.

    Close it with `close` or `aclose`, or use it in a ``with`` or ``async with`` statement, if it
    has async handlers; a bus with plain handlers holds nothing that must be closed.

    Args:
        name: Shown in errors and thread names.
        history: How many messages to keep for `history` and `replay`; 0 keeps none. A mapping from
            selectors to numbers gives each its own share, so that frequent messages do not push out
            rare ones: ``{"stream.token": 100, "**": 1_000}``. The first that selects a message
            counts; what none selects shares 1,024.
        clock: Where the time in stamps comes from.
        middleware: Callables that see every message before it is stamped, in this order; each
            returns the message, another one, or None to drop it. One that takes two arguments also
            gets what is said about the message (headers, source, run), and may change it. One that
            raises makes `publish` raise.
        max_depth: How deep messages may be published inside handlers of messages published inside
            handlers before `RecursionLimitError`. Async chains that do not await each other are
            not nested and have no limit.
        on_unhandled: Called with each message that nobody is subscribed to.
        measure: Whether to count and time every handler call, for `metrics`.
        strict: Whether failures of handlers raise `HandlersFailedError` as well: in `publish` those
            of plain handlers (after all have run), where a receipt is awaited those of async ones.
            For tests and scripts.
    """

    __slots__ = (
        "__weakref__",
        "_answers",
        "_clock",
        "_closers",
        "_direct",
        "_expired",
        "_lock",
        "_max_depth",
        "_middleware",
        "_on_unhandled",
        "_order",
        "_places",
        "_ports",
        "_receivers",
        "_routes",
        "_state",
        "_streams",
        "_under_way",
        "history",
        "measures",
        "name",
        "strict",
    )

    def __init__(
        self,
        *,
        name: str = "bus",
        history: int | Mapping[Selector, int] = 1024,
        clock: Clock | None = None,
        middleware: Iterable[Middleware] = (),
        max_depth: int = 64,
        on_unhandled: Callable[[Message], object] | None = None,
        measure: bool = False,
        strict: bool = False,
    ) -> None:
        _check_parts(name, clock, on_unhandled)
        self.name: str = name
        self.measures: bool = measure
        self.strict: bool = strict
        self.history: History = History(history)
        self._clock = SystemClock() if clock is None else clock
        self._middleware = steps_of(middleware)
        self._max_depth = _checked_depth(max_depth)
        self._on_unhandled = on_unhandled
        self._lock = threading.RLock()  # guards subscriptions, routes and ports; not publishing
        self._order = itertools.count()
        self._receivers = Receivers(
            name, self._lock, changed=self._forget_routes, adopt=self._adopted
        )
        self._routes: dict[type[Message], _Entry] = {}
        # those that `publish` may take at once: none where a middleware has to see every message
        self._direct: dict[type[Message], _Entry] = {} if self._middleware else self._routes
        self._ports = Ports(name, self._failed, self._lock, strict=strict)
        self._expired: deque[Subscription[Any]] = deque()  # weak ones whose handler is gone
        self._streams: set[MessageStream[Any]] = set()
        self._under_way: weakref.WeakSet[Group] = weakref.WeakSet()  # of routes that were dropped
        self._closers: set[Callable[[], None]] = set()
        self._answers: dict[Origin, Answer[Any]] = {}
        self._state: Literal["open", "closing", "closed"] = "open"
        # Who stamped it, in what place, when: made at one go, which takes half the time and leaves
        # no moment between place and time in which another thread could publish.
        self._places: Iterator[Place] = zip(
            itertools.repeat(
                int.from_bytes(os.urandom(4)) >> 2
            ),  # `secrets` would load ten modules
            itertools.count(1),
            itertools.starmap(self._clock.time_ns, itertools.repeat(())),
            strict=False,
        )

    # -- publishing -------------------------------------------------------------------------------

    # Give all but the message by keyword. They are not marked as such: the interpreter looks up the
    # defaults of keyword-only arguments by name, which takes 2 to 7 % of the time of a publish.
    def publish(  # noqa: PLR0917
        self,
        message: M,
        headers: Mapping[str, str] | None = None,
        source: str | None = None,
        run: str | None = None,
        correlation: Message | str | None = None,
        causation: Message | str | None = None,
    ) -> Receipt[M]:
        """Stamp a message and deliver it. Any thread, with or without a loop; never blocks.

        Plain handlers have run when it returns; async ones are on their way: await the receipt, or
        its ``wait()``, to know them done. A message that was published before is copied, so that
        each publication has its own stamp.

        Args:
            message: The message.
            headers: Annotations for it, over those of the scope.
            source: Who publishes, over that of the scope.
            run: The run it belongs to; default: that of the message being handled, or of the scope.
            correlation: A message (or its id) of the conversation it belongs to; default: that
                of the message being handled, or of the scope, else the message itself.
            causation: The message (or its id) that caused it; default: the one being handled.

        Returns:
            The receipt; its ``message`` is the stamped one.

        Raises:
            NotAMessageError: It is no message.
            BusClosedError: The bus is closed.
            RecursionLimitError: Handlers publish into each other without end. Only raised inside
                handlers; it unwinds them all, and ends up in the outermost receipt.
        """
        # The time of this method is the time of the bus. A message of which nothing is to be known but
        # its place and what causes it, which most are, is therefore dealt with right here; whatever
        # else there may be (scopes, links, middleware, a message published before) is left to
        # `_publish`.
        places: Iterator[Place] | None
        try:
            call, begin, places, keep, route = self._direct[type(message)]
        except KeyError:
            places = None  # goes on outside, or what handlers raise would come "during" this
        if (
            places is None
            or message._stamp is not None
            or headers is not None
            or source is not None
            or run is not None
            or correlation is not None
            or causation is not None
        ):
            return self._publish(message, given(headers, source, run, correlation, causation))
        cause = _current_cause()
        if cause is None:
            known: Stamp | Place = next(places)
        elif type(cause) is tuple:
            known = self._caused_by(cause, message)
        else:
            return self._publish(message, {})
        _set_stamp(message, known)
        keep(message)
        if begin is None:
            receipt: Receipt[M] = Receipt()
            receipt.message = message
        else:  # to lanes before plain handlers run: what these publish is later
            receipt = begin(message)
        if call is not None:
            token = _enter(known)
            try:
                call(message)
            except (Exception, CancelledError) as error:  # noqa: BLE001  isolated, and told
                return self._go_on(receipt, route, error)
            finally:
                _leave(token)
        return receipt

    def _publish(self, message: M, links: Links) -> Receipt[M]:
        """Publish a message of which more is to be known than its place."""
        cls = type(message)
        entry = self._routes.get(cls) or self._entry(message)
        if self._middleware:
            links = said_about(links)
        passed = self._pass_middleware(message, links)
        if passed is None:
            return _dropped(message)
        if type(passed) is not cls:
            entry = self._entry(passed)  # refuses what is no message, before it is stamped
        known = self._stamp(passed, **links)
        message = cast("M", passed if passed._stamp is None else stamped_copy(passed, None))
        return self._deliver(message, known, entry)

    def _deliver(self, message: M, known: Stamp | Place, entry: _Entry) -> Receipt[M]:
        call, begin, _, keep, route = entry
        _set_stamp(message, known)
        keep(message)
        receipt = receipt_of(message) if begin is None else begin(message)
        if call is not None:
            token = _enter(known)
            try:
                call(message)
            except (Exception, CancelledError) as error:  # noqa: BLE001  isolated, and told
                return self._go_on(receipt, route, error)
            finally:
                _leave(token)
        return receipt

    def _caused_by(self, cause: Stamp | Place, message: Message) -> Stamp:
        """Return the stamp of what a handler publishes without further ado: most of what it does."""
        if len(cause) == 7:
            by, _, together, run, _, _, depth = cause
        else:
            by, together, run, depth = cause, cause, None, 0
        depth += 1
        if depth > self._max_depth:
            depth = self._nesting(message, cause)
        return (next(self._places), by, together, run, None, NO_HEADERS, depth)

    def _go_on(self, receipt: Receipt[M], route: Route, error: BaseException) -> Receipt[M]:
        """Note a failure, run the handlers after it, and return a receipt that knows."""
        message = receipt.message
        known = receipt if isinstance(receipt, Pending | Joint) else Settled(message)
        owners = route.owners
        at = place_of_failure(error, len(owners))
        while True:
            if isinstance(error, RecursionLimitError) and _is_nested(message):
                raise error.with_traceback(None)  # or the log would repeat every level
            known.fail(error)
            self._failed(owners[at], message, error)
            try:
                for at in range(at + 1, len(owners)):  # noqa: B020  goes on where it was
                    check_returned(owners[at].call(message))
            except (Exception, CancelledError) as next_error:  # noqa: BLE001
                error = next_error
            else:
                return known.raise_for_errors() if self.strict else known

    def _pass_middleware(self, message: Message, links: Links) -> Message | None:
        passed: Message | None = message
        for step in self._middleware:
            passed = step(cast("Message", passed), links)
            if passed is None:
                return None
        check_said(links)
        return passed

    def _stamp(self, message: Message, **links: Unpack[Links]) -> Stamp:
        """Work out the stamp of a message for which something was given, or a scope is open."""
        current = _current_cause()
        cause = cause_of(current)
        depth = 0 if cause is None else spelled_out(cause)[6] + 1
        if cause is not None and depth > self._max_depth:
            depth = self._nesting(message, cause)
        by, together, of_run, source, headers = links_of(current, **links)
        origin = next(self._places)
        if isinstance(current, Scope) and current.on_stamped is not None:
            current.on_stamped(origin)
        return (origin, by, together or origin, of_run, source, headers, depth)

    def _nesting(self, message: Message, cause: Stamp | Place) -> int:
        """Return how deep this publish really is; refuse if that is too deep.

        The depth in stamps also grows along tasks that handlers start, which are not nested. Nested
        are the handlers on the stack, and those that await each other.
        """
        frame = sys._getframe(1)
        depth = 0
        mine = {EventBus.publish.__code__, Port.go.__code__, Port._handle.__code__}
        while frame is not None:
            depth += frame.f_code in mine
            frame = frame.f_back  # type: ignore[assignment]
        depth = max(depth, self._ports.awaiting(causation_in(cause)) + 1)
        if depth <= self._max_depth:
            return depth - 1
        chain = self.history.chain(origin_in(cause))
        shown = " -> ".join(["...", *chain[-9:], message.message_name])
        raise RecursionLimitError(
            f"Handlers publish into each other without end: {self._max_depth} messages deep: "
            f"{shown}. Break the circle, publish from an async handler without awaiting it, or "
            f"raise `max_depth` of the bus.",
            chain=(*chain, message.message_name),
        )

    def _failed(
        self, subscription: Subscription[Any], message: Message, error: BaseException
    ) -> None:
        """Make a failure known: an event if that can help, else the log."""
        subscription.failures += 1
        if isinstance(message, HandlerFailed) or self._state == "closed":
            self._log_failure(subscription, message, error)
            return
        event = HandlerFailed(
            handler=subscription.name,
            failed=message.message_name,
            failed_id=message.meta.id or "",
            error_type=f"{type(error).__module__}.{type(error).__qualname__}",
            error=text_of(error),
            traceback="".join(traceback.format_exception(error)),
        )
        token = _enter(message._stamp)
        try:
            receipt = self.publish(event, source=self.name)
        except Exception:  # noqa: BLE001  a failing middleware, say: the first failure counts
            self._log_failure(subscription, message, error)
            return
        finally:
            _leave(token)
        if not self._entry(receipt.message)[-1].all:
            self._log_failure(subscription, message, error)

    def _log_failure(
        self, subscription: Subscription[Any], message: Message, error: BaseException
    ) -> None:
        if self._state == "closed" and isinstance(error, asyncio.CancelledError):
            _log.info("%s was stopped on %r: the bus was closed", subscription.name, message)
            return
        _log.error("%s failed on %r", subscription.name, message, exc_info=error)

    def _deliver_directly(self, subscription: Subscription[Any], message: Message) -> None:
        """Hand a message to one subscription, as `blinker.Signal.send` asks for."""
        if message._stamp is None:
            message = stamped_copy(message, self._stamp(message))
        route = Route([subscription])
        with self._lock:
            route.open(self._ports, self._failed)
        if route.begin is not None:
            route.begin(message)
        if route.call is not None:
            route.call(message)

    # -- routes -----------------------------------------------------------------------------------

    def _entry(self, message: Message) -> _Entry:
        """Return, making it if need be, the route of a message's class, ready to be taken."""
        cls = type(message)
        with self._lock:
            if self._state != "open":
                self._refuse_closed(message)
            entry = self._routes.get(cls)
            if entry is None:
                if not _is_declared(cls):
                    raise NotAMessageError(
                        f"{message!r} is no message but a {cls.__module__}.{cls.__qualname__}; "
                        f"publish an instance of a class that derives from Event or Command and is "
                        f"decorated with @message."
                    )
                route = Route(self._receivers.of(cls))
                if not route.all and self._on_unhandled is not None:
                    route = Route([self._subscription((cls,), self._on_unhandled, 0, _NO_ONE)])
                route.open(self._ports, self._failed)
                entry = (route.call, route.begin, self._places, self.history.keeper(cls), route)
                if self._state == "open":
                    self._routes[cls] = entry
            return entry

    def _refuse_closed(self, message: object) -> None:
        if self._state == "closing" and cause_of(_current_cause()) is not None:
            return  # what handlers in flight publish is still delivered
        raise BusClosedError(
            f"{self.name!r} is closed and accepts no more messages; {message!r} was not published."
        )

    def _adopted(
        self, part: Part, receiver: Callable[..., object], is_weak: bool
    ) -> Subscription[Any]:
        """Return the subscription that stands for a receiver connected with blinker itself."""
        return self._subscription((part,), receiver, 0, Options(weak=is_weak))

    def _forget_routes(self, part: Part) -> None:
        self._drop_routes([cls for cls in self._routes if matches(part, cls)])
        for group in self._under_way:
            group.refresh()

    def _drop_routes(self, classes: Iterable[type[Message]]) -> None:
        # Messages that are on their way on a route keep its groups alive. These have to hear also of
        # what is closed after the route was dropped.
        for cls in classes:
            self._under_way.update(self._routes.pop(cls)[-1].groups())

    def signal(self, part: type[M] | str) -> ReceiverSignal:
        """Return the `blinker.Signal` in which receivers of a class or pattern register.

        A receiver connected to it directly receives every message selected, as its sender, at
        priority 0. A message sent through it reaches the subscriptions to just this part, without
        being stamped into the history.
        """
        return self._receivers.signal(part)

    # -- subscribing ------------------------------------------------------------------------------

    @overload
    def on(
        self, selector: type[M] | tuple[type[M], ...], **options: Unpack[Choices[M]]
    ) -> Callable[[Callable[[M], R]], Callable[[M], R]]: ...
    @overload
    # Any: a pattern does not say which classes it selects
    def on(
        self, selector: PatternSelector, **options: Unpack[Choices[Any]]
    ) -> Callable[[Callable[[Any], R]], Callable[[Any], R]]: ...
    def on(
        self, selector: Selector, **options: Any
    ) -> Callable[[Callable[[Any], R]], Callable[[Any], R]]:
        """Subscribe the decorated function; see `subscribe` for the options. Returns it unchanged."""

        def decorate(handler: Callable[[Any], R]) -> Callable[[Any], R]:
            self.subscribe(selector, handler, **options)
            return handler

        return decorate

    @overload
    def subscribe(
        self,
        selector: type[M] | tuple[type[M], ...],
        handler: Callable[[M], object],
        *,
        weak: bool = False,
        **options: Unpack[Choices[M]],
    ) -> Subscription[M]: ...
    @overload
    def subscribe(
        self,
        selector: PatternSelector,
        handler: Callable[[Any], object],
        *,
        weak: bool = False,
        **options: Unpack[Choices[Any]],
    ) -> Subscription[Any]: ...
    def subscribe(
        self,
        selector: Selector,
        handler: Callable[[Any], object],
        *,
        where: Callable[[Any], object] | None = None,
        priority: int = 0,
        once: bool = False,
        weak: bool = False,
        mode: Mode = "reliable",
        capacity: int | None = None,
        overflow: ObserverOverflow = "merge",
        merge: Callable[[Any, Any], Any] | None = None,
        droppable: Callable[[Any], bool] | None = None,
        loop: AbstractEventLoop | None = None,
        name: str | None = None,
    ) -> Subscription[Any]:
        """Have a plain or an async callable receive the messages selected. Any thread.

        Args:
            selector: A message class (its subclasses included), a pattern over message names
                (``*``: one segment, ``**``: any number), or a tuple of those. A message that
                several parts select arrives once.
            handler: Called with the message. Held strongly, unless ``weak``.
            where: Only messages for which this is true arrive. For plain handlers and observers it
                is evaluated in the publisher's thread, for async ones on their loop.
            priority: Higher comes first; equal ones come in the order subscribed.
            once: End after the first message, also when several threads publish at once.
            weak: Do not keep the handler (a bound method, say) alive. Lambdas and inner functions
                are refused, for they would vanish at once.
            mode: ``"reliable"``: receipts wait for it, and publishers that await go at its pace.
                ``"observer"``: it has a lane of its own and slows nobody; when the lane is full,
                messages are merged or dropped, by ``overflow``. A plain observer runs on the bus's
                own loop, unless ``loop`` is given.
            capacity: How many messages may wait: 65,536 for a reliable handler, 1,024 for an
                observer by default. A reliable one that is full fails what nobody awaits.
            overflow: What a full observer does: ``"merge"`` merges what merges, drops what
                ``droppable`` names, and keeps everything else (up to 65,536); ``"drop_oldest"``
                and ``"drop_newest"`` drop (only what ``droppable`` names, if given).
            merge: Returns one message for two that follow each other, None if they do not merge.
            droppable: Whether a message may be dropped.
            loop: The event loop of an async handler; default: the one running here, else that of
                the publisher, else the bus's own.
            name: For errors and metrics; default: the handler's qualified name.

        Raises:
            SubscriptionError: Such a subscription cannot be made; the text says why.
            BusClosedError: The bus is closed.
        """
        is_plain = (
            where is None
            and not (once or weak)
            and (mode, overflow) == ("reliable", "merge")
            and all(chosen is None for chosen in (capacity, merge, droppable, name))
        )
        if loop is None and check_handler(handler):
            loop = _running_loop()
        options = (
            _NO_ONE
            if is_plain and loop is None
            else Options(
                where=where,
                once=once,
                weak=weak,
                mode=mode,
                capacity=capacity,
                overflow=overflow,
                merge=merge,
                droppable=droppable,
                loop=loop,
                name=name,
            )
        )
        parts = selectors_of(selector)
        check_choices(priority, options)
        if weak:
            check_weak(handler)
        with self._lock:
            if self._state == "closed":
                raise BusClosedError(
                    f"{self.name!r} is closed; {handler_name(handler)} cannot be subscribed."
                )
            subscription = self._subscription(parts, handler, priority, options)
            if mode == "observer":
                subscription._lanes = self._ports.observer_lane(subscription)
            self._receivers.register(subscription)
        self._forget_expired()
        return subscription

    def _subscription(
        self,
        parts: tuple[type[Message] | str, ...],
        handler: Callable[..., object],
        priority: int,
        options: Options,
    ) -> Subscription[Any]:
        return Subscription(
            self, parts, handler, priority=priority, order=next(self._order), options=options
        )

    def _unsubscribe(self, subscription: Subscription[Any]) -> None:
        with self._lock:
            if not subscription.is_open:
                return
            subscription.is_open = False
            self._receivers.withdraw(subscription)
        for lane in subscription._all_lanes():
            lane.close()

    def _forget_expired(self) -> None:
        while self._expired:
            self._expired.popleft().close()

    # -- waiting ----------------------------------------------------------------------------------

    @overload
    def stream(
        self,
        selector: type[M] | tuple[type[M], ...],
        *,
        where: Callable[[M], object] | None = None,
        capacity: int = 256,
        overflow: StreamOverflow = "block",
    ) -> MessageStream[M]: ...
    @overload
    def stream(
        self,
        selector: PatternSelector,
        *,
        where: Callable[[Any], object] | None = None,
        capacity: int = 256,
        overflow: StreamOverflow = "block",
    ) -> MessageStream[Any]: ...
    def stream(
        self,
        selector: Selector,
        *,
        where: Callable[[Any], object] | None = None,
        capacity: int = 256,
        overflow: StreamOverflow = "block",
    ) -> MessageStream[Any]:
        """Return the messages selected as an async context manager and iterator.

        Args:
            selector: See `subscribe`.
            where: Only messages for which this is true arrive.
            capacity: How many messages may wait to be read.
            overflow: What happens to one more: ``"block"``: its receipt waits until it has room, so
                that publishers who await go at the reader's pace; ``"drop_oldest"``;
                ``"drop_newest"``; ``"latest"``: only the newest is kept; ``"error"``: the stream
                ends with `BufferOverflowError`.
        """
        selectors_of(selector)
        return MessageStream(self, selector, where, capacity, overflow)

    @overload
    async def wait_for(
        self,
        selector: type[M] | tuple[type[M], ...],
        *,
        where: Callable[[M], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> M: ...
    @overload
    async def wait_for(
        self,
        selector: PatternSelector,
        *,
        where: Callable[[Any], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Any: ...
    async def wait_for(
        self,
        selector: Selector,
        *,
        where: Callable[[Any], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  one call says all; see WaitTimeoutError
    ) -> Any:
        """Return the next message selected that is published from now on.

        Args:
            selector: See `subscribe`.
            where: Only a message for which this is true counts.
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            WaitTimeoutError: None came in time.
            BusClosedError: The bus was closed meanwhile.
        """
        timeout = checked_timeout("wait_for", timeout)
        future: Answer[Any] = Answer(loop_of("wait_for"))
        with self.subscribe(selector, future.give, where=where, once=True, name="wait_for"):
            self._closers.add(future.close)
            try:
                async with asyncio.timeout(timeout):
                    return await future
            except TimeoutError as error:
                raise WaitTimeoutError(
                    f"No message selected by {selector!r} came within {timeout} seconds.",
                    timeout=timeout or 0.0,
                ) from error
            finally:
                self._closers.discard(future.close)

    async def request(
        self,
        message: Command[AnswerT],
        *,
        timeout: float | None = None,  # noqa: ASYNC109  one call says all; see WaitTimeoutError
    ) -> AnswerT:
        """Publish a command and return the answer somebody gives with `reply`.

        Args:
            message: The command.
            timeout: Seconds to wait at most; None waits as long as it takes.

        Raises:
            NoResponderError: Nobody is subscribed to it, or a middleware dropped it.
            HandlersFailedError: Its handlers have ended, one failed, and none answered.
            WaitTimeoutError: No answer came in time.
            BusClosedError: The bus was closed meanwhile.
        """
        timeout = checked_timeout("request", timeout)
        loop = loop_of("request")
        place = here()
        has_handlers = bool(self._entry(message)[-1].all)
        if place is not None:  # who answers is outside of the run
            has_handlers = place.inner.supervisor.read(place, "responders", lambda _: has_handlers)
        if not has_handlers:
            raise NoResponderError(
                f"Nobody answers {message!r}: no handler is subscribed to {message.message_name!r}."
            )
        given: Answer[AnswerT] = Answer(loop)
        asked: list[Origin] = []

        def ask(origin: Origin) -> None:
            asked.append(origin)
            self._answers[origin] = given

        self._closers.add(given.close)
        try:
            receipt = self._publish_in(inner_scope(on_stamped=ask), message)
            if receipt.dropped:
                raise NoResponderError(f"Nobody answers {message!r}: a middleware dropped it.")
            receipt.when_done(lambda: given.fail_with(receipt))
            async with asyncio.timeout(timeout):
                # handlers are outside of a run: there is none that could wait for this one
                with receipt._needed() if place is None else contextlib.nullcontext():
                    return await given
        except TimeoutError as error:
            if isinstance(error, AtlasError):
                raise
            raise WaitTimeoutError(
                f"Nobody answered {message!r} within {timeout} seconds.", timeout=timeout or 0.0
            ) from error
        finally:
            self._closers.discard(given.close)
            for origin in asked:
                self._answers.pop(origin, None)

    def _publish_in(self, scope: Scope, message: M) -> Receipt[M]:
        token = _enter(scope)
        try:
            return self.publish(message)
        finally:
            _leave(token)

    def reply(self, request: Command[AnswerT], answer: AnswerT) -> bool:
        """Answer a command. Any thread.

        Args:
            request: The command, as the handler received it.
            answer: The answer. If it is itself a message, it is published, caused by the request.

        Returns:
            Whether somebody still waits for it. Only the first answer counts.
        """
        origin = origin_of(request, "request")
        if isinstance(answer, Message):
            answer = self.publish(answer, causation=request).message
        waiter = self._answers.pop(origin, None)
        return waiter is not None and waiter.give(answer)

    # -- scopes, history --------------------------------------------------------------------------

    @contextlib.contextmanager
    def scope(
        self,
        *,
        run: str | None = None,
        correlation: Message | str | None = None,
        source: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[None]:
        """Give the messages published inside the ``with`` block a run, source, and so on.

        Scopes nest; what the inner one leaves out comes from the outer one. A scope follows the
        context: tasks started inside it are in it. Run and correlation are handed on to what
        handlers of these messages publish; source and headers are not.
        """
        inner = inner_scope(run=run, correlation=correlation, source=source, headers=headers)
        token = _enter(inner)
        try:
            yield
        finally:
            _leave(token)

    def replay(self, handler: Callable[[Message], object], *, since: int = 0) -> int:
        """Call a plain handler with what the history keeps, in order; return how many.

        Args:
            handler: Called in this thread; what it raises ends the replay.
            since: The sequence number of the first message.

        Raises:
            SubscriptionError: The handler cannot be called with a message, or is asynchronous.
        """
        if check_handler(handler):
            raise SubscriptionError(
                f"{handler_name(handler)} is asynchronous, and `replay` awaits nobody. Iterate over "
                f"`bus.history.since(...)` and await it for each message."
            )
        kept = self.history.since(since)
        for item in kept:
            check_returned(handler(item))
        return len(kept)

    def tree(self, run: str | None = None) -> str:
        """Return what the history keeps (of one run, if given) as a tree of causes, for people."""
        return causal_tree(item for item in self.history if run is None or item.meta.run == run)

    @property
    def metrics(self) -> tuple[HandlerMetrics, ...]:
        """The figures of every open subscription, in the order subscribed."""
        with self._lock:
            found = self._receivers.all()
        return tuple(one.metrics for one in found)

    def explain(self, cls: type[Message]) -> str:
        """Say who would receive a message of this class, in which order, and why, for people.

        Raises:
            NotAMessageError: It is no declared message class.
        """
        given: object = cls
        if not (isinstance(given, type) and _is_declared(given)):
            raise NotAMessageError(
                f"{cls!r} is no message class; give one that is decorated with @message, not its "
                f"name or an instance."
            )
        with self._lock:
            receivers = self._receivers.of(cls)
        title = f"{cls.message_name} ({cls.__qualname__}) on {self.name!r}: "
        if not receivers:
            return title + "nobody is subscribed"
        route = Route(receivers)
        inline = [f"  {one.explained(cls)}" for one in route.owners]
        lanes = [f"  {one.explained(cls)}" for one in (*route.lanes, *route.observers)]
        parts = [title.rstrip()]
        if inline:
            parts += [" in the publisher's thread, in this order:", *inline]
        if lanes:
            parts += [" each on a lane of its own:", *lanes]
        return "\n".join(parts)

    # -- ending -----------------------------------------------------------------------------------

    async def drain(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait until nothing waits and nothing runs on any loop of the bus. Not from a handler.

        Raises:
            WaitTimeoutError: It did not come to that within ``timeout`` seconds.
            BusError: Something waits for a loop that is stopped, so that it will never come to that.
        """
        timeout = checked_timeout("drain", timeout)
        loop_of("drain", "Wait for receipts instead: `receipt.wait()`.")
        try:
            async with asyncio.timeout(timeout):
                await self._ports.drain()
        except TimeoutError as error:
            raise WaitTimeoutError(
                f"{self.name!r} still had handlers running after {timeout} seconds.",
                timeout=timeout or 0.0,
            ) from error

    async def aclose(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Take no more messages, let handlers end, then close.

        What handlers in flight publish is still delivered.

        Args:
            timeout: Seconds after which handlers still running are cancelled, and messages still
                waiting fail; None gives them as long as they take.
        """
        timeout = checked_timeout("aclose", timeout)
        loop_of("aclose", "Wait for receipts (`receipt.wait()`), then call `close()`.")
        with self._lock:
            if self._state == "open":
                self._state = "closing"
                self._drop_routes(list(self._routes))
        with contextlib.suppress(
            BusError
        ):  # time is up, or a loop is stopped: `close` fails the rest
            await self.drain(timeout)
        tasks = self._ports.tasks_here()
        self.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Close at once: handlers running are cancelled, messages waiting fail. Any thread."""
        with self._lock:
            if self._state == "closed":
                return
            self._state = "closed"
            self._routes.clear()
        for closer in list(self._closers):
            closer()
        for stream in list(self._streams):
            stream._close()
        self._ports.close()

    @property
    def is_closed(self) -> bool:
        """Whether the bus is closed."""
        return self._state == "closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<EventBus {self.name!r}, {self._state}, {len(self.history)} messages kept>"


def _checked_depth(depth: object) -> int:
    if isinstance(depth, int) and not isinstance(depth, bool) and depth >= 1:
        return depth
    raise ConfigurationError(
        f"max_depth={depth!r} makes no sense; give an int from 1, how deep handlers may publish "
        f"into each other."
    )


def _check_parts(name: object, clock: object, on_unhandled: object) -> None:
    if not isinstance(name, str):
        raise ConfigurationError(f"name={name!r} is no text; a bus is named in errors and threads.")
    if clock is not None and not callable(getattr(clock, "time_ns", None)):
        raise ConfigurationError(
            f"clock={clock!r} tells no time; give something with a method `time_ns()`, or None for "
            f"the system's clock."
        )
    if on_unhandled is not None:
        try:
            check_handler(cast("Callable[..., object]", on_unhandled))
        except SubscriptionError as error:
            raise ConfigurationError(f"on_unhandled={on_unhandled!r}: {error}") from error


def _is_nested(message: Message) -> bool:
    return message._stamp is not None and spelled_out(message._stamp)[6] > 0


def _dropped(message: M) -> Receipt[M]:
    receipt: Receipt[M] = Dropped()
    receipt.message = message
    return receipt


def _is_declared(cls: type[object]) -> bool:
    return issubclass(cls, Message) and "message_name" in cls.__dict__
