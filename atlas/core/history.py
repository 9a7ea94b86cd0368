"""The bounded history of a bus: the last messages it published, in the order it stamped them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from atlas.core.messages import Message, Origin, causation_in, origin_in
from atlas.errors import ConfigurationError

__all__ = ["History"]


class History:
    """The last messages of a bus, oldest first. Every read is a snapshot; any thread may read.

    Attributes:
        capacity: How many messages are kept.
    """

    __slots__ = ("capacity", "keep", "kept")

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ConfigurationError(
                f"A history of {capacity} messages makes no sense; give 0 to keep none."
            )
        self.capacity = capacity
        self.kept: deque[Message] = deque(maxlen=capacity)
        self.keep = self.kept.append
        """Keep a stamped message: for the bus alone. Messages of several threads may be kept in
        another order than they were stamped in; reading puts that right."""

    def __iter__(self) -> Iterator[Message]:
        return iter(self.since(0))

    def __len__(self) -> int:
        return len(self.kept)

    def since(self, sequence: int) -> tuple[Message, ...]:
        """Return what is kept from this sequence number on, in order of sequence."""
        kept = [item for item in self.snapshot() if _sequence(item) >= sequence]
        kept.sort(key=_sequence)
        return tuple(kept)

    @property
    def evicted(self) -> int:
        """How many messages were kept once and have made room for newer ones."""
        return max(map(_sequence, self.snapshot()), default=0) - len(self.kept)

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
        while True:
            try:
                return list(self.kept)
            except RuntimeError:  # another thread published meanwhile
                continue


def _sequence(item: Message) -> int:
    return item.meta.sequence or 0
