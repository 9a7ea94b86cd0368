"""Requests and results as JSON text, and back: what an effect may take and give.

JSON values, bytes, tuples, sets, dates and times, durations, `Decimal`, `UUID`, paths, complex keys, declared
messages and values, frozen dataclasses, enums. Anything else is refused by name. What JSON has no word for
is written as an object with the one key ``"$"``-something; a user's own such key is escaped.

Mappings keep their order: what the code that gets a result sees must not depend on who sorted it.

What must not be written down is left to a `Redactor`, one for each effect.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import enum
import functools
import json
import math
import sys
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any, Final, Literal, TypeAlias, cast

from atlas.core.messages import Message
from atlas.core.nodes import FrozenDict
from atlas.core.redaction import (
    REDACTED,
    Secrets,
    spellings,
)
from atlas.core.schema import canonical_text, decode, dump, encode, load
from atlas.core.schema.canonical import one_shot, quote
from atlas.errors import AtlasError, EffectError, EffectFailedError
from atlas.typing import JSON, is_secret

__all__ = [
    "REDACTED",
    "Redactor",
    "bytes_text",
    "canonical",
    "error_from",
    "error_text",
    "from_text",
    "plain",
    "text_of_bytes",
    "to_text",
]

_ONLY_STR: Final = {str}
_PLAIN: Final = frozenset({str, int, bool, type(None)})
_NO_SECRETS: Final = Secrets()

_encode: Final = one_shot(
    json.JSONEncoder(
        ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False
    )
)
_decode: Final = json.JSONDecoder().raw_decode


def canonical(value: JSON) -> str:
    """Return the canonical text of a JSON value: sorted keys, the same everywhere."""
    return canonical_text(value)


def to_text(value: object) -> str:
    """Return a value as JSON text, secrets included.

    Raises:
        TypeError: It, or something in it, has no JSON form; the text names the place.
    """
    return _encode(plain(value))


def from_text(text: str) -> Any:
    """Return the value written by `to_text`."""
    value = _decode(text)[0]
    # without such a key it is JSON as it stands, which most things are
    return _back(value) if '"$' in text else value


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
    return _plain(value, path, Redactor(), "hide" if hide else "keep")


# -- what is not written --------------------------------------------------------------------------

_Policy: TypeAlias = Literal["hide", "refuse", "keep"]


class Redactor:
    """Writes down what one effect takes and gives, without what must not be.

    Fields of the names given, at any depth, and, in the request, fields marked
    `atlas.typing.SECRET` are replaced by `REDACTED`; what they held, and known secrets, are replaced
    wherever the request, results, errors and notes of the effect repeat them. In a result a field marked so is refused unless it is named:
    the run itself would get another value than it was given, which somebody has to want.

    Args:
        names: The names.
        secrets: Those known before.

    Attributes:
        names: As given.
        secrets: Those known, and what was hidden so far.
        errors_deep: How many errors, each in another, are being written.
    """

    __slots__ = ("errors_deep", "names", "secrets")

    def __init__(self, names: Collection[str] = (), secrets: Secrets = _NO_SECRETS) -> None:
        self.names: Collection[str] = names
        self.secrets: Secrets = secrets
        self.errors_deep: int = 0

    def request(self, value: object) -> str:
        """Return a request as canonical JSON text.

        Raises:
            TypeError: It has no JSON form.
        """
        is_json = not self.names and _is_json(value)
        made = value if is_json else _plain(value, "", self, "hide")
        return canonical_text(self.scrub(made) if self.secrets.values else made)

    def result(self, value: object) -> str:
        """Return a result, or a piece of one, as JSON text.

        Raises:
            TypeError: It has no JSON form, or a secret in it.
        """
        if type(value) is str:
            return quote(self.scrubbed(value) if self.secrets.values else value)
        is_json = not self.names and _is_json(value)
        return self.text(value if is_json else self.plain_result(value))

    # Any: whatever the effect gives
    def plain_result(self, value: Any) -> JSON:
        """Return a result, or a piece of one, as a JSON value of its own, still to be scrubbed.

        Raises:
            TypeError: It has no JSON form, or a secret in it.
        """
        return _plain(value, "", self, "refuse")

    # Any: a JSON value
    def text(self, value: Any) -> str:
        """Return a JSON value as text, without what was hidden so far."""
        return _encode(self.scrub(value) if self.secrets.values else value)

    def error(self, error: BaseException) -> str:
        """Return an error as JSON text; see `error_text`."""
        return _error_text(error, self)

    def scrubbed(self, text: str) -> str:
        """Return a text without what was hidden so far."""
        return self.secrets.redacted(text)

    def _scrubbed_bytes(self, text: str) -> str:
        """Return the Base64 text of bytes without what was hidden so far."""
        return bytes_text(self.scrubbed(text_of_bytes(text)))

    # Any: whatever stands there
    def hide(self, value: Any) -> str:
        """Remember what must not show, and return what stands for it."""
        if isinstance(value, Mapping):
            self._hide_all(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            self._hide_all(value)
        elif dataclasses.is_dataclass(value):
            self._hide_all(getattr(value, spec.name) for spec in dataclasses.fields(value))
        else:
            self.secrets = self.secrets.with_spellings(_quotations(value))
        return REDACTED

    def _hide_all(self, values: Iterable[Any]) -> None:
        for each in values:
            self.hide(each)

    # Any: JSON values of texts
    def scrub(self, value: Any) -> Any:
        """Return a JSON value in which nothing shows that was hidden so far."""
        if not self.secrets:
            return value
        if isinstance(value, str):
            return self.scrubbed(value)
        if isinstance(value, list):
            return [self.scrub(item) for item in value]
        if isinstance(value, dict):
            if len(value) == 1 and "$bytes" in value:
                return {"$bytes": self._scrubbed_bytes(value["$bytes"])}
            if len(value) == 1 and "$object" in value:  # in which no key means anything
                return {"$object": self._scrub_items(value["$object"])}
            return self._scrub_items(value)
        return value

    # Any: JSON values of texts
    def _scrub_items(self, value: dict[str, Any]) -> dict[str, Any]:
        return {self.scrubbed(key): self.scrub(item) for key, item in value.items()}


def text_of_bytes(text: str) -> str:
    """Return the bytes of a Base64 text as if they were Latin-1: as a text that can be searched."""
    return base64.b64decode(text).decode("latin-1")


def bytes_text(text: str) -> str:
    """Return the Base64 text of what `text_of_bytes` gave."""
    return base64.b64encode(text.encode("latin-1")).decode()


def _quotations(value: object) -> Iterator[str]:
    """Return the texts in which a value may be quoted somewhere: as `repr`, this again, and as JSON."""
    if isinstance(value, bytes | bytearray):
        quoted = repr(bytes(value))[2:-1]
        yield quoted
        yield repr(quoted)[1:-1]
        yield from spellings(bytes(value).decode("utf-8", "replace"))
        yield base64.b64encode(value).decode()
        yield value.hex()
    elif isinstance(value, str | int | float | Decimal | uuid.UUID | PurePath):
        yield from spellings(str(value))


# -- to JSON --------------------------------------------------------------------------------------


# Any: whatever the effect takes or gives
def _is_json(value: Any) -> bool:
    """Return whether a value is JSON as it stands, as most are: then nothing is to be made of it."""
    cls = type(value)
    if cls is list:
        for item in value:  # noqa: SIM110 - a generator takes as long as the looking
            if not (type(item) in _PLAIN or _is_json(item)):
                return False
        return True
    if cls is dict:
        for key, item in value.items():
            if type(key) is not str or not (type(item) in _PLAIN or _is_json(item)):
                return False
        return len(value) != 1 or not next(iter(value)).startswith("$")
    return cls in _PLAIN or (cls is float and math.isfinite(value))


# Any: whatever the effect takes or gives
def _plain(value: Any, path: str, redactor: Redactor, secrets: _Policy) -> JSON:
    cls = type(value)
    if cls in _PLAIN:
        return cast("JSON", value)
    if cls is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if cls is list:
        return _items(value, path, redactor, secrets)
    if cls is tuple:
        return {"$tuple": _items(value, path, redactor, secrets)}
    if cls is dict or cls is FrozenDict:
        return _mapping(value, path, redactor, secrets)
    write = _WRITERS.get(cls)
    if write is not None:
        return write(value)
    if cls is set or cls is frozenset:
        items = [_plain(item, f"{path}{{}}", redactor, secrets) for item in value]
        return {f"${cls.__name__}": sorted(items, key=canonical_text)}
    return _instance(value, path, redactor, secrets)


def _items(
    values: list[Any] | tuple[Any, ...], path: str, redactor: Redactor, secrets: _Policy
) -> list[JSON]:
    return [
        # the path is worked out for what needs it only: most items are plain
        item if type(item) in _PLAIN else _plain(item, f"{path}[{at}]", redactor, secrets)
        for at, item in enumerate(values)
    ]


def _mapping(
    value: Mapping[Any, Any], path: str, redactor: Redactor, secrets: _Policy
) -> dict[str, JSON]:
    hidden = redactor.names
    if not value or set(map(type, value)) == _ONLY_STR:
        made: dict[str, JSON] = {
            key: item if type(item) in _PLAIN else _plain(item, f"{path}.{key}", redactor, secrets)
            for key, item in value.items()
            if key not in hidden
        }
        if len(made) != len(value):
            made = {key: made[key] if key in made else redactor.hide(value[key]) for key in value}
        if len(made) == 1 and next(iter(made)).startswith("$"):
            return {"$object": made}
        return made
    return {
        "$mapping": [
            [
                _plain(key, f"{path} key", redactor, secrets),
                redactor.hide(item)
                if key in hidden
                else _plain(item, f"{path}[{key!r}]", redactor, secrets),
            ]
            for key, item in value.items()
        ]
    }


_WRITERS: dict[type, Callable[[Any], JSON]] = {
    bytes: lambda value: {"$bytes": base64.b64encode(value).decode()},
    dt.datetime: lambda value: {"$datetime": value.isoformat()},
    dt.date: lambda value: {"$date": value.isoformat()},
    dt.time: lambda value: {"$time": value.isoformat()},
    dt.timedelta: lambda value: {"$timedelta": [value.days, value.seconds, value.microseconds]},
    Decimal: lambda value: {"$decimal": str(value)},
    uuid.UUID: lambda value: {"$uuid": str(value)},
}


def _instance(value: Any, path: str, redactor: Redactor, secrets: _Policy) -> JSON:
    cls = type(value)
    if isinstance(value, BaseException):
        return {"$error": redactor.error(value)}
    name = f"{cls.__module__}:{cls.__qualname__}"
    if isinstance(value, enum.Enum):
        return {"$enum": [name, _plain(value.value, path, redactor, secrets)]}
    if dataclasses.is_dataclass(cls):
        if hasattr(cls, "message_name"):
            return _declared_value(value, name, path, redactor, secrets)
        if getattr(cls, "__dataclass_params__").frozen:  # noqa: B009
            return {"$value": [name, _fields(value, path, redactor, secrets)]}
    if isinstance(value, PurePath):
        return {"$path": str(value)}
    raise TypeError(
        f"{path.lstrip('.') or 'the value'} is a {cls.__module__}.{cls.__qualname__}, which has no "
        f"JSON form"
    )


def _fields(value: Any, path: str, redactor: Redactor, secrets: _Policy) -> dict[str, JSON]:
    marked = _secret_fields(value.__class__)
    made: dict[str, JSON] = {}
    for spec in dataclasses.fields(value):
        name, at = spec.name, f"{path}.{spec.name}"
        item = getattr(value, name)
        if _is_hidden(name, at, marked, redactor, secrets):
            made[name] = redactor.hide(item)
        else:
            made[name] = _plain(item, at, redactor, secrets)
    return made


def _declared_value(value: Any, name: str, path: str, redactor: Redactor, secrets: _Policy) -> JSON:
    """Write a message or declared value: as its class says, and then without what is not to be."""
    is_told = isinstance(value, Message) and value._stamp is not None and secrets != "hide"
    fields = dump(value)
    if secrets != "keep" or redactor.names:
        shown = cast("dict[str, JSON]", _seen(value, fields, path, redactor, secrets))
        if shown != fields:
            return {"$value": [name, shown]}
    return {"$message": encode(value).decode()} if is_told else {"$value": [name, fields]}


# Any: a value, and what is written of it
def _seen(value: Any, written: Any, path: str, redactor: Redactor, secrets: _Policy) -> Any:
    """Return what was written of a declared value without what is hidden in it, at any depth."""
    cls = type(value)
    if cls in _PLAIN:
        return written
    if isinstance(written, dict):
        if isinstance(value, Mapping):
            inside = {str(key): item for key, item in value.items()}
            marked: frozenset[str] = frozenset()
        elif dataclasses.is_dataclass(cls):
            inside = {spec.name: getattr(value, spec.name) for spec in dataclasses.fields(cls)}
            marked = _secret_fields(value.__class__)
        else:
            return written
        made = {}
        for key, item in written.items():
            at = f"{path}.{key}"
            if _is_hidden(key, at, marked, redactor, secrets):
                made[key] = redactor.hide(inside.get(key, item))
            else:
                made[key] = (
                    _seen(inside[key], item, at, redactor, secrets) if key in inside else item
                )
        return made
    if isinstance(written, list):
        if isinstance(value, list | tuple):
            return [
                _seen(one, item, f"{path}[{at}]", redactor, secrets)
                for at, (one, item) in enumerate(zip(value, written, strict=True))
            ]
        if isinstance(value, frozenset) and any(map(dataclasses.is_dataclass, value)):
            shown = [_seen(one, dump(one), f"{path}{{}}", redactor, secrets) for one in value]
            return sorted(shown, key=canonical_text)
    return written


def _is_hidden(
    name: str, path: str, marked: frozenset[str], redactor: Redactor, secrets: _Policy
) -> bool:
    if name in redactor.names:
        return True
    if name not in marked or secrets == "keep":
        return False
    if secrets == "hide":
        return True
    raise TypeError(
        f"{path.lstrip('.')} is marked SECRET, and a result is written down as it is. Have the "
        f"effects that need it look it up; or name it in `redact`, then the run itself gets "
        f"{REDACTED!r} in its place"
    )


@functools.lru_cache(maxsize=4096)
def _secret_fields(cls: type) -> frozenset[str]:
    return frozenset(spec.name for spec in dataclasses.fields(cls) if _is_secret(spec.type))


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


def error_text(error: BaseException) -> str:
    """Return an error as JSON text: its type, its text and, where they have a JSON form, its facts."""
    return _error_text(error, Redactor())


def _error_text(error: BaseException, redactor: Redactor) -> str:
    cls = type(error)
    given: dict[str, JSON] = {"type": f"{cls.__module__}:{cls.__qualname__}"}
    try:
        given["text"] = str(error)
    except Exception as broken:  # noqa: BLE001  whatever a foreign class does
        given["text"] = f"(its text cannot be had: {type(broken).__name__})"
    else:
        # An error may hold another, and that one the first.
        if redactor.errors_deep < _DEEPEST_ERROR:
            redactor.errors_deep += 1
            try:
                given |= _made_of(error, redactor)
            finally:
                redactor.errors_deep -= 1
    # afterwards: what is hidden in the facts does not show in the text either
    return _encode(
        {key: redactor.scrub(item) if key != "type" else item for key, item in given.items()}
    )


def _made_of(error: BaseException, redactor: Redactor) -> dict[str, JSON]:
    """Return what an error can be made again from; nothing if that has no JSON form."""
    try:
        made = {"args": _plain(list(_arguments(error)), "", redactor, "hide")}
        if facts := {k: v for k, v in vars(error).items() if k not in _PRIVATE}:
            made["facts"] = _plain(facts, "", redactor, "hide")
    except (TypeError, ValueError, RecursionError, AtlasError):
        return {}
    return made


def _arguments(error: BaseException) -> tuple[Any, ...]:
    if isinstance(error, BaseExceptionGroup):
        return error.message, list(error.exceptions)
    if type(error).__module__ != "builtins":
        return error.args
    arguments = error.__reduce__()[1]  # of an OSError, they have the file's name too
    return cast("tuple[Any, ...]", arguments)


_PRIVATE = frozenset({"__notes__"})
_DEEPEST_ERROR = 4


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
