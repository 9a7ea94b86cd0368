"""Messages: the small immutable values that cross the bus. (First working version.)

PUBLIC CONTRACT (stays): `message`, `value`, `Message`, `Event`, `Command`, `Metadata`, `Stamp`,
`stamp`, `registered_messages`, `message_class`.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, cast, dataclass_transform, overload

from atlas.errors import SchemaError, UnknownMessageError, ValidationError

Origin: TypeAlias = "tuple[int, int, int] | str"
"""Who stamped a message, in what place, when: (bus identity, sequence, time in ns); or, for one
that was read back from a log, its id."""

Stamp: TypeAlias = (
    "tuple[Origin, Origin | None, Origin, str | None, str | None, Mapping[str, str], int]"
)
"""origin, causation, correlation, run, source, headers, depth of re-entrant dispatch."""

C = TypeVar("C", bound=type)
AnswerT = TypeVar("AnswerT")


def message_id(origin: Origin) -> str:
    """Return the id (UUIDv7 form, time-ordered) of the message with this origin."""
    if isinstance(origin, str):
        return origin
    bus, sequence, time_ns = origin
    milliseconds, rest = divmod(time_ns, 1_000_000)
    value = (
        (milliseconds & 0xFFFFFFFFFFFF) << 80
        | 0x7 << 76
        | ((rest << 12) // 1_000_000) << 64
        | 0b10 << 62
        | (sequence & 0xFFFFFFFF) << 30
        | (bus & 0x3FFFFFFF)
    )
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Metadata:
    __slots__ = ("_message", "_stamp")

    def __init__(self, message: Message, stamp: Stamp | None) -> None:
        self._message = message
        self._stamp = stamp

    @property
    def name(self) -> str:
        return self._message.message_name

    @property
    def version(self) -> int:
        return self._message.message_version

    @property
    def id(self) -> str | None:
        return None if self._stamp is None else message_id(self._stamp[0])

    @property
    def sequence(self) -> int | None:
        if self._stamp is None or isinstance(self._stamp[0], str):
            return None
        return self._stamp[0][1]

    @property
    def time_ns(self) -> int | None:
        if self._stamp is None or isinstance(self._stamp[0], str):
            return None
        return self._stamp[0][2]

    @property
    def time(self) -> datetime | None:
        ns = self.time_ns
        if ns is None:
            return None
        return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=ns // 1000)

    @property
    def causation(self) -> str | None:
        if self._stamp is None or self._stamp[1] is None:
            return None
        return message_id(self._stamp[1])

    @property
    def correlation(self) -> str | None:
        return None if self._stamp is None else message_id(self._stamp[2])

    @property
    def run(self) -> str | None:
        return None if self._stamp is None else self._stamp[3]

    @property
    def source(self) -> str | None:
        return None if self._stamp is None else self._stamp[4]

    @property
    def headers(self) -> Mapping[str, str]:
        return types.MappingProxyType({}) if self._stamp is None else self._stamp[5]


class Message:
    __slots__ = ("_stamp",)
    message_name: ClassVar[str] = "message"
    message_version: ClassVar[int] = 0
    _stamp: Stamp | None

    @property
    def meta(self) -> Metadata:
        return Metadata(self, self._stamp)


class Event(Message):
    __slots__ = ()


class Command(Message, Generic[AnswerT]):
    __slots__ = ()


def stamp(message: Message, value: Stamp) -> None:
    object.__setattr__(message, "_stamp", value)


_registry: dict[tuple[str, int], type[Message]] = {}


def _freeze(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, dict):
        return types.MappingProxyType({k: _freeze(v) for k, v in value.items()})
    return value


def _build(cls: Any, name: str, version: int) -> Any:
    def __post_init__(self: Any) -> None:
        if isinstance(self, Message):
            object.__setattr__(self, "_stamp", None)
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _freeze(getattr(self, field.name)))

    cls.__post_init__ = __post_init__
    made = dataclasses.dataclass(frozen=True, slots=True)(cls)
    made.message_name = name
    made.message_version = version
    return made


@overload
def message(cls: C, /) -> C: ...
@overload
def message(name: str | None = None, /, *, version: int = 1) -> Callable[[C], C]: ...
@dataclass_transform(frozen_default=True)
def message(cls: Any = None, /, *, version: int = 1) -> Any:
    def decorate(target: Any, name: str | None = None) -> Any:
        wire = (
            name or ".".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", target.__name__)).lower()
        )
        made = _build(target, wire, version)
        _registry[wire, version] = made
        return made

    if isinstance(cls, type):
        return decorate(cls)
    return lambda target: decorate(target, cls)


@overload
def value(cls: C, /) -> C: ...
@overload
def value(name: str | None = None, /) -> Callable[[C], C]: ...
@dataclass_transform(frozen_default=True)
def value(cls: Any = None, /) -> Any:
    if isinstance(cls, type):
        return _build(cls, cls.__name__, 0)
    return lambda target: _build(target, cls or target.__name__, 0)
