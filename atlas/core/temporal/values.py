"""States and events as JSON values and back, with their types.

JSON values stay as they are. Whatever else a state may hold is an object with the key ``$``, which
says what it is: pyrsistent maps and vectors, tuples, sets, dates, enums, declared classes (through
their schema) and frozen dataclasses. Classes are found by the place they are defined at, and only
in modules that are loaded: reading imports nothing.
"""

from __future__ import annotations

import base64
import dataclasses
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum

# Any: values are of whatever type a program keeps in its state.
from typing import Any, cast
from uuid import UUID

from atlas.core.nodes import FrozenDict
from atlas.core.persistent import PMap, PVector, pmap, pvector
from atlas.core.schema.canonical import canonical_text
from atlas.core.schema.codec import dump, load
from atlas.errors import SchemaError, StateError
from atlas.typing import JSON

__all__ = ["UNREADABLE", "Values", "is_storable"]

_PLAIN = frozenset({str, int, bool, type(None)})
_TEXT = frozenset({str})
_TAG = "$"


class Values:
    """Writes values of any supported type as JSON, and reads them back as the same types.

    Args:
        root: The class that needs no name when it is the whole value, so that it may be renamed.
        classes: Further classes that values may be of, found wherever they are defined.

    Safe for threads.
    """

    def __init__(self, root: type | None = None, classes: tuple[type, ...] = ()) -> None:
        self._root = root
        # Also what was written is remembered: it may be defined where no module shows it.
        self._known = {_place(cls): cls for cls in classes}

    def dump(self, value: object) -> JSON:
        """Return a value as JSON.

        Raises:
            StateError: Something in it is of a type that this cannot write.
        """
        kind = type(value)
        if kind in _PLAIN:
            return cast("JSON", value)
        if kind is self._root and _is_record(kind):
            return {_TAG: "root", "of": self._fields(value)}
        writer = _WRITERS.get(kind)
        if writer is not None:
            return writer(self, value)
        if isinstance(value, Enum):
            return {_TAG: "enum", "class": self._name(kind), "of": self.dump(value.value)}
        if _is_record(kind):
            return {_TAG: "record", "class": self._name(kind), "of": self._fields(value)}
        raise StateError(
            f"{value!r} is of the type {kind.__module__}.{kind.__qualname__}, which has no stored "
            f"form. Use JSON values, @value classes, frozen dataclasses, pmap or pvector, or give "
            f"a codec of your own."
        )

    def load(self, value: JSON) -> Any:
        """Return the value that was written as this JSON.

        Raises:
            StateError: It was written by other code, or names a class that is not loaded.
        """
        kind = type(value)
        if kind in _PLAIN or kind is float:
            return value
        if kind is list:
            return [self.load(item) for item in cast("list[JSON]", value)]
        given = cast("dict[str, Any]", value)
        if _TAG not in given:
            return self._mapping(given)
        try:
            return _READERS[given[_TAG]](self, given)
        except StateError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"A stored value of the kind {given.get(_TAG)!r} does not fit the code any more: "
                f"{error!r}. It can be computed again from the events."
            ) from error

    def _mapping(self, given: dict[str, Any]) -> dict[str, Any]:
        # Most large maps hold plain values only; nobody else has this dict.
        if _PLAIN.issuperset(map(type, given.values())):
            return given
        return {key: self.load(item) for key, item in given.items()}

    def _pairs(self, given: Any) -> dict[Any, Any]:
        """Read a mapping written as an object or, where a key is no text, as pairs."""
        if isinstance(given, dict):
            return self._mapping(given)
        return {self.load(key): self.load(item) for key, item in given}

    def _items(self, given: list[JSON]) -> list[Any]:
        return [self.load(item) for item in given]

    def _written_mapping(self, value: Mapping[Any, Any]) -> JSON:
        """Write an object where each key is a text, and none could be taken for a tag."""
        items = dict(value.items())
        if _TAG in items or not _TEXT.issuperset(map(type, items)):
            return [[self.dump(key), self.dump(item)] for key, item in items.items()]
        if _PLAIN.issuperset(map(type, items.values())):
            return items
        return {key: self.dump(item) for key, item in items.items()}

    def _dict(self, value: dict[Any, Any]) -> JSON:
        written = self._written_mapping(value)
        return written if isinstance(written, dict) else {_TAG: "dict", "of": written}

    def _fields(self, value: Any) -> JSON:
        if _is_declared(type(value)):
            return cast("JSON", dump(value))
        return {
            field.name: self.dump(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }

    def _made(self, cls: Any, fields: Any) -> Any:
        if not isinstance(fields, dict):
            raise TypeError(f"{fields!r} are no fields")
        if _is_declared(cls):
            return load(cls, fields)
        return cls(**self._mapping(fields))

    def _name(self, cls: type) -> str:
        place = _place(cls)
        self._known[place] = cls
        return place

    def _class(self, place: str) -> Any:
        found: Any = self._known.get(place)
        if found is not None:
            return found
        module, _, path = place.partition(":")
        found = sys.modules.get(module)
        for name in path.split("."):
            found = getattr(found, name, None)
        if not isinstance(found, type) or not (_is_record(found) or issubclass(found, Enum)):
            raise StateError(
                f"A stored value is a {path!r} of the module {module!r}, and there is no such "
                f"class loaded. Import the module, or name the class in `classes`."
            )
        return found

    def _root_class(self) -> type:
        if self._root is None:
            raise StateError("A stored value is a whole state, and the type of states is unknown.")
        return self._root


def _place(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _is_declared(cls: type) -> bool:
    return "__description__" in cls.__dict__


def _is_record(cls: type) -> bool:
    return _is_declared(cls) or dataclasses.is_dataclass(cls)


def _float(_values: Values, value: float) -> JSON:
    is_finite = value - value == 0.0
    return value if is_finite else {_TAG: "float", "of": repr(value)}


def _tagged(tag: str, write: Callable[[Any], JSON]) -> Callable[[Values, Any], JSON]:
    return lambda _values, value: {_TAG: tag, "of": write(value)}


def _sequence(tag: str) -> Callable[[Values, Any], JSON]:
    return lambda values, value: {_TAG: tag, "of": [values.dump(item) for item in value]}


def _set(tag: str) -> Callable[[Values, Any], JSON]:
    return lambda values, value: {
        _TAG: tag,
        "of": sorted((values.dump(item) for item in value), key=canonical_text),
    }


def _map(tag: str) -> Callable[[Values, Any], JSON]:
    # The entry points of the class are its own business; this module is one with it.
    return lambda values, value: {_TAG: tag, "of": values._written_mapping(value)}


# PVector is the name of an interface: the class of vectors depends on how pyrsistent was built.
_PVECTOR: type = type(pvector())

_WRITERS: Mapping[type, Callable[[Values, Any], JSON]] = {
    float: _float,
    list: lambda values, value: [values.dump(item) for item in value],
    dict: Values._dict,
    FrozenDict: _map("frozendict"),
    PMap: _map("pmap"),
    PVector: _sequence("pvector"),
    _PVECTOR: _sequence("pvector"),
    tuple: _sequence("tuple"),
    set: _set("set"),
    frozenset: _set("frozenset"),
    bytes: _tagged("bytes", lambda value: base64.b64encode(value).decode()),
    datetime: _tagged("datetime", datetime.isoformat),
    date: _tagged("date", date.isoformat),
    timedelta: _tagged("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: _tagged("decimal", str),
    UUID: _tagged("uuid", str),
}

_READERS: Mapping[str, Callable[[Values, Mapping[str, Any]], Any]] = {
    "root": lambda values, given: values._made(values._root_class(), given["of"]),
    "record": lambda values, given: values._made(values._class(given["class"]), given["of"]),
    "enum": lambda values, given: values._class(given["class"])(values.load(given["of"])),
    "float": lambda _values, given: float(given["of"]),
    "dict": lambda values, given: values._pairs(given["of"]),
    "frozendict": lambda values, given: FrozenDict(values._pairs(given["of"])),
    "pmap": lambda values, given: pmap(values._pairs(given["of"])),
    "pvector": lambda values, given: pvector(values._items(given["of"])),
    "tuple": lambda values, given: tuple(values._items(given["of"])),
    "set": lambda values, given: set(values._items(given["of"])),
    "frozenset": lambda values, given: frozenset(values._items(given["of"])),
    "bytes": lambda _values, given: base64.b64decode(given["of"]),
    "datetime": lambda _values, given: datetime.fromisoformat(given["of"]),
    "date": lambda _values, given: date.fromisoformat(given["of"]),
    "timedelta": lambda _values, given: timedelta(*given["of"]),
    "decimal": lambda _values, given: Decimal(given["of"]),
    "uuid": lambda _values, given: UUID(given["of"]),
}

# The schema layer and the parser raise errors of their own; a reader of snapshots catches these.
UNREADABLE = (StateError, SchemaError, ValueError, RecursionError)


def is_storable(text: str) -> bool:
    """Whether every engine can keep a text as a name."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
