"""Messages to bytes and back: fields, envelope, old versions, unknown types.

`encode` writes canonical JSON (or, on request, the compact binary form) of a message with its
envelope; `decode` reads either, leads old versions up to today's class and gives the message its
stamp back. Inside values are valid by construction and not checked again; what comes from outside
is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast

import marshmallow

from atlas.core.messages import (
    Event,
    Message,
    Origin,
    Stamp,
    message,
    message_class,
    message_id,
    spelled_out,
    stamp,
)
from atlas.core.nodes import FrozenDict
from atlas.core.schema import compact
from atlas.core.schema.canonical import MAX_NESTING, canonical_text, from_bytes, quote, to_bytes
from atlas.core.schema.compiled import Compiled, compiled_for
from atlas.core.schema.migrations import upcast
from atlas.errors import SchemaError, UnknownMessageError, ValidationError
from atlas.typing import JSON

__all__ = [
    "UnknownMessage",
    "decode",
    "decode_fields",
    "dump",
    "encode",
    "encode_fields",
    "fields_text",
    "from_fields",
    "load",
]


@message("atlas.unknown_message")
class UnknownMessage(Event):
    """A message of a type that this process does not know, kept as it was read.

    It is written again as what it was: encoding it gives the original name, version and fields.
    """

    name: str
    version: int
    fields: JSON


# -- fields ---------------------------------------------------------------------------------------


def dump(instance: object) -> dict[str, JSON]:
    """Return the fields of a message or value as JSON values.

    Raises:
        SchemaError: The class is not declared, or a type variable was left open.
    """
    try:
        return _compiled(type(instance)).write(instance)
    except (marshmallow.ValidationError, RecursionError) as error:
        raise _refusal_to_write(instance, error) from error


def load(cls: type, fields: object) -> Any:
    """Make an instance of a declared class from JSON values, checking them.

    Raises:
        ValidationError: A field is missing, unknown or wrong; the first such is named.
        SchemaError: The class is not declared.
    """
    return _loaded(_compiled(cls), fields)


# Any: an instance of whatever class it is for
def _loaded(compiled: Compiled, fields: object) -> Any:
    try:
        return compiled.load(fields)
    except marshmallow.ValidationError as error:
        raise _explained(compiled.schema.message_name, error, fields) from error
    except RecursionError as error:
        raise ValidationError(
            compiled.schema.message_name, "", "the fields", f"nesting of at most {MAX_NESTING}"
        ) from error


def encode_fields(instance: object) -> bytes:
    """Return the canonical JSON bytes of the fields alone, without envelope."""
    return to_bytes(fields_text(instance), getattr(instance, "message_name", ""))


def decode_fields(name: str, version: int, data: bytes | bytearray | memoryview) -> Message:
    """Read the fields of a message stored without envelope, as today's class.

    Raises:
        ValidationError: The bytes are no JSON, or a field is wrong.
        UnknownMessageError: No message has this name, or the code is older than the payload.
        MigrationError: No chain of upcasters leads to today's version.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValidationError(name, "", data, "bytes")
    return _message(name, version, from_bytes(data, name))


def fields_text(instance: object) -> str:
    """Return the canonical JSON text of the fields alone, to be put into a larger text."""
    try:
        return compiled_for(type(instance)).text(instance)
    except (marshmallow.ValidationError, RecursionError) as error:
        raise _refusal_to_write(instance, error) from error


def from_fields(
    name: str, version: int, fields: object, *, unknown: Literal["raise", "keep"] = "raise"
) -> Message:
    """Make a message of today's class from JSON values read somewhere; see `decode`."""
    try:
        return _message(name, version, fields)
    except UnknownMessageError:
        if unknown != "keep":
            raise
        return UnknownMessage(name=name, version=version, fields=cast("JSON", fields))


