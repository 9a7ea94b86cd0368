"""Live state from events: a projector listens to a bus and folds when somebody looks.

For the publisher of an event, a projector costs one append. The events are applied when the state
is read, when somebody is subscribed to it, or when too many have gathered. Selectors compute
what a reader wants to know from the state, and compute it again only if its parts changed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from types import TracebackType

# Any: what a transition takes, and what selectors compute from, is theirs to say.
from typing import Any, Generic, Protocol, Self, TypeVar

from atlas.core.ordered_calls import OrderedCalls
from atlas.core.patches import Patch
from atlas.core.state import Change, State
from atlas.core.transitions import Transitions
from atlas.errors import ConfigurationError

__all__ = ["EventSource", "ProjectionSubscription", "Selector", "StateProjector", "selector"]

S = TypeVar("S")
R = TypeVar("R")


class Closable(Protocol):
    """What a subscription can do at least."""

    def close(self) -> object:
        """Stop the calls."""
        ...


class EventSource(Protocol):
    """Whatever a projector can listen to, such as an `EventBus`."""

    # Any: sources differ in what they accept beyond class and handler.
    def subscribe(self, selector: Any, handler: Callable[[Any], Any], /) -> Closable:
        """Call ``handler`` with every event that ``selector``, a tuple of classes, matches."""
        ...


# -- selectors ------------------------------------------------------------------------------------


class Selector(Generic[S, R]):
    """A function of the state that remembers its last result; made by `selector`.

    Call it with a state. It runs its inputs, and computes only if one of them gave something else
    than last time: another object or, for strings and numbers, another value. Safe from any
    thread; two threads that meet may both compute.

    Attributes:
        computations: How often it has computed.
    """

    def __init__(self, inputs: tuple[Callable[[S], Any], ...], compute: Callable[..., R]) -> None:
        self._inputs = inputs
        self._compute = compute
        self._last: tuple[tuple[Any, ...], R] | None = None
        self.computations: int = 0
        self.__name__: str = getattr(compute, "__name__", "selector")
        self.__doc__ = compute.__doc__ or type(self).__doc__

    def __repr__(self) -> str:
        return f"<Selector {self.__name__}>"

    def __call__(self, state: S) -> R:
        """Return what is computed from ``state``."""
        arguments = tuple([read(state) for read in self._inputs])
        last = self._last
        if last is not None and all(map(_unchanged, last[0], arguments)):
            return last[1]
        result = self._compute(*arguments)
        self.computations += 1
        self._last = (arguments, result)
        return result


def selector(*inputs: Callable[[S], Any]) -> Callable[[Callable[..., R]], Selector[S, R]]:
    """Return a decorator that makes a memoised selector of a pure function.

    Args:
        inputs: Functions of the state, also other selectors; the decorated function gets their
            results as its arguments. Without any, it gets the state itself.

    Example:
        >>> @selector(lambda prices: prices["a"], lambda prices: prices["b"])
        ... def total(a, b):
        ...     return a + b
        >>> total({"a": 1, "b": 2, "c": 3}), total({"a": 1, "b": 2, "c": 4}), total.computations
        (3, 3, 1)
    """

    def decorate(compute: Callable[..., R]) -> Selector[S, R]:
        return Selector(inputs or (_itself,), compute)

    return decorate


def _itself(state: S) -> S:
    return state


def _unchanged(before: object, after: object) -> bool:
    # Comparing big containers could cost more than computing, and persistent ones that did not
    # change are the same object.
    return before is after or (
        type(before) is type(after)
        and isinstance(before, (str, bytes, int, float))
        and before == after
    )


# -- projector ------------------------------------------------------------------------------------


class ProjectionSubscription:
    """Handle of a live subscription: close it, or use it as a context manager.

    Attributes:
        version: The version from which the first patch starts.
        value: The state at that version.
    """

    def __init__(
        self,
        projector: StateProjector[Any],
        handler: Callable[[int, Patch], object],
        version: int,
        value: object,
    ) -> None:
        self._projector = projector
        self._handler = handler
        self._is_open = True
        self.version = version
        self.value = value

    @property
    def is_open(self) -> bool:
        """Whether the handler is still called."""
        return self._is_open

    def close(self) -> None:
        """Stop the calls; safe from any thread and more than once."""
        self._is_open = False
        self._projector._unsubscribe(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self, change: Change[Any]) -> None:
        if self._is_open:
            self._handler(change.version, change.patch)


class StateProjector(Generic[S]):
    """A state that follows events, folded when it is read.

    Attach it to a bus, or give it events by `project`; both are one append, from any thread.
    Reading `value` first applies what has gathered, in the order it came, so that a reader always
    sees what was published before in its thread. With live subscribers events are applied at once.

    If a transition raises, that event is set aside, the state stays as it was, and the
    `TransitionError` is raised once, in whoever made the events be applied: the reader, or the
    publisher whose event was one too many (on a bus: its handler failed). The next read goes on
    with the events after it.

    Args:
        initial: The state before any event.
        transitions: What the events do; their classes are also what `attach` subscribes to.
        history: How many earlier versions are kept for `at`.
        max_pending: How many events may gather before the publisher has to apply them.
        fold: Returns the state after several events, the same as the transitions, but quicker than one by
            one: for those that have gathered and lead to versions which ``history`` does not keep.

    Raises:
        ConfigurationError: If ``max_pending`` is less than 1 or ``history`` negative.

    Example:
        >>> transitions = Transitions[int]()
        >>> @transitions.on(int)
        ... def add(state: int, event: int) -> int:
        ...     return state + event
        >>> projector = StateProjector(0, transitions)
        >>> projector.project(3)
        >>> projector.project(4)
        >>> projector.value, projector.version
        (7, 2)
    """

    def __init__(
        self,
        initial: S,
        transitions: Transitions[S],
        *,
        history: int = 256,
        max_pending: int = 1024,
        fold: Callable[[S, Sequence[object]], S] | None = None,
    ) -> None:
        many: object = max_pending
        if not isinstance(many, int) or many < 1:
            raise ConfigurationError(f"max_pending is {max_pending!r}; let at least 1 event wait.")
        self._transitions = transitions
        self._state = State(initial, transitions, history=history)
        self._max_pending = max_pending
        self._history = history
        self._fold_many = fold
        self._pending: deque[object] = deque()
        # How many pending events make the publisher fold: one while anybody is subscribed.
        self._limit = max_pending
        self._lock = threading.RLock()
        self._sources: list[Closable] = []
        self._subscriptions: tuple[ProjectionSubscription, ...] = ()
        # What the subscribers were told last.
        self._told: tuple[int, S] = self._state.current
        self._calls = OrderedCalls()

    def __repr__(self) -> str:
        return f"<StateProjector version={self._state.version} pending={len(self._pending)}>"

    # -- events in --

    def project(self, event: object) -> None:
        """Take an event; it is applied by the next read at the latest.

        Raises:
            TransitionError: If it made the gathered events be applied and one of them failed.
        """
        self._pending.append(event)
        if len(self._pending) >= self._limit:
            self._fold()

    # Any: see `EventSource`.
    def attach(self, source: EventSource, selector: Any = None) -> Self:
        """Project every event that ``source`` publishes from now on.

        Args:
            source: A bus, or anything else with its ``subscribe``.
            selector: What to subscribe to; default all classes that have a transition.

        Returns:
            The projector itself.
        """
        kinds = self._transitions.kinds if selector is None else selector
        self._sources.append(source.subscribe(kinds, self.project))
        return self

    def close(self) -> None:
        """Stop listening to everything the projector was attached to; the state stays readable."""
        while self._sources:
            self._sources.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- state out --

    @property
    def value(self) -> S:
        """The state after all events so far.

        Raises:
            TransitionError: If one of the gathered events failed; see the class.
        """
        return self.current[1]

    @property
    def version(self) -> int:
        """How many events were applied, those that have gathered included.

        Raises:
            TransitionError: If one of the gathered events failed; see the class.
        """
        return self.current[0]

    @property
    def current(self) -> tuple[int, S]:
        """Version and value, read in one step.

        Raises:
            TransitionError: If one of the gathered events failed; see the class.
        """
        if self._pending:
            self._fold()
        return self._state.current

    def at(self, version: int) -> S:
        """Return the state at ``version``.

        Raises:
            UnknownVersionError: If that version was never made, or is kept no longer.
            TransitionError: If one of the gathered events failed; see the class.
        """
        if self._pending:
            self._fold()
        return self._state.at(version)

    def patch(self, start: int, stop: int | None = None) -> Patch:
        """Return the RFC 6902 patch that leads from one version to another (default: the current).

        Raises:
            UnknownVersionError: If one of the versions is not kept.
            PatchError: If what changed has no JSON form.
            TransitionError: If one of the gathered events failed; see the class.
        """
        if self._pending:
            self._fold()
        return self._state.patch(start, stop)

    def subscribe(self, handler: Callable[[int, Patch], object]) -> ProjectionSubscription:
        """Call ``handler(version, patch)`` whenever the state has changed, from now on.

        The patches of one subscriber follow on each other without a gap, the first on the state
        in the handle that is returned. Events applied together come as one patch; events that
        change nothing are not told. The handler is called in order of versions, without a lock,
        usually in the publisher's thread; if it raises, that is logged.

        Raises:
            TransitionError: If one of the gathered events failed; see the class.
        """
        with self._lock:
            self._fold_locked()
            version, value = self._told
            subscription = ProjectionSubscription(self, handler, version, value)
            self._subscriptions = (*self._subscriptions, subscription)
            self._limit = 1
        self._calls.run()
        return subscription

    def _unsubscribe(self, subscription: ProjectionSubscription) -> None:
        with self._lock:
            self._subscriptions = tuple(
                each for each in self._subscriptions if each is not subscription
            )
            self._limit = 1 if self._subscriptions else self._max_pending

    # -- folding --

    def _fold(self) -> None:
        try:
            with self._lock:
                self._fold_locked()
        finally:
            self._calls.run()

    def _fold_locked(self) -> None:
        try:
            self._leap()
            self._state.fold(self._take_pending())
        finally:
            before, self._told = self._told, self._state.current
            if before[1] is not self._told[1]:
                change = Change(self._told[0], before[1], self._told[1], None)
                for subscription in self._subscriptions:
                    self._calls.add(partial(subscription._tell, change))

    def _leap(self) -> None:
        """Apply what leads to versions that are not kept anyway."""
        many = len(self._pending) - self._history
        if self._fold_many is None or many <= 1 or self._subscriptions:
            return
        # Only copied, so that one by one they are all still there if one of them fails.
        if self._state.leap([*islice(self._pending, many)], self._fold_many):
            for _ in range(many):
                self._pending.popleft()

    def _take_pending(self) -> Iterator[object]:
        # Bounded, so that publishers that are quicker than this fold cannot keep it going.
        for _ in range(len(self._pending)):
            yield self._pending.popleft()
