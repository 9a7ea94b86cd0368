"""Subscriptions: who receives which messages, and how a handler is made ready to be called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Awaitable, Callable
from dis import findlabels, opmap
from types import CodeType, CoroutineType
from typing import Any, Generic, Literal, Protocol, Self, TypedDict, TypeVar, cast, get_args

from atlas.core.lanes import Carrier, Lane, ObserverLane
from atlas.core.messages import Message
from atlas.core.metrics import HandlerMetrics, Meter
from atlas.core.selectors import PatternSelector, Selector, matches, selectors_of
from atlas.errors import SubscriptionError

__all__ = [
    "Choices",
    "Mode",
    "ObserverOverflow",
    "PatternSelector",
    "Selector",
    "Subscription",
    "check_returned",
    "matches",
    "selectors_of",
]

M = TypeVar("M", bound=Message)

Mode = Literal["reliable", "observer"]
ObserverOverflow = Literal["merge", "drop_oldest", "drop_newest"]


_RETURNS = {opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in opmap}


class Choices(TypedDict, Generic[M], total=False):
    """What can be chosen for a subscription: see `EventBus.subscribe`."""

    where: Callable[[M], object] | None
    priority: int
    once: bool
    mode: Mode
    capacity: int | None
    overflow: ObserverOverflow
    merge: Callable[[M, M], M | None] | None
    droppable: Callable[[M], bool] | None
    loop: AbstractEventLoop | None
    name: str | None


class Options:
    """What few subscriptions ask for; one shared instance for all the others."""

    __slots__ = (
        "capacity",
        "droppable",
        "loop",
        "merge",
        "mode",
        "name",
        "once",
        "overflow",
        "weak",
        "where",
    )

    def __init__(
        self,
        *,
        where: Callable[[Any], object] | None = None,
        once: bool = False,
        weak: bool = False,
        mode: Mode = "reliable",
        capacity: int | None = None,
        overflow: ObserverOverflow = "merge",
        merge: Callable[[Any, Any], Any] | None = None,
        droppable: Callable[[Any], bool] | None = None,
        loop: AbstractEventLoop | None = None,
        name: str | None = None,
    ) -> None:
        self.where: Callable[[Any], object] | None = where
        self.once: bool = once
        self.weak: bool = weak
        self.mode = mode
        self.capacity: int | None = capacity
        self.overflow = overflow
        self.merge: Callable[[Any, Any], Any] | None = merge
        self.droppable: Callable[[Any], bool] | None = droppable
        self.loop: AbstractEventLoop | None = loop
        self.name: str | None = name


def check_choices(priority: object, options: Options) -> None:
    """Refuse options with which no subscription can be made.

    Raises:
        SubscriptionError: The text names the option, its value and the mend.
    """
    if not _is_int(priority):
        raise SubscriptionError(f"priority={priority!r} is no int; higher comes first, 0 is usual.")
    check_one_of("mode", options.mode, get_args(Mode))
    check_one_of("overflow", options.overflow, get_args(ObserverOverflow))
    check_capacity(options.capacity)
    if options.overflow != "merge" and options.mode != "observer":
        raise _only_for_observers("overflow")
    for name in ("where", "merge", "droppable"):
        chosen = getattr(options, name)
        if chosen is None:
            continue
        if name != "where" and options.mode != "observer":
            raise _only_for_observers(name)
        _check_question(name, chosen, 2 if name == "merge" else 1)
    if not isinstance(options.loop, AbstractEventLoop | None):
        raise SubscriptionError(
            f"loop={options.loop!r} is no event loop; give asyncio's, or None for the one running."
        )
    if not isinstance(options.name, str | None):
        raise SubscriptionError(f"name={options.name!r} is no string.")


def _check_question(name: str, asked: Callable[..., object], many: int) -> None:
    """Refuse what cannot be asked, at once and in the publisher's thread, about so many messages."""
    if not callable(asked):
        raise SubscriptionError(f"{name}={asked!r} cannot be called; give a function or None.")
    if asyncio.iscoroutinefunction(_called(asked)):
        raise SubscriptionError(
            f"{name}={asked!r} is asynchronous: a message does not wait for its answer, and a "
            f"coroutine is always true. Give a plain function."
        )
    if _clearly_takes(asked, many):
        return
    try:
        inspect.signature(asked).bind(*[None] * many)
    except ValueError:  # some builtins have none to look at
        return
    except TypeError as error:
        raise SubscriptionError(
            f"{name}={asked!r} cannot be called with {many} positional argument(s), as it is for "
            f"every message ({error})."
        ) from error


