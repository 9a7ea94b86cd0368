"""The bounded history of a bus: the last messages it published, in the order it stamped them.

It is one ring, or several with a bound each, so that what is frequent does not push out what is rare.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias, cast

from atlas.core.messages import Message, Origin, causation_in, origin_in
from atlas.core.selectors import Selector, matches, selectors_of
from atlas.errors import ConfigurationError, ValidationError

__all__ = ["History", "Keep"]

Keep: TypeAlias = Callable[[Message], None]
"""Takes a stamped message into a history."""

_REST = 1024


class History:
    """The last messages of a bus, oldest first. Every read is a snapshot; any thread may read.

    Args:
        capacity: How many messages are kept. A mapping from selectors (see `EventBus.subscribe`) to
            numbers gives each its own share: the first that selects a message counts, and what none
            selects shares 1,024.

    Attributes:
        capacity: How many messages are kept, in all.
    """

    __slots__ = ("_shares", "capacity", "kept")

    def __init__(self, capacity: int | Mapping[Selector, int]) -> None:
        shares = capacity if isinstance(capacity, Mapping) else {}
        rest = _REST if isinstance(capacity, Mapping) else capacity
        self.kept: deque[Message] = _ring(rest)  # of what no share is for
        self._shares = [(selectors_of(part), _ring(share)) for part, share in shares.items()]
        self.capacity: int = rest + sum(shares.values())

    def keeper(self, cls: type[Message]) -> Keep:
        """Return what keeps messages of a class: for the bus alone.

        Messages of several threads may be kept in another order than they were stamped in; reading
        puts that right.
        """
        return self._ring_of(cls).append

    def _ring_of(self, cls: type[Message]) -> deque[Message]:
        for parts, ring in self._shares:
            if any(matches(part, cls) for part in parts):
                return ring
        return self.kept

    def __iter__(self) -> Iterator[Message]:
        return iter(self.since(0))

    def __len__(self) -> int:
        return len(self.kept) + sum(len(ring) for _, ring in self._shares)

    def since(self, sequence: int) -> tuple[Message, ...]:
        """Return what is kept from this sequence number on, in order of sequence.

        Raises:
            ValidationError: It is no int.
        """
        if not isinstance(sequence, int):
            raise ValidationError("history", "since", sequence, "an int, a sequence number")
        kept = [item for item in self.snapshot() if _sequence(item) >= sequence]
        kept.sort(key=_sequence)
        return tuple(kept)

    @property
    def evicted(self) -> int:
        """How many of the messages up to the newest one kept have made room for others."""
        kept = self.snapshot()
        return max(map(_sequence, kept), default=0) - len(kept)

    def find(self, message_id: str) -> Message | None:
        """Return the message with this id, None when it is not (or no longer) kept."""
        return next((item for item in self.snapshot() if item.meta.id == message_id), None)

    def chain(self, origin: Origin | None) -> list[str]:
        """Return the names of a message and of its causes, oldest first, as far as they are kept."""
        known = [(item._stamp, item.message_name) for item in self.snapshot() if item._stamp]
        kept = {origin_in(stamp): causation_in(stamp) for stamp, _ in known}
        names = {origin_in(stamp): name for stamp, name in known}
        chain: list[str] = []
        while origin is not None and origin in kept and origin in names:
            chain.append(names[origin])
            origin = kept[origin]
        return chain[::-1]

    def snapshot(self) -> list[Message]:
        """Return what is kept, as it is."""
        found = _copied(self.kept)
        for _, ring in self._shares:
            found += _copied(ring)
        return found


def _ring(capacity: object) -> deque[Message]:
    is_number = isinstance(capacity, int) and not isinstance(capacity, bool)
    if not is_number or not 0 <= cast("int", capacity) <= sys.maxsize:
        raise ConfigurationError(
            f"A history of {capacity!r} messages makes no sense; give an int, 0 to keep none."
        )
    return deque(maxlen=cast("int", capacity))


def _copied(ring: deque[Message]) -> list[Message]:
    while True:
        try:
            return list(ring)
        except RuntimeError:  # another thread published meanwhile
            continue


def _sequence(item: Message) -> int:
    return item.meta.sequence or 0
