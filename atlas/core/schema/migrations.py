"""Upcasters: how an old payload becomes one of today's version.

An upcaster is a function from the JSON fields of one version of a message to those of the next.
Reading walks the chain until the version of the class in the code is reached::

    @upcaster("order.placed", version=1)
    def add_currency(fields):
        return {**fields, "currency": "EUR"}
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

from atlas.core.messages import message_class, registered_messages
from atlas.errors import MigrationError, SchemaError, UnknownMessageError, ValidationError
from atlas.typing import JSON

__all__ = ["Upcaster", "upcast", "upcaster"]

Fields: TypeAlias = "dict[str, JSON]"
Upcaster: TypeAlias = Callable[[Fields], Fields]
"""From the JSON fields of one version to those of the next. Must be pure."""

UpcasterT = TypeVar("UpcasterT", bound=Upcaster)


class _Step(NamedTuple):
    function: Upcaster
    name: str
    version: int


_steps: dict[tuple[str, int], _Step] = {}
_lock = threading.Lock()


def upcaster(
    name: str, /, *, version: int, to: tuple[str, int] | None = None
) -> Callable[[UpcasterT], UpcasterT]:
    """Register a function that leads from a version of a message to the next.

    Args:
        name: The wire name in the old payload.
        version: The version in the old payload.
        to: Name and version that the function returns, where the message was renamed; by default
            the same name and the next version.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        SchemaError: Another function already leads from this version, or what is given names no
            message, no version or no plain function.
    """
    _check_place(name, version)
    target: object = to or (name, version + 1)
    if not (isinstance(target, tuple) and len(target) == 2):
        raise SchemaError(f"to={to!r} is no message; give its name and version: ('order.paid', 2).")
    _check_place(*target)
    if target == (name, version) or (target[0] == name and target[1] < version):
        raise SchemaError(
            f"An upcaster of {name!r} leads from version {version} to {target[1]}; "
            f"it must lead to a later version or another name."
        )

    def register(function: UpcasterT) -> UpcasterT:
        given: object = function
        if not callable(given) or inspect.iscoroutinefunction(given):
            raise SchemaError(
                f"{function!r} cannot lead {name!r} on from version {version}: an upcaster is a plain "
                f"function from the fields of one version to those of the next."
            )
        with _lock:
            other = _steps.get((name, version))
            if other is not None and not _same_code(other.function, function):
                raise SchemaError(
                    f"{_place(function)} and {_place(other.function)} both lead {name!r} on from "
                    f"version {version}. Remove one of them."
                )
            _steps[name, version] = _Step(function, *target)
        return function

    return register


def _check_place(name: object, version: object) -> None:
    if not isinstance(name, str) or not name:
        raise SchemaError(f"{name!r} is no name of a message; write it as in 'order.placed'.")
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise SchemaError(f"{version!r} is no version of {name!r}; versions are ints.")


def _same_code(old: Upcaster, new: Upcaster) -> bool:
    """Whether it is the same definition run again (a reload, a notebook cell, a local function)."""
    return _place(old) == _place(new) or "<locals>" in getattr(old, "__qualname__", "")


def _place(function: Upcaster) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def upcast(name: str, version: int, fields: Fields) -> tuple[str, Fields]:
    """Lead the fields of a stored message to the version of its class in the code.

    Returns:
        The name of today's class, and its fields.

    Raises:
        UnknownMessageError: No class has this name, or the payload is newer than the code.
        MigrationError: A step of the chain is missing or failed, or the chain is a circle.
    """
    if not isinstance(version, int):
        raise ValidationError(name, "version", version, "an int")
    current, at = name, version
    passed: list[tuple[str, int]] = []
    while True:
        if (current, at) in passed:
            circle = " -> ".join(f"{each} {number}" for each, number in [*passed, (current, at)])
            raise MigrationError(
                f"The upcasters of {name!r} lead in a circle: {circle}. Remove one of them.",
                name=name,
                from_version=version,
                to_version=at,
            )
        passed.append((current, at))
        newest = _newest(current)
        if at == newest:
            return current, fields
        step = _steps.get((current, at))
        if step is None:
            raise _missing_step(name, version, current, at, newest)
        try:
            fields = step.function(dict(fields))
        except Exception as error:
            raise MigrationError(
                f"The upcaster {_place(step.function)} failed on {current!r} version {at}: "
                f"{error!r}. Correct it; the stored message is unchanged.",
                name=name,
                from_version=version,
                to_version=step.version,
            ) from error
        if not isinstance(fields, dict):
            raise MigrationError(
                f"The upcaster {_place(step.function)} returned {fields!r} where a dict of fields "
                f"is expected.",
                name=name,
                from_version=version,
                to_version=step.version,
            )
        current, at = step.name, step.version


def _newest(name: str) -> int | None:
    try:
        return message_class(name).message_version
    except UnknownMessageError:
        return None


def _missing_step(
    name: str, version: int, current: str, at: int, newest: int | None
) -> SchemaError:
    if newest is None or at > newest:
        try:
            message_class(current, at)
        except UnknownMessageError as unknown:
            return unknown
    return MigrationError(
        f"{name!r} was stored in version {version} and the code has version {newest}; no upcaster "
        f"leads on from version {at}. Register one with @upcaster({current!r}, version={at}).",
        name=name,
        from_version=version,
        to_version=newest or at,
    )


def known_versions(name: str) -> tuple[int, ...]:
    """Return the versions of a message that can be read: those declared and those led on from."""
    declared = {cls.message_version for cls in registered_messages() if cls.message_name == name}
    return tuple(sorted(declared | {version for known, version in _steps if known == name}))