def reader_of(name: str, version: int) -> Callable[[object], Message]:
    """Return what makes messages of one name of JSON values, as `from_fields` does, keeping unknown ones.

    For many of them: who reads them, and how, is found out once.
    """
    try:
        cls = message_class(name)
    except UnknownMessageError:
        cls = None
    if cls is None or cls.message_version != version:
        return partial(from_fields, name, version, unknown="keep")
    return partial(_loaded, _compiled(cls))


def _compiled(cls: type) -> Compiled:
    return compiled_for(cls)


def _refusal_to_write(instance: object, error: Exception) -> SchemaError | ValidationError:
    cls = type(instance)
    name = getattr(cls, "message_name", "") or cls.__name__
    if isinstance(error, marshmallow.ValidationError):
        return SchemaError(f"{name} cannot be written; expected is {error.messages}.")
    return ValidationError(name, "", f"a {cls.__name__}", f"nesting of at most {MAX_NESTING}")


def _explained(name: str, error: marshmallow.ValidationError, data: object) -> ValidationError:
    """Name the first wrong field; the others stay in the error this one was raised from."""
    messages: Any = error.messages
    value: Any = data
    path: list[str] = []
    while isinstance(messages, Mapping):
        key, messages = next(iter(messages.items()))
        if key != "_schema":
            path.append(str(key))
            value = _step(value, key)
    rule = str(messages[0]) if isinstance(messages, list) and messages else str(messages)
    return ValidationError(name, ".".join(path), value, _RULES.get(rule, rule))


_RULES = {
    "Missing data for required field.": "a value",
    "Unknown field.": "a known field",
    "Field may not be null.": "a value other than None",
    "Invalid input type.": "an object with the fields",
}


class Nothing:
    def __repr__(self) -> str:
        return "nothing"


def _step(value: Any, key: object) -> object:
    """Follow a path of errors into the data, which may be of any shape."""
    try:
        return value[key]
    except (KeyError, IndexError, TypeError):
        return Nothing()


# -- the envelope ---------------------------------------------------------------------------------


def encode(instance: Message, *, binary: bool = False) -> bytes:
    """Return the bytes of a message with its envelope.

    Equal fields and an equal stamp give equal bytes, in every process and on every Python.

    Args:
        instance: The message, published or not.
        binary: Write deterministic CBOR instead of canonical JSON.

    Raises:
        ValidationError: The message is nested too deep to be read back.
        SchemaError: Its class cannot be written.
    """
    if isinstance(instance, UnknownMessage):
        name, version = instance.name, instance.version
        fields = canonical_text(instance.fields)
    else:
        fields = fields_text(instance)
        name, version = _named(instance)
    meta = "" if instance._stamp is None else f',"meta":{_meta_text(spelled_out(instance._stamp))}'
    text = f'{{"fields":{fields}{meta},"name":{quote(name)},"version":{version}}}'
    data = to_bytes(text, name)
    return compact.pack(from_bytes(data, name)) if binary else data


def _named(instance: object) -> tuple[str, int]:
    if isinstance(instance, Message):
        return instance.message_name, instance.message_version
    cls = type(instance)
    raise SchemaError(
        f"{cls.__module__}.{cls.__qualname__} is no message but a value, which has no name to be "
        f"read back by; write its fields alone, with `encode_fields`, or put it into a message."
    )


def _meta_text(known: Stamp) -> str:
    origin, causation, correlation, run, source, headers, _ = known
    parts = []
    if causation is not None:
        parts.append(f'"causation":{quote(message_id(causation))}')
    parts.append(f'"correlation":{quote(message_id(correlation))}')
    if headers:
        pairs = [f"{quote(key)}:{quote(headers[key])}" for key in sorted(headers)]
        parts.append(f'"headers":{{{",".join(pairs)}}}')
    parts.append(f'"id":{quote(message_id(origin))}')
    if run is not None:
        parts.append(f'"run":{quote(run)}')
    if not isinstance(origin, str):
        parts.append(f'"sequence":{origin[1]}')
    if source is not None:
        parts.append(f'"source":{quote(source)}')
    if not isinstance(origin, str):
        parts.append(f'"time_ns":{origin[2]}')
    return f"{{{','.join(parts)}}}"


