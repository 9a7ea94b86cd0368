"""State that changes by events only: versioned, observable, and never mutated.

Use frozen dataclasses for small records and ``pmap``/``pvector`` (pyrsistent) for what grows: an
old version then shares with the new one all that did not change.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from types import TracebackType

# Any: a transition may take whatever kind of event it likes.
from typing import Any, Generic, Self, TypeVar

from atlas.core.ordered_calls import OrderedCalls
from atlas.core.patches import Patch, diff
from atlas.errors import (
    ConfigurationError,
    StateError,
    TransitionError,
    UnknownVersionError,
    VersionConflictError,
)

__all__ = ["Change", "State", "StateSubscription"]

S = TypeVar("S")


class Change(Generic[S]):
    """One step of a state: what it was, what it became, and because of which event.

    Attributes:
        version: The version this change made; the first is 1.
        before: The state at ``version - 1``.
        after: The state at ``version``; the same object as ``before`` if nothing changed.
        event: The event applied, or None if the state was set by `State.compare_and_set`.
    """

    def __init__(self, version: int, before: S, after: S, event: object) -> None:
        self.version = version
        self.before = before
        self.after = after
        self.event = event

    def __repr__(self) -> str:
        return f"<Change to version {self.version} by {self.event!r}>"

    @cached_property
    def patch(self) -> Patch:
        """The change as an RFC 6902 patch, computed when first read.

        Raises:
            PatchError: If what changed has no JSON form.
        """
        return diff(self.before, self.after)


class StateSubscription(Generic[S]):
    """Handle of a subscription: close it, or use it as a context manager."""

    def __init__(self, state: State[S], handler: Callable[[Change[S]], object]) -> None:
        self._state = state
        self._handler = handler
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """Whether the handler is still called."""
        return self._is_open

    def close(self) -> None:
        """Stop the calls; safe from any thread and more than once."""
        self._is_open = False
        self._state._unsubscribe(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _tell(self, change: Change[S]) -> None:
        if self._is_open:
            self._handler(change)


class State(Generic[S]):
    """A value that changes only by events, and remembers its last versions.

    Version 0 is the initial value; each applied event makes the next version, also one that
    changes nothing. Safe from any thread: events are applied one after the other, and reading
    `value` takes no lock. Transitions run inside that order, so they must be quick and pure.

    Subscribers are called after the change, without a lock, in the order of versions, usually in
    the thread that applied the event; when several threads apply events at once, one of them makes
    the calls for all. A subscriber that raises is logged and stops nobody.

    Args:
        initial: The value of version 0. Must not be changed in place afterwards.
        transition: Pure function ``(state, event) -> state``, such as a `Transitions` object.
        history: How many versions before the current one are kept for `at` and `patch`.

    Raises:
        ConfigurationError: If ``history`` is negative.

    Example:
        >>> total = State(0, lambda state, event: state + event)
        >>> total.apply(5).version
        1
        >>> total.value, total.at(0)
        (5, 0)
    """

    def __init__(
        self, initial: S, transition: Callable[[S, Any], S], *, history: int = 256
    ) -> None:
        if not callable(transition):
            raise ConfigurationError(
                f"transition={transition!r} cannot be called; give a function (state, event) -> state."
            )
        kept: object = history
        if not isinstance(kept, int) or kept < 0:
            raise ConfigurationError(f"history is {history!r}; keep 0 or more versions.")
        self._transition = transition
        self._lock = threading.RLock()
        self._applying = False
        # Version and value change together: readers take both in one step.
        self._current: tuple[int, S] = (0, initial)
        self._past: deque[tuple[int, S]] = deque(maxlen=history)
        self._subscriptions: tuple[StateSubscription[S], ...] = ()
        self._calls = OrderedCalls()

    def __repr__(self) -> str:
        version, value = self._current
        return f"<State version={version} {value!r}>"

    # -- reading --

    @property
    def value(self) -> S:
        """The current value."""
        return self._current[1]

    @property
    def version(self) -> int:
        """The number of changes so far."""
        return self._current[0]

    @property
    def current(self) -> tuple[int, S]:
        """Version and value, read in one step."""
        return self._current

    @property
    def versions(self) -> range:
        """The versions that `at` knows, oldest first."""
        with self._lock:
            version = self._current[0]
            return range(version - len(self._past), version + 1)

    def at(self, version: int) -> S:
        """Return the value at ``version``.

        Raises:
            UnknownVersionError: If that version was never made, or is kept no longer.
        """
        with self._lock:
            last, value = self._current
            if version == last:
                return value
            first = last - len(self._past)
            if first <= version < last:
                return self._past[version - first][1]
        raise UnknownVersionError(
            f"Version {version!r} is not kept; there are {first} to {last}. Keep more with "
            f"`history=`, or rebuild the state from the log.",
            version=version,
        )

    def patch(self, start: int, stop: int | None = None) -> Patch:
        """Return one patch that leads from version ``start`` to ``stop`` (default: the current).

        Works in both directions. One patch over many versions is much shorter than the patches of
        their changes one by one.

        Raises:
            UnknownVersionError: If one of the versions is not kept.
            PatchError: If what changed has no JSON form.
        """
        with self._lock:
            before = self.at(start)
            after = self._current[1] if stop is None else self.at(stop)
        return diff(before, after)

    # -- changing --

    def apply(self, event: object, *, expected: int | None = None) -> Change[S]:
        """Apply one event and return the change it made.

        Args:
            event: What the transition takes.
            expected: The version the state must be at; None for whichever it is.

        Raises:
            TransitionError: If the transition raised, or returned None; the state is as it was.
            VersionConflictError: If the state is not at ``expected``.
            StateError: If the transition itself tries to change the state.
        """
        with self._lock:
            self._expect(expected)
            change = self._step(event)
        self._calls.run()
        return change

    def fold(self, events: Iterable[object]) -> None:
        """Apply all ``events`` in their order, with nobody else's between them.

        Raises:
            TransitionError: If a transition raised, or returned None; the events before that one
                are applied, and none is taken from ``events`` after it.
            StateError: If the transition itself tries to change the state.
        """
        try:
            with self._lock:
                self._expect(None)
                for event in events:
                    if self._subscriptions:
                        self._step(event)
                    else:  # to make a change that nobody is told of would be half of the work
                        after = self._after(event)
                        self._enter(self._current[0] + 1, after)
        finally:
            self._calls.run()

    def leap(self, events: Sequence[object], fold: Callable[[S, Sequence[object]], S]) -> bool:
        """Apply ``events`` at once, leaving out the versions between; those before are forgotten, too.

        For many events, when only the last versions will be asked for.

        Args:
            events: What the transition takes.
            fold: Pure function that returns the state after all events, the same that the transition
                leads to one by one.

        Returns:
            Whether they were applied. Nothing was done if ``fold`` raised (apply them one by one to see
            which event it was), or if there are subscribers, who are told of each version.

        Raises:
            StateError: If a transition tries to change the state.
        """
        with self._lock:
            self._expect(None)
            if self._subscriptions:
                return False
            version, before = self._current
            self._applying = True
            try:
                after = fold(before, events)
            except Exception:  # noqa: BLE001  whatever it is comes again, one by one
                return False
            finally:
                self._applying = False
            self._past.clear()
            self._current = (version + len(events), after)
            return True

    def compare_and_set(self, expected: int, value: S) -> Change[S]:
        """Set the value outright, provided that the state is still at version ``expected``.

        Raises:
            VersionConflictError: If it is not; read again, decide again, try again.
        """
        with self._lock:
            self._expect(expected)
            version, before = self._current
            change = Change(version + 1, before, value, None)
            self._commit(change)
        self._calls.run()
        return change

    def subscribe(self, handler: Callable[[Change[S]], object]) -> StateSubscription[S]:
        """Call ``handler`` with each `Change` from now on, until the handle returned is closed."""
        subscription = StateSubscription(self, handler)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def _unsubscribe(self, subscription: StateSubscription[S]) -> None:
        with self._lock:
            self._subscriptions = tuple(
                each for each in self._subscriptions if each is not subscription
            )

    # -- under the lock --

    def _step(self, event: object) -> Change[S]:
        version, before = self._current
        change = Change(version + 1, before, self._after(event), event)
        self._commit(change)
        return change

    def _after(self, event: object) -> S:
        """Return the value that an event leads to."""
        self._applying = True
        try:
            after = self._transition(self._current[1], event)
        except Exception as error:
            raise self._failure(event, f"raised {error!r}") from error
        finally:
            self._applying = False
        if after is None:
            raise self._failure(event, "returned None, so its `return` may be missing")
        return after

    def _expect(self, expected: int | None) -> None:
        if self._applying:
            raise StateError(
                "A transition tried to change the state it computes. Transitions are pure: return "
                "the next state, and publish further events from a handler."
            )
        actual = self._current[0]
        if expected is not None and expected != actual:
            raise VersionConflictError(
                f"The state was expected at version {expected!r} and is at {actual!r}. "
                f"Read it again and decide on what it is now.",
                expected=expected,
                actual=actual,
            )

    def _failure(self, event: object, what: str) -> TransitionError:
        version = self._current[0]
        return TransitionError(
            f"The transition for {event!r} at version {version} {what}. The state is as it was; "
            f"mend the transition.",
            event=event,
            version=version,
        )

    def _commit(self, change: Change[S]) -> None:
        self._enter(change.version, change.after)
        for subscription in self._subscriptions:
            self._calls.add(partial(subscription._tell, change))

    def _enter(self, version: int, value: S) -> None:
        self._past.append(self._current)
        self._current = (version, value)
