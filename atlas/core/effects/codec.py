"""Requests and results as JSON text, and back: what an effect may take and give.

JSON values, bytes, tuples, sets, dates and times, durations, `Decimal`, `UUID`, paths, complex keys, declared
messages and values, frozen dataclasses, enums. Anything else is refused by name. What JSON has no word for
is written as an object with the one key ``"$"``-something; a user's own such key is escaped.

Mappings keep their order: what the code that gets a result sees must not depend on who sorted it.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import enum
import json
import math
import sys
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any, cast

from atlas.core.messages import Message
from atlas.core.nodes import FrozenDict
from atlas.core.schema import canonical_text, decode, dump, encode, load
from atlas.core.schema.canonical import quote
from atlas.errors import AtlasError, EffectError, EffectFailedError
from atlas.typing import JSON, is_secret

__all__ = ["REDACTED", "canonical", "error_from", "error_text", "from_text", "plain", "to_text"]

REDACTED = "<redacted>"
"""What stands for a value that is not written down."""

_ONLY_STR = {str}
_PLAIN = frozenset({str, int, bool, type(None)})
_encode: Callable[[object], str] = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False
).encode


_decode: Callable[[str], Any] = json.JSONDecoder().decode  # Any: whatever was written


def canonical(value: JSON) -> str:
    """Return the canonical text of a JSON value: sorted keys, the same everywhere."""
    return canonical_text(value)


def to_text(value: object) -> str:
    """Return a value as JSON text.

    Raises:
        TypeError: It, or something in it, has no JSON form; the text names the place.
    """
    cls = type(value)
    if cls is str:
        return quote(cast("str", value))
    if cls is int:
        return str(value)
    if cls in _PLAIN:
        return _encode(value)
    return _encode(plain(value))


def from_text(text: str) -> Any:
    """Return the value written by `to_text`."""
    return _back(_decode(text))


# -- to JSON --------------------------------------------------------------------------------------


# Any: whatever the effect takes or gives
def plain(value: Any, path: str = "", *, hide: bool = False) -> JSON:
    """Return a value as a JSON value.

    Args:
        value: The value.
        path: Where it stands, for the error.
        hide: Whether fields marked `atlas.typing.SECRET` are replaced by `REDACTED`.

    Raises:
        TypeError: It has no JSON form.
    """
    cls = type(value)
    if cls in _PLAIN:
        return cast("JSON", value)
    if cls is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if cls is list:
        return [plain(item, f"{path}[{at}]", hide=hide) for at, item in enumerate(value)]
    if cls is tuple:
        return {
            "$tuple": [plain(item, f"{path}[{at}]", hide=hide) for at, item in enumerate(value)]
        }
    if cls is dict or cls is FrozenDict:
        return _mapping(value, path, hide)
    write = _WRITERS.get(cls)
    if write is not None:
        return write(value)
    return _instance(value, path, hide)


def _mapping(value: Mapping[Any, Any], path: str, hide: bool) -> JSON:
    if not value or set(map(type, value)) == _ONLY_STR:
        made: dict[str, JSON] = {
            key: item if type(item) in _PLAIN else plain(item, f"{path}.{key}", hide=hide)
            for key, item in value.items()
        }
        if len(made) == 1 and next(iter(made)).startswith("$"):
            return {"$object": made}
        return made
    return {
        "$mapping": [
            [plain(key, f"{path} key", hide=hide), plain(item, f"{path}[{key!r}]", hide=hide)]
            for key, item in value.items()
        ]
    }


def _set(value: set[Any] | frozenset[Any]) -> JSON:
    items = sorted((plain(item, "{}") for item in value), key=canonical_text)
    return {"$set" if isinstance(value, set) else "$frozenset": items}


_WRITERS: dict[type, Callable[[Any], JSON]] = {
    bytes: lambda value: {"$bytes": base64.b64encode(value).decode()},
    dt.datetime: lambda value: {"$datetime": value.isoformat()},
    dt.date: lambda value: {"$date": value.isoformat()},
    dt.time: lambda value: {"$time": value.isoformat()},
    dt.timedelta: lambda value: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    Decimal: lambda value: {"$decimal": str(value)},
    uuid.UUID: lambda value: {"$uuid": str(value)},
    set: _set,
    frozenset: _set,
}


def _instance(value: Any, path: str, hide: bool) -> JSON:
    cls = type(value)
    if isinstance(value, BaseException):
        return {"$error": error_text(value)}
    if isinstance(value, Message) and value._stamp is not None and not hide:
        return {"$message": encode(value).decode()}
    if isinstance(value, PurePath):
        return {"$path": str(value)}
    name = f"{cls.__module__}:{cls.__qualname__}"
    if isinstance(value, enum.Enum):
        return {"$enum": [name, plain(value.value, path, hide=hide)]}
    if dataclasses.is_dataclass(cls) and getattr(cls, "__dataclass_params__").frozen:  # noqa: B009
        return {"$value": [name, _fields(value, path, hide)]}
    raise TypeError(
        f"{path.lstrip('.') or 'the value'} is a {cls.__module__}.{cls.__qualname__}, which has no "
        f"JSON form"
    )


def _fields(value: Any, path: str, hide: bool) -> dict[str, JSON]:
    cls = type(value)
    if isinstance(value, Message) or hasattr(cls, "message_name"):
        fields = dump(value)
    else:
        fields = {
            spec.name: plain(getattr(value, spec.name), f"{path}.{spec.name}", hide=hide)
            for spec in dataclasses.fields(cls)
        }
    if hide:
        for spec in dataclasses.fields(cls):
            if spec.name in fields and _is_secret(spec.type):
                fields[spec.name] = REDACTED
    return fields


def _is_secret(annotation: object) -> bool:
    # a postponed annotation is not evaluated: its names may be out of reach
    return "SECRET" in annotation if isinstance(annotation, str) else is_secret(annotation)


# -- from JSON ------------------------------------------------------------------------------------


def _back(value: Any) -> Any:
    cls = type(value)
    if cls is list:
        return [_back(item) for item in value]
    if cls is not dict:
        return value
    if len(value) == 1:
        key, inside = next(iter(value.items()))
        if key.startswith("$"):
            return _READERS[key](inside)
    return {key: _back(item) for key, item in value.items()}


def _declared(given: list[Any]) -> Any:
    name, fields = given
    cls = _class(name)
    if cls is None:
        raise EffectError(
            f"The recording has a {name.replace(':', '.')}, which this program does not have. "
            f"Import the module that defines it before replaying."
        )
    if issubclass(cls, Message) or hasattr(cls, "message_name"):
        return load(cls, fields)
    made = object.__new__(cls)  # as it was: `__post_init__` has had its say
    for spec in dataclasses.fields(cls):
        object.__setattr__(made, spec.name, _back(fields[spec.name]))
    return made


def _enumerated(given: list[Any]) -> Any:
    name, inside = given
    cls = _class(name)
    if cls is None:
        raise EffectError(f"The recording has a {name}, which this program does not have.")
    return cls(_back(inside))


# Any: a class found by its name
def _class(name: str) -> Any:
    """Find a class in what is imported; a recording imports nothing."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