def _only_for_observers(name: str) -> SubscriptionError:
    return SubscriptionError(
        f"{name}= is for observers: nothing is merged or dropped on the way to a reliable handler. "
        f"Leave it out, or add mode='observer'."
    )


def check_capacity(capacity: object) -> None:
    """Refuse what is no number of messages that may wait.

    Raises:
        SubscriptionError: It is no int from 1.
    """
    if capacity is not None and not (_is_int(capacity) and cast("int", capacity) >= 1):
        raise SubscriptionError(
            f"capacity={capacity!r} is no number of messages; give an int from 1."
        )


def check_one_of(name: str, chosen: object, known: tuple[str, ...]) -> None:
    """Refuse a word that is none of those known.

    Raises:
        SubscriptionError: The text lists them.
    """
    if chosen not in known:
        words = ", ".join(map(repr, known))
        raise SubscriptionError(f"{name}={chosen!r} is none of {words}.")


def _is_int(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


class Home(Protocol):
    """What a subscription asks of its bus."""

    measures: bool
    _expired: deque[Subscription[Any]]  # weak ones whose handler is gone

    def _unsubscribe(self, subscription: Subscription[Any]) -> None:
        """End a subscription. Any thread."""

    def _deliver_directly(self, subscription: Subscription[Any], message: Message) -> None:
        """Hand a message to one subscription, past everybody else."""


class Subscription(Generic[M]):
    """A handler's place on a bus. Close it, or use it in a ``with`` statement, to end it.

    It is also what is connected to the `blinker.Signal` of each class or pattern selected.
    Safe to close from any thread, in handlers, and more than once.
    """

    __slots__ = (
        "_bus",
        "_lanes",
        "_meter",
        "call",
        "failures",
        "handler",
        "is_async",
        "is_open",
        "may_return",
        "options",
        "order",
        "priority",
        "selectors",
    )

    def __init__(
        self,
        bus: Home,
        selectors: tuple[type[Message] | str, ...],
        handler: Callable[[M], object],
        *,
        priority: int,
        order: int,
        options: Options,
    ) -> None:
        self._bus = bus
        self.selectors: tuple[type[Message] | str, ...] = selectors
        self.handler: Callable[[Any], object] | None = None if options.weak else handler
        self.priority: int = priority
        self.order: int = order
        self.options: Options = options
        self.is_async: bool = check_handler(handler)
        self.may_return: bool = not self.is_async and _may_return(handler)
        self.is_open: bool = True
        self.failures: int = 0
        self._meter = Meter() if bus.measures else None
        self._lanes: Lane | dict[Carrier, Lane] | None = None
        self.call: Callable[[Any], Any] = self._callable(handler)

    @property
    def name(self) -> str:
        """The name given, else the handler's qualified name."""
        return self.options.name or handler_name(self.handler or self.call)

    def close(self) -> None:
        """End the subscription: nothing published from now on reaches the handler.

        What waits on its lane and has not begun is given up; receipts count it as ended. A handler
        that is running goes on. A message being dispatched in another thread may still arrive.
        """
        self._bus._unsubscribe(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, message: M) -> None:
        """Receive a message sent through the blinker Signal itself."""
        self._bus._deliver_directly(self, message)

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Subscription of {self.name} to {self.selectors!r}, {state}>"

    @property
    def observer_lane(self) -> ObserverLane:
        """The lane of an observer."""
        lane = self._lanes
        assert isinstance(lane, ObserverLane)
        return lane

    @property
    def metrics(self) -> HandlerMetrics:
        """The figures of this subscription."""
        lanes = self._all_lanes()
        observers = [lane for lane in lanes if isinstance(lane, ObserverLane)]
        meter = self._meter
        return HandlerMetrics(
            name=self.name,
            failed=self.failures,
            waiting=sum(lane.depth for lane in lanes),
            dropped=sum(lane.dropped for lane in observers),
            merged=sum(lane.merged for lane in observers),
            handled=None if meter is None else meter.handled,
            p50=None if meter is None else meter.percentile(0.5),
            p99=None if meter is None else meter.percentile(0.99),
        )

    def explained(self, cls: type[Message]) -> str:
        """Say in a line why and how messages of a class arrive here."""
        by = ", ".join(
            repr(part) if isinstance(part, str) else part.__qualname__
            for part in self.selectors
            if matches(part, cls)
        )
        options = self.options
        facts = [f"by {by}", f"priority {self.priority}"]
        facts += ["async"] * self.is_async
        facts += ["observer"] * (options.mode == "observer")
        facts += ["if its predicate says so"] * (options.where is not None)
        facts += ["once"] * options.once
        facts += ["weak"] * options.weak
        return f"{self.name}: {', '.join(facts)}"

    def _all_lanes(self) -> list[Lane]:
        lanes = self._lanes
        if isinstance(lanes, dict):
            return list(lanes.values())
        return [] if lanes is None else [lanes]

    # -- making the handler ready -----------------------------------------------------------------

    def _callable(self, handler: Callable[[M], object]) -> Callable[[Any], Any]:
        call: Callable[[Any], Any] = handler
        if self.options.weak:
            call = self._weakly(handler)
        if self._meter is not None:
            measured = self._meter.asynchronous if self.is_async else self._meter.plain
            call = _named_like(measured(call), handler)
        if self.options.once:
            call = self._at_most_once(call)
        if self.options.where is not None and self.options.mode == "reliable":
            call = self._filtered(call, self.options.where)
        if self.is_async and not _is_native(handler):
            call = _in_a_coroutine(call)
        return call

    def _filtered(
        self, call: Callable[[Any], Any], where: Callable[[Any], object]
    ) -> Callable[[Any], Any]:
        if self.is_async:

            def filtered_async(message: Any) -> Awaitable[object]:
                return call(message) if where(message) else _nothing()

            return _named_like(filtered_async, call)

        def filtered(message: Any) -> object:
            return call(message) if where(message) else None

        return _named_like(filtered, call)

    def _at_most_once(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        turns = [None]

        def once(message: Any) -> Any:
            try:
                turns.pop()  # one thread gets it
            except IndexError:
                return _nothing() if self.is_async else None
            self.close()
            return call(message)

        return _named_like(once, call)

    def _weakly(self, handler: Callable[[M], object]) -> Callable[[Any], Any]:
        gone = self._bus._expired.append

        def expired(_: object) -> None:  # in garbage collection: takes no lock
            gone(self)

        reference: Callable[[], Callable[[Any], Any] | None] = (
            weakref.WeakMethod(handler, expired)
            if inspect.ismethod(handler)
            else weakref.ref(handler, expired)
        )

        def weak(message: Any) -> Any:
            target = reference()
            if target is None:
                return _nothing() if self.is_async else None
            return target(message)

        return _named_like(weak, handler)


async def _nothing() -> None:
    pass


def _in_a_coroutine(call: Callable[[Any], Awaitable[object]]) -> Callable[[Any], Any]:
    async def awaited(message: Any) -> None:
        await call(message)

    return _named_like(awaited, call)


def handler_name(handler: Callable[..., object]) -> str:
    """Return the name of a handler for people: module and qualified name."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    named = handler if hasattr(handler, "__qualname__") else type(handler)
    return f"{named.__module__}.{named.__qualname__}"


def _named_like(wrapper: Callable[..., Any], handler: Callable[..., object]) -> Callable[..., Any]:
    target = handler
    while isinstance(target, functools.partial):
        target = target.func
    if not hasattr(target, "__qualname__"):
        target = type(target)
    wrapper.__module__ = target.__module__
    wrapper.__qualname__ = target.__qualname__
    return wrapper


def check_weak(handler: Callable[..., object]) -> None:
    """Refuse to hold weakly what nothing else holds.

    Raises:
        SubscriptionError: It is a lambda or an inner function.
    """
    if inspect.isfunction(handler) and "<" in handler.__qualname__:
        raise SubscriptionError(
            f"{handler.__qualname__} cannot be subscribed weakly: nothing else holds a lambda or an "
            f"inner function, so it would vanish at once. Leave `weak` out, and keep the "
            f"subscription to close it."
        )


def check_handler(handler: Callable[..., object]) -> bool:
    """Return whether a handler is asynchronous.

    Raises:
        SubscriptionError: It cannot be called with one message, or calling it would run nothing.
    """
    if not callable(handler):
        raise SubscriptionError(
            f"{handler!r} cannot handle messages: it is a {type(handler).__name__}, not a callable."
        )
    target = _called(handler)
    if inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
        raise SubscriptionError(
            f"{handler_name(handler)} is a generator: calling it would run nothing. Handle messages "
            f"in a plain or an async function, or iterate over `bus.stream(...)`."
        )
    _check_signature(handler)
    # of asyncio, for it also knows what is only marked as asynchronous: an `AsyncMock`, say
    return asyncio.iscoroutinefunction(target) or asyncio.iscoroutinefunction(handler)


def check_returned(returned: object) -> None:
    """Look at what a plain handler returned other than None.

    Raises:
        SubscriptionError: It is a coroutine: the work of the handler, which nobody would do.
    """
    if isinstance(returned, CoroutineType):
        returned.close()
        raise SubscriptionError(
            f"A plain handler returned a coroutine, {returned.__qualname__}, which nobody awaits: it "
            f"did not run. Subscribe the async function itself, bound with functools.partial if need "
            f"be, or an async function that awaits it."
        )


def _called(handler: Callable[..., object]) -> Any:  # Any: whatever it is that runs in the end
    while isinstance(handler, functools.partial):
        handler = handler.func
    is_called_itself = inspect.isroutine(handler) or inspect.isclass(handler)
    return handler if is_called_itself else type(handler).__call__


def _is_native(handler: Callable[..., object]) -> bool:
    """Whether calling an asynchronous handler returns a coroutine, not something else to await."""
    code = getattr(_called(handler), "__code__", None)
    return isinstance(code, CodeType) and bool(code.co_flags & inspect.CO_COROUTINE)


def _may_return(handler: Callable[..., object]) -> bool:
    """Whether a plain handler may return something other than None, which has to be looked at then.

    Its code tells, once, so that most calls need no look. What is not written in Python returns no
    coroutine.
    """
    code = getattr(_called(handler), "__code__", None)
    if not isinstance(code, CodeType):
        return False
    units = code.co_code
    returns = [at for at in range(0, len(units), 2) if units[at] in _RETURNS]
    return not all(_returns_none(code, units, at) for at in returns)


def _returns_none(code: CodeType, units: bytes, at: int) -> bool:
    if units[at] == opmap["RETURN_VALUE"]:
        # it may also return what something else has loaded; typeshed takes the bytes for a function
        if at == 0 or at in findlabels(units):  # type: ignore[arg-type]
            return False
        at -= 2
    is_constant = units[at] in (opmap["LOAD_CONST"], opmap.get("RETURN_CONST"))
    return is_constant and code.co_consts[units[at + 1]] is None


def _clearly_takes(called: Callable[..., object], many: int) -> bool:
    """Whether one look at the code says that so many arguments can be given; else ask `inspect`."""
    code = getattr(called, "__code__", None)
    if code is None or code.co_kwonlyargcount:
        return False
    its_own = 1 if inspect.ismethod(called) else 0
    return bool(code.co_argcount == many + its_own)


def _check_signature(handler: Callable[..., object]) -> None:
    if _clearly_takes(handler, 1):
        return
    try:
        signature = inspect.signature(handler)
    except (ValueError, TypeError):  # some builtins have none to look at
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise SubscriptionError(
            f"{handler_name(handler)}{signature} cannot handle messages: it is called with one "
            f"positional argument, the message ({error}). Bind others with functools.partial."
        ) from error
