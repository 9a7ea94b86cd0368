"""What makes sense as a setting of agents, teams and letters: looked at where it is given."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from atlas.errors import ConfigurationError

__all__ = ["check", "is_count", "is_number", "is_text_or_function", "listed"]

T = TypeVar("T")


def check(what: str, given: object, holds: object, wanted: str) -> None:
    """Refuse a setting that does not hold.

    Args:
        what: Its name.
        given: Its value.
        holds: Whether it makes sense.
        wanted: What does, in words.

    Raises:
        ConfigurationError: It makes no sense; the text names it and what does.
    """
    if not holds:
        raise ConfigurationError(f"{what} is {given!r}. Give {wanted}.")


def is_count(given: object, least: int = 1) -> bool:
    """Return whether something is a whole number, and large enough."""
    return type(given) is int and given >= least


def is_number(given: object, least: float, most: float = sys.float_info.max) -> bool:
    """Return whether something is a number, not infinite, within bounds."""
    return isinstance(given, int | float) and type(given) is not bool and least <= given <= most


def is_text_or_function(given: object) -> bool:
    """Return whether something is a text or can be called; a class, given as it is, is a slip."""
    return isinstance(given, str) or (callable(given) and not isinstance(given, type))


def listed(what: str, given: Iterable[T], wanted: str) -> list[T]:
    """Return several things as a list.

    Raises:
        ConfigurationError: They are not several things; a text is one.
    """
    is_one = isinstance(given, str | bytes)
    check(what, given, hasattr(given, "__iter__") and not is_one, wanted)
    return list(given)