_READERS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$tuple": lambda inside: tuple(_back(item) for item in inside),
    "$object": lambda inside: {key: _back(item) for key, item in inside.items()},
    "$mapping": lambda inside: {_back(key): _back(item) for key, item in inside},
    "$bytes": base64.b64decode,
    "$datetime": dt.datetime.fromisoformat,
    "$date": dt.date.fromisoformat,
    "$time": dt.time.fromisoformat,
    "$timedelta": lambda inside: dt.timedelta(*inside),
    "$decimal": Decimal,
    "$uuid": uuid.UUID,
    "$set": lambda inside: {_back(item) for item in inside},
    "$frozenset": lambda inside: frozenset(_back(item) for item in inside),
    "$path": Path,
    "$enum": _enumerated,
    "$value": _declared,
    "$message": lambda inside: decode(inside.encode()),
}


# -- errors ---------------------------------------------------------------------------------------


def error_text(error: BaseException, secrets: tuple[str, ...] = ()) -> str:
    """Return an error as JSON text: its type, its text and, where they have a JSON form, its facts."""
    cls = type(error)
    text = str(error)
    given: dict[str, JSON] = {"type": f"{cls.__module__}:{cls.__qualname__}", "text": text}
    if not isinstance(error, BaseExceptionGroup):
        try:
            given["args"] = plain(list(_arguments(error)))
            if facts := {k: v for k, v in vars(error).items() if k not in _PRIVATE}:
                given["facts"] = plain(facts)
        except (TypeError, AtlasError):
            given.pop("args", None)
    made = _encode(given)
    for secret in secrets:
        made = made.replace(_encode(secret)[1:-1], REDACTED)
    return made


def _arguments(error: BaseException) -> tuple[Any, ...]:
    if type(error).__module__ != "builtins":
        return error.args
    arguments = error.__reduce__()[1]  # of an OSError, they have the file's name too
    return cast("tuple[Any, ...]", arguments)


_PRIVATE = frozenset({"__notes__"})


def error_from(text: str) -> BaseException:
    """Return the error written by `error_text`: of the same type, if it can be made again so.

    That is so for builtin and Atlas's errors and for those, imported in this program, whose arguments and
    attributes have a JSON form. Others come as `EffectFailedError`.
    """
    given = json.loads(text)
    cls = _class(given["type"])
    if cls is not None and "args" in given and issubclass(cls, BaseException):
        try:
            return _made(cls, _back(given["args"]), _back(given.get("facts", {})))
        except Exception as error:  # noqa: BLE001  whatever a foreign class does: then the plain one
            reason = f" ({error})"
    else:
        reason = ""
    name = given["type"].replace(":", ".").removeprefix("builtins.")
    return EffectFailedError(f"{name}: {given['text']}{reason}", type=name)


def _made(cls: type[BaseException], args: list[Any], facts: dict[str, Any]) -> BaseException:
    if cls.__module__ == "builtins":
        made = cls(*args)
    else:
        # not through `__init__`, which may ask for more than the arguments it handed on
        made = cls.__new__(cls, *args)
        made.args = tuple(args)
    for name, fact in facts.items():
        setattr(made, name, fact)
    return made


_READERS["$error"] = error_from