def decode(
    data: bytes | bytearray | memoryview, *, unknown: Literal["raise", "keep"] = "raise"
) -> Message:
    """Read a message written by `encode`, in either form, as today's class, with its metadata.

    Args:
        data: The bytes.
        unknown: What to do with a message whose name or version this process does not know:
            raise, or keep it as an `UnknownMessage`.

    Raises:
        ValidationError: The bytes are no message, or a field is wrong.
        UnknownMessageError: No message has this name and version; the text names the nearest.
        MigrationError: No chain of upcasters leads to today's version.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValidationError("message", "", data, "bytes")
    raw = bytes(data)
    is_cbor = len(raw) > 0 and raw[0] >> 5 == _CBOR_MAP
    envelope = compact.unpack(raw) if is_cbor else from_bytes(raw)
    name, version, fields, meta = _opened(envelope)
    made = from_fields(name, version, fields, unknown=unknown)
    if meta is not None:
        stamp(made, _stamp_from(name, meta))
    return made


def _message(name: str, version: int, fields: object) -> Message:
    try:
        cls = message_class(name)
    except UnknownMessageError:
        cls = None
    if cls is None or cls.message_version != version:
        if not isinstance(fields, dict):
            raise ValidationError(name, "", fields, "an object with the fields")
        today, fields = upcast(name, version, fields)
        cls = message_class(today)
    return cast("Message", load(cls, fields))


_CBOR_MAP = 5  # the type in the first three bits; no JSON text begins like that
_ENVELOPE = frozenset({"fields", "meta", "name", "version"})


def _opened(envelope: object) -> tuple[str, int, object, dict[str, Any] | None]:
    if not isinstance(envelope, dict):
        raise ValidationError("message", "", envelope, "an object with name, version and fields")
    for key in envelope:
        if key not in _ENVELOPE:
            raise ValidationError("message", key, envelope[key], "a key of the envelope")
    name, version = envelope.get("name"), envelope.get("version")
    if type(name) is not str:
        raise ValidationError("message", "name", name, "the name of a message type")
    if type(version) is not int:
        raise ValidationError(name, "version", version, "an int")
    if "fields" not in envelope:
        raise ValidationError(name, "fields", Nothing(), "an object with the fields")
    meta = envelope.get("meta")
    if meta is not None and type(meta) is not dict:
        raise ValidationError(name, "meta", meta, "an object with the metadata")
    return name, version, envelope["fields"], meta


_META: Mapping[str, tuple[type, str]] = {
    "causation": (str, "a str"),
    "correlation": (str, "a str"),
    "headers": (dict, "an object of str"),
    "id": (str, "a str"),
    "run": (str, "a str"),
    "sequence": (int, "an int"),
    "source": (str, "a str"),
    "time_ns": (int, "an int"),
}


def _stamp_from(name: str, meta: dict[str, Any]) -> Stamp:
    for key, given in meta.items():
        expected = _META.get(key)
        if expected is None:
            raise ValidationError(name, f"meta.{key}", given, "a known key of the metadata")
        if type(given) is not expected[0]:
            raise ValidationError(name, f"meta.{key}", given, expected[1])
    own = meta.get("id")
    if own is None:
        raise ValidationError(name, "meta.id", Nothing(), "a str")
    headers = meta.get("headers", {})
    for key, given in headers.items():
        if type(given) is not str:
            raise ValidationError(name, f"meta.headers.{key}", given, "a str")
    sequence, time_ns = meta.get("sequence"), meta.get("time_ns")
    origin: Origin = own if sequence is None or time_ns is None else (own, sequence, time_ns)
    return (
        origin,
        meta.get("causation"),
        meta.get("correlation", own),
        meta.get("run"),
        meta.get("source"),
        FrozenDict(headers),
        0,
    )
