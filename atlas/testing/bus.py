"""Watching a bus in tests: what was published, in which order, and what caused what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeAlias, TypeVar

from atlas.core.causality import causal_tree
from atlas.core.event_bus import EventBus
from atlas.core.messages import Message
from atlas.core.subscriptions import Selector
from atlas.errors import ValidationError

__all__ = ["Recorder", "capture", "until_idle"]

M = TypeVar("M", bound=Message)

Expected: TypeAlias = "type[Message] | str | Message"
"""A class (subclasses count), a wire name, or a message with the very same fields."""


class Recorder:
    """Keeps every message a bus publishes while it is open; made by `capture`.

    It sees messages in the order of their sequence numbers, whatever thread published them.
    """

    def __init__(self, bus: EventBus, selector: Selector) -> None:
        self._bus = bus
        self._selector = selector
        self._taken: list[Message] = []

    def __enter__(self) -> Self:
        self._subscription = self._bus.subscribe(
            self._selector, self._taken.append, priority=1_000_000, name="recorder"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._subscription.close()

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def messages(self) -> list[Message]:
        """What was published so far, in order."""
        return sorted(self._taken, key=lambda item: item.meta.sequence or 0)

    @property
    def names(self) -> list[str]:
        """The wire names of what was published so far, in order."""
        return [item.message_name for item in self.messages]

    @property
    def tree(self) -> str:
        """What was published so far, as a tree of causes; see `atlas.core.causality`."""
        return causal_tree(self.messages)

    def of(self, cls: type[M]) -> list[M]:
        """Return the messages of a class, subclasses included, in order."""
        return [item for item in self.messages if isinstance(item, cls)]

    def only(self, cls: type[M]) -> M:
        """Return the one message of a class.

        Raises:
            AssertionError: There is none, or more than one.
        """
        found = self.of(cls)
        if len(found) != 1:
            raise AssertionError(
                f"{len(found)} messages of {cls.__qualname__} were published, not one:\n{self.tree}"
            )
        return found[0]

    def clear(self) -> None:
        """Forget what was published so far."""
        self._taken.clear()

    def assert_sequence(self, *expected: Expected, exact: bool = True) -> None:
        """Check what was published, in order.

        Args:
            *expected: A class, a wire name or an equal message each.
            exact: Whether nothing else may have been published; False allows others in between.

        Raises:
            AssertionError: It differs; the text shows both.
        """
        messages = self.messages
        if exact:
            fits = len(messages) == len(expected) and all(map(_is, messages, expected))
        else:
            left = iter(messages)
            fits = all(any(_is(item, wanted) for item in left) for wanted in expected)
        if not fits:
            raise AssertionError(
                f"Expected {'exactly' if exact else 'in this order'}: {_shown(expected)}\n"
                f"published: {_shown(messages)}"
            )

    def assert_caused(self, cause: Message, *effects: Expected) -> None:
        """Check what a message caused directly, in order, and nothing else.

        Args:
            cause: A published message.
            *effects: A class, a wire name or an equal message each.

        Raises:
            AssertionError: It differs; the text shows the tree.
            ValidationError: The cause was never published; what `publish` returns has it as
                ``message``.
        """
        given: object = cause
        if not isinstance(given, Message) or given.meta.id is None:
            raise ValidationError("assert_caused", "cause", cause, "a published message")
        caused = [item for item in self.messages if item.meta.causation == cause.meta.id]
        if len(caused) != len(effects) or not all(map(_is, caused, effects)):
            raise AssertionError(
                f"Expected {cause!r} to cause: {_shown(effects)}\n"
                f"it caused: {_shown(caused)}\n{self.tree}"
            )

    def assert_tree(self, expected: str) -> None:
        """Check the whole tree of causes, by names alone.

        Args:
            expected: One name per line, each indented by two spaces below its cause; blank lines
                and indentation common to all lines do not matter.

        Raises:
            AssertionError: It differs; the text shows both.
        """
        lines = [line.rstrip() for line in expected.splitlines() if line.strip()]
        margin = min((len(line) - len(line.lstrip()) for line in lines), default=0)
        wanted = [line[margin:] for line in lines]
        actual = [_named(line) for line in self.tree.splitlines()]
        if wanted != actual:
            raise AssertionError(
                "Expected the tree:\n" + "\n".join(wanted) + f"\ngot:\n{self.tree}"
            )


def capture(bus: EventBus, selector: Selector = "**") -> Recorder:
    """Record what a bus publishes inside a ``with`` block.

    Args:
        bus: The bus.
        selector: Which messages; default: all.

    Example::

        with capture(bus) as seen:
            bus.publish(OrderPlaced(order_id="A1", total=9.5))
        seen.assert_sequence(OrderPlaced, "stock.reserved")
    """
    return Recorder(bus, selector)


async def until_idle(bus: EventBus, timeout: float = 5.0) -> None:  # noqa: ASYNC109
    """Wait until every handler of a bus is through, on all loops.

    Args:
        bus: The bus.
        timeout: Seconds to wait at most.

    Raises:
        WaitTimeoutError: Something still runs, or waits, after that time.
    """
    await bus.drain(timeout)


def _is(item: Message, expected: Expected) -> bool:
    if isinstance(expected, str):
        return item.message_name == expected
    if isinstance(expected, type):
        return isinstance(item, expected)
    return item == expected


def _shown(items: Iterable[Expected]) -> str:
    return ", ".join(map(_label, items)) or "nothing"


def _label(item: Any) -> str:  # Any: a class, a name or a message
    return item if isinstance(item, str) else getattr(item, "__qualname__", None) or repr(item)


def _named(line: str) -> str:
    """Turn a line of the tree, with its branches and facts, into indentation and a name."""
    text = line.lstrip("│├└─ ")
    depth = (len(line) - len(text)) // 3
    return "  " * depth + text.split(" ")[0]
