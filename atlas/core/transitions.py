"""Transitions: pure functions ``(state, event) -> state``, collected by the class of the event.

A `Transitions` object is itself such a function, so that it can be handed to a state container, a
projector, a log that rebuilds a state, or a test that calls it by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeAlias, TypeVar, cast

from atlas.errors import ConfigurationError

__all__ = ["Transition", "Transitions"]

S = TypeVar("S")
E = TypeVar("E")

Transition: TypeAlias = Callable[[S, E], S]
"""Takes a state and an event, returns the next state, and does nothing else."""


class Transitions(Generic[S]):
    """The transitions of one kind of state, found by the class of the event.

    An event is handled by the transition of its own class or, if there is none, of its nearest
    base class; an event that none is for leaves the state as it is. Transitions must be pure:
    no I/O, no clock, no randomness, nothing changed in place. Then a replay leads to the same
    state.

    Register everything at import time; calling is safe from any thread.

    Example:
        >>> from dataclasses import dataclass, replace
        >>> @dataclass(frozen=True)
        ... class Cart:
        ...     items: int = 0
        >>> @dataclass(frozen=True)
        ... class ItemAdded:
        ...     count: int
        >>> transitions = Transitions[Cart]()
        >>> @transitions.on(ItemAdded)
        ... def add(cart: Cart, event: ItemAdded) -> Cart:
        ...     return replace(cart, items=cart.items + event.count)
        >>> transitions(Cart(), ItemAdded(2))
        Cart(items=2)
    """

    def __init__(self) -> None:
        self._registered: dict[type, Transition[S, object]] = {}
        # What each class met so far resolves to; None for a class nothing is registered for.
        self._resolved: dict[type, Transition[S, object] | None] = {}

    @property
    def kinds(self) -> tuple[type, ...]:
        """The classes of events that transitions are registered for, in order of registration."""
        return tuple(self._registered)

    def on(self, *kinds: type[E]) -> Callable[[Transition[S, E]], Transition[S, E]]:
        """Return a decorator that registers a transition for events of these classes.

        Args:
            kinds: One or more classes; events of their subclasses are meant too.

        Raises:
            ConfigurationError: If no class is given, or one of them has a transition already.
        """
        if not kinds or not all(isinstance(kind, type) for kind in kinds):
            raise ConfigurationError(
                f"{kinds!r} names no event class. Write `@transitions.on(OrderPlaced)`."
            )

        def register(transition: Transition[S, E]) -> Transition[S, E]:
            for kind in kinds:
                if kind in self._registered:
                    raise ConfigurationError(
                        f"{kind.__qualname__} already has the transition "
                        f"{self._registered[kind]!r}. Do both things in that one."
                    )
            for kind in kinds:
                self._registered[kind] = cast("Transition[S, object]", transition)
            self._resolved = {}
            return transition

        return register

    def __call__(self, state: S, event: object) -> S:
        """Return the state after ``event``; the same object if no transition is for it."""
        kind = type(event)
        try:
            transition = self._resolved[kind]
        except KeyError:
            transition = self._resolve(kind)
        return state if transition is None else transition(state, event)

    def fold(self, state: S, events: Iterable[object]) -> S:
        """Return the state after all ``events``, in their order."""
        for event in events:
            state = self(state, event)
        return state

    def _resolve(self, kind: type) -> Transition[S, object] | None:
        found = (self._registered[base] for base in kind.__mro__ if base in self._registered)
        transition = self._resolved[kind] = next(found, None)
        return transition
