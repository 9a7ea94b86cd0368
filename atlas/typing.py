"""Type variables, aliases and protocols that more than one Atlas package needs.

This module is the single source of such names and imports nothing of Atlas, so that any layer may
use it. Types that belong to one concept live with that concept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from types import UnionType
from typing import (
    Annotated,
    Final,
    Protocol,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    runtime_checkable,
)

__all__ = ["JSON", "SECRET", "Clock", "Headers", "MaybeAwaitable", "Secret", "is_secret"]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
"""Whatever the ``json`` module reads and writes."""

Headers: TypeAlias = Mapping[str, str]
"""Free annotations that travel with a message: short strings by short names."""

MaybeAwaitable: TypeAlias = Callable[..., "Awaitable[object] | object"]
"""A plain or an ``async`` callable; which of the two is settled once, when it is registered."""


class Secret(Enum):
    """The type of `SECRET`."""

    SECRET = auto()


SECRET: Final = Secret.SECRET
"""Marks a field whose value is shown to nobody who was not granted it.

Write ``api_key: Annotated[str, SECRET]``.
"""


def is_secret(annotation: object) -> bool:
    """Return whether a field with this annotation, or a member of its union, is marked `SECRET`."""
    inside = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return any(note is SECRET for note in inside[1:]) or is_secret(inside[0])
    return get_origin(annotation) in (Union, UnionType) and any(map(is_secret, inside))


@runtime_checkable
class Clock(Protocol):
    """Where Atlas reads time from; replaced by a manual clock in tests and by the log in a replay."""

    def time_ns(self) -> int:
        """Return the wall-clock time in nanoseconds since the Unix epoch (UTC)."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start; never goes back."""
        ...
