"""Selectors: which messages a subscription, a stream or a share of the history is for.

A *selector* is a message class (its subclasses included), a dotted pattern over message names (``*``
stands for one segment, ``**`` for any number, none included), or a tuple of those.
"""

from __future__ import annotations

import functools
import re
from typing import TypeAlias

from atlas.core.messages import Message
from atlas.errors import SubscriptionError

__all__ = ["PatternSelector", "Selector", "matches", "selectors_of"]

Selector: TypeAlias = "type[Message] | str | tuple[type[Message] | str, ...]"
"""Which messages: a class with its subclasses, a pattern over names, or several of those."""

PatternSelector: TypeAlias = "str | tuple[type[Message] | str, ...]"
"""A selector that does not say which class its messages have."""

_SEGMENT = re.compile(r"[A-Za-z0-9_\-]+|\*\*?")


def selectors_of(selector: Selector) -> tuple[type[Message] | str, ...]:
    """Return the parts of a selector, checked.

    Raises:
        SubscriptionError: A part is neither a message class nor a well-formed pattern.
    """
    parts = selector if isinstance(selector, tuple) else (selector,)
    if not parts:
        raise SubscriptionError("An empty tuple selects no messages; name at least one class.")
    for part in parts:
        _check_part(part)
    return _interned(tuple(dict.fromkeys(parts)))


@functools.lru_cache(maxsize=1024)
def _interned(
    parts: tuple[type[Message] | str, ...],
) -> tuple[type[Message] | str, ...]:
    """Return one tuple for all subscriptions with the same selector: they are many."""
    return parts


def _check_part(part: object) -> None:
    if isinstance(part, str):
        _check_pattern(part)
    elif not (isinstance(part, type) and issubclass(part, Message)):
        raise SubscriptionError(
            f"{part!r} selects no messages; give a class derived from Event or Command, a pattern "
            f"such as 'order.*', or a tuple of those."
        )


def _check_pattern(pattern: str) -> None:
    if not all(_SEGMENT.fullmatch(segment) for segment in pattern.split(".")):
        raise SubscriptionError(
            f"{pattern!r} is no pattern: segments are words, '*' (any one segment) or '**' (any "
            f"number of segments), with dots between, as in 'order.*' or '**.failed'."
        )


@functools.lru_cache(maxsize=1024)
def _expression(pattern: str) -> re.Pattern[str]:
    text = ""
    for segment in pattern.split("."):
        if segment == "**":
            text += r"(?:\.[^.]+)*"
        elif segment == "*":
            text += r"\.[^.]+"
        else:
            text += r"\." + re.escape(segment)
    return re.compile(text)


def matches(part: type[Message] | str, cls: type[Message]) -> bool:
    """Return whether messages of a class are selected by one part of a selector."""
    if isinstance(part, str):
        return _expression(part).fullmatch("." + cls.message_name) is not None
    return issubclass(cls, part)
