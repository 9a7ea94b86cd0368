"""The marshmallow fields of messages: strict where a log needs it, and each value with one form.

marshmallow's own fields take what looks right: ``"7"`` and ``7.2`` for an int, ``"yes"`` for a bool,
enums by name, bytes as text. A log is read back for years, so these take exactly what they write:

=================== ====================================================================
int, bool, str      as they are; an int never from a float or a text
float               a number; NaN and the infinities, where declared, as ``"NaN"`` and so on
bytes               base64 with padding
datetime            ISO 8601 with its offset; date and time likewise
timedelta           whole microseconds
Decimal, UUID       text
Enum, Literal       the value
tuple, frozenset    an array; that of a set is sorted by the text of its items
mapping             an object; keys become text
a declared class    an object; with ``"$type"`` where the annotation leaves the class open
=================== ====================================================================
"""

from __future__ import annotations

import base64
import binascii
import enum
import math
import re
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple
from uuid import UUID

import marshmallow
from marshmallow import fields
from typing_extensions import override

from atlas.core.annotations import Description
from atlas.core.conversions import BIG
from atlas.core.nodes import MAX_DIGITS, FrozenDict, JsonNode, RefusedError
from atlas.core.schema.canonical import canonical_text

__all__ = [
    "TAG",
    "BooleanField",
    "BytesField",
    "ChoiceField",
    "ConvertedField",
    "DateField",
    "DatetimeField",
    "DecimalField",
    "FloatField",
    "IntegerField",
    "JsonField",
    "MappingField",
    "Member",
    "MessageField",
    "NullField",
    "PairField",
    "SequenceField",
    "SetField",
    "TextField",
    "TimeField",
    "TimedeltaField",
    "UnionField",
    "UuidField",
    "ValueField",
]

TAG = "$type"
"""The key that says which class an object is; no field can have this name."""


class MessageField(fields.Field[Any]):
    """What all fields of messages have in common.

    Attributes:
        rule: What is expected, in words.
        kinds: The JSON types that the field reads (``"integer"``, ``"object"``, …).
    """

    rule = "a value"
    kinds: frozenset[str] = frozenset()

    def read(self, value: Any) -> object:
        """Return the value for a JSON value, or raise ``ValueError`` or marshmallow's error."""
        raise NotImplementedError

    def write(self, value: Any) -> object:
        """Return the JSON value for a value that is not None."""
        raise NotImplementedError

    @override
    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> object:
        try:
            return self.read(value)
        except (ValueError, OverflowError, TypeError) as error:
            raise marshmallow.ValidationError(self.rule) from error

    @override
    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> object:
        return None if value is None else self.write(value)


def _expect(value: object, *types: type) -> None:
    if type(value) not in types:
        raise TypeError


class NullField(MessageField):
    """None and nothing else."""

    rule = "None"
    kinds = frozenset({"null"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_none": True})

    @override
    def read(self, value: Any) -> object:
        raise TypeError

    @override
    def write(self, value: Any) -> object:
        return value


class TextField(MessageField):
    """A str."""

    rule = "a str"
    kinds = frozenset({"string"})

    @override
    def read(self, value: Any) -> object:
        _expect(value, str)
        return value

    @override
    def write(self, value: Any) -> object:
        return value


class IntegerField(MessageField):
    """An int of at most 4300 digits; bool is none."""

    rule = "an int"
    kinds = frozenset({"integer"})

    @override
    def read(self, value: Any) -> object:
        _expect(value, int)
        if not -BIG < value < BIG:
            raise ValueError
        return value

    @override
    def write(self, value: Any) -> object:
        return value


class BooleanField(MessageField):
    """A bool."""

    rule = "a bool"
    kinds = frozenset({"boolean"})

    @override
    def read(self, value: Any) -> object:
        _expect(value, bool)
        return value

    @override
    def write(self, value: Any) -> object:
        return value


_SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


class FloatField(MessageField):
    """A float; an int in JSON becomes one. NaN and the infinities only with ``allow_nan``."""

    def __init__(self, *, allow_nan: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.allow_nan = allow_nan
        self.rule: str = "a float" if allow_nan else "a finite float"
        self.kinds = frozenset({"integer", "number"} | ({"string"} if allow_nan else set()))

    @override
    def read(self, value: Any) -> object:
        if self.allow_nan and type(value) is str:
            return _SPECIAL.get(value, 0.0) if value in _SPECIAL else self._refuse()
        _expect(value, float, int)
        made = float(value)
        return made if made * 0.0 == 0.0 else self._refuse()

    @override
    def write(self, value: Any) -> object:
        if value * 0.0 == 0.0:
            return value
        if math.isnan(value):
            return "NaN"
        return "Infinity" if value > 0 else "-Infinity"

    def _refuse(self) -> float:
        raise ValueError


class ConvertedField(MessageField):
    """A value that JSON has no type for: written as text, or as a number for `TimedeltaField`."""

    kinds = frozenset({"string"})


class BytesField(ConvertedField):
    """Bytes, as base64 with padding."""

    rule = "bytes as base64"

    @override
    def read(self, value: Any) -> object:
        return read_bytes(value)

    @override
    def write(self, value: Any) -> object:
        return write_bytes(value)


def read_bytes(value: Any) -> bytes:
    """Decode base64, refusing whatever the encoder would not have written."""
    _expect(value, str)
    made = base64.b64decode(value, validate=True)
    if write_bytes(made) != value:
        raise ValueError
    return made


def write_bytes(value: bytes) -> str:
    """Encode as base64 with padding."""
    return binascii.b2a_base64(value, newline=False).decode("ascii")


DATETIME = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)", re.ASCII
)
_TIME = re.compile(r"\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


class DatetimeField(ConvertedField):
    """A datetime with its offset, in ISO 8601."""

    rule = "a datetime with a time zone, in ISO 8601"

    @override
    def read(self, value: Any) -> object:
        return read_datetime(value)

    @override
    def write(self, value: Any) -> object:
        return value.isoformat()


def read_datetime(value: Any) -> datetime:
    """Read the one ISO form that is written, or the same with ``Z``."""
    _expect(value, str)
    if DATETIME.fullmatch(value) is None:
        raise ValueError
    return datetime.fromisoformat(value)


class DateField(ConvertedField):
    """A date, in ISO 8601."""

    rule = "a date in ISO 8601"

    @override
    def read(self, value: Any) -> object:
        return read_date(value)

    @override
    def write(self, value: Any) -> object:
        return value.isoformat()


def read_date(value: Any) -> date:
    """Read ``2026-01-31``; other ISO forms differ between Pythons."""
    _expect(value, str)
    if _DATE.fullmatch(value) is None:
        raise ValueError
    return date.fromisoformat(value)


class TimeField(ConvertedField):
    """A time of the day, in ISO 8601."""

    rule = "a time in ISO 8601"

    @override
    def read(self, value: Any) -> object:
        return read_time(value)

    @override
    def write(self, value: Any) -> object:
        return value.isoformat()


def read_time(value: Any) -> time:
    """Read ``12:30:00``, with or without fraction and offset."""
    _expect(value, str)
    if _TIME.fullmatch(value) is None:
        raise ValueError
    return time.fromisoformat(value)


_MICROSECOND = timedelta(microseconds=1)


class TimedeltaField(ConvertedField):
    """A duration, in whole microseconds: exact, and comparable in any language."""

    rule = "a duration in whole microseconds"
    kinds = frozenset({"integer"})

    @override
    def read(self, value: Any) -> object:
        return read_timedelta(value)

    @override
    def write(self, value: Any) -> object:
        return value // _MICROSECOND


def read_timedelta(value: Any) -> timedelta:
    """Read whole microseconds."""
    _expect(value, int)
    return timedelta(microseconds=value)


class DecimalField(ConvertedField):
    """A Decimal with all its digits, as text."""

    rule = "a finite Decimal as text"

    @override
    def read(self, value: Any) -> object:
        return read_decimal(value)

    @override
    def write(self, value: Any) -> object:
        return str(value)


def read_decimal(value: Any) -> Decimal:
    """Read the text of a finite Decimal, as `str` writes it."""
    _expect(value, str)
    try:
        made = Decimal(value)
    except InvalidOperation as error:
        raise ValueError from error
    if not made.is_finite() or str(made) != value:
        raise ValueError
    return made


class UuidField(ConvertedField):
    """A UUID, as text."""

    rule = "a UUID as text"

    @override
    def read(self, value: Any) -> object:
        return read_uuid(value)

    @override
    def write(self, value: Any) -> object:
        return str(value)


def read_uuid(value: Any) -> UUID:
    """Read the usual form with hyphens, lower case."""
    _expect(value, str)
    made = UUID(value)
    if str(made) != value:
        raise ValueError
    return made


class ChoiceField(MessageField):
    """One of some values: an enum by value, or the values of a ``Literal``.

    Attributes:
        choices: The Python value for each JSON value, keyed by type and value: 1 is not True.
    """

    def __init__(self, values: Iterable[object], rule: str, **options: Any) -> None:
        super().__init__(**options)
        self.rule = rule
        self.choices = {
            (type(plain), plain): value for value in values for plain in [_plain(value)]
        }
        self.kinds = frozenset(JSON_KIND[cls] for cls, _ in self.choices)
        self.enum: type[enum.Flag] | None = None

    @override
    def read(self, value: Any) -> object:
        _expect(value, str, int, bool, type(None))
        if self.enum is not None and type(value) is int and value >= 0:
            return self.enum(value)
        try:
            return self.choices[type(value), value]
        except KeyError as error:
            raise ValueError from error

    @override
    def write(self, value: Any) -> object:
        return _plain(value)


def _plain(value: object) -> object:
    found = value.value if isinstance(value, enum.Enum) else value
    if isinstance(found, str):
        return str.__str__(found)
    return int(found) if isinstance(found, int) and not isinstance(found, bool) else found


JSON_KIND: dict[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


class SequenceField(MessageField):
    """Any number of items; read as a tuple."""

    rule = "an array"
    kinds = frozenset({"array"})

    def __init__(self, item: fields.Field[Any], **options: Any) -> None:
        super().__init__(**options)
        self.item = item

    @override
    def read(self, value: Any) -> object:
        _expect(value, list)
        return tuple(_each(value, [self.item] * len(value)))

    @override
    def write(self, value: Any) -> object:
        return [_written(self.item, item) for item in value]


class PairField(MessageField):
    """A fixed number of items, each of its own kind; read as a tuple."""

    kinds = frozenset({"array"})

    def __init__(self, items: tuple[fields.Field[Any], ...], **options: Any) -> None:
        super().__init__(**options)
        self.items = items
        self.rule = f"an array of {len(items)}"

    @override
    def read(self, value: Any) -> object:
        _expect(value, list)
        if len(value) != len(self.items):
            raise ValueError
        return tuple(_each(value, self.items))

    @override
    def write(self, value: Any) -> object:
        return [_written(field, item) for field, item in zip(self.items, value, strict=True)]


class SetField(MessageField):
    """A set; an array sorted by the text of its items, in which none comes twice."""

    rule = "an array without repetition"
    kinds = frozenset({"array"})

    def __init__(self, item: fields.Field[Any], **options: Any) -> None:
        super().__init__(**options)
        self.item = item

    @override
    def read(self, value: Any) -> object:
        _expect(value, list)
        made = frozenset(_each(value, [self.item] * len(value)))
        if len(made) != len(value):
            raise ValueError
        return made

    @override
    def write(self, value: Any) -> object:
        return sorted((_written(self.item, item) for item in value), key=canonical_text)


def _written(field: fields.Field[Any], value: object) -> Any:
    return field._serialize(value, None, None)


def _each(values: Iterable[Any], items: Iterable[fields.Field[Any]]) -> list[Any]:
    """Read item by item, collecting errors by place as marshmallow's own lists do."""
    made, errors = [], {}
    for at, (field, value) in enumerate(zip(items, values, strict=True)):
        try:
            made.append(field.deserialize(value))
        except marshmallow.ValidationError as error:
            errors[at] = error.messages
    if errors:
        raise marshmallow.ValidationError(errors)
    return made


class MappingField(MessageField):
    """An object with keys of one kind and values of one kind; read as a `FrozenDict`."""

    rule = "an object"
    kinds = frozenset({"object"})

    def __init__(self, key: MessageField, item: fields.Field[Any], **options: Any) -> None:
        super().__init__(**options)
        self.key = key
        self.item = item

    @override
    def read(self, value: Any) -> object:
        _expect(value, dict)
        made, errors = {}, {}
        for text, item in value.items():
            try:
                key = self.key.deserialize(read_key(self.key, text))
                made[key] = self.item.deserialize(item)
            except marshmallow.ValidationError as error:
                errors[text] = error.messages
        if errors:
            raise marshmallow.ValidationError(errors)
        return FrozenDict(made)

    @override
    def write(self, value: Any) -> object:
        return {str(self.key.write(key)): _written(self.item, item) for key, item in value.items()}


_INTEGER = re.compile(r"0|-?[1-9][0-9]*", re.ASCII)


def read_key(field: MessageField, text: object) -> object:
    """Return what a key field reads for the text of a key: ints are text in JSON."""
    if isinstance(field, IntegerField) and type(text) is str and len(text) <= MAX_DIGITS:
        return int(text) if _INTEGER.fullmatch(text) else text
    return text


class JsonField(MessageField):
    """Any JSON value, made immutable.

    ``loose`` marks the place of a type variable that nobody bound: Python values of any declared
    class may stand there, and are refused when they are written.
    """

    kinds = frozenset(JSON_KIND.values())

    def __init__(self, node: JsonNode, **options: Any) -> None:
        super().__init__(**{**options, "allow_none": True})
        self.node = node
        self.rule = "a JSON value"

    @override
    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> object:
        return self.read(value)

    @override
    def read(self, value: Any) -> object:
        try:
            return JSON_NODE.freeze(value, ())
        except RefusedError as refused:
            raise _nested_error(refused.path, refused.rule) from refused

    @override
    def write(self, value: Any) -> object:
        return write_json(value)


JSON_NODE = JsonNode()
_SCALAR_TYPES = frozenset({type(None), bool, int, float, str})


def write_json(value: Any) -> object:
    """Return a frozen JSON value with plain lists and dicts."""
    if type(value) in _SCALAR_TYPES:
        return value
    if type(value) is tuple:
        return [write_json(item) for item in value]
    if type(value) is FrozenDict:
        return {key: write_json(item) for key, item in value.items()}
    raise marshmallow.ValidationError(
        f"a JSON value: {type(value).__name__} stands where a type variable was left open; "
        f"bind it, as in class Users(Page[User])"
    )


def _nested_error(path: tuple[str, ...], rule: str) -> marshmallow.ValidationError:
    messages: Any = [rule]
    for step in reversed(path):
        messages = {step: messages}
    return marshmallow.ValidationError(messages)


class ValueField(fields.Nested):
    """An instance of a declared class or of a frozen dataclass.

    A subclass of the class in the annotation is written with its name under ``"$type"``, and found
    again among the subclasses when it is read.
    """

    kinds = frozenset({"object"})

    def __init__(
        self,
        cls: type,
        schema: Callable[[], marshmallow.Schema],
        schema_of: Callable[[type], marshmallow.Schema],
        **options: Any,
    ) -> None:
        super().__init__(schema, **options)
        self.cls = cls
        self.rule = f"an object ({cls.__name__})"
        self.schema_of = schema_of
        self._made: marshmallow.Schema | None = None
        self._make = schema

    @property
    def schema(self) -> marshmallow.Schema:
        """The schema of the class."""
        if self._made is None:
            self._made = self._make()
        return self._made

    def find(self, tag: object) -> type | None:
        """Return the class of this wire name: the one of the annotation or a subclass."""
        return find_class(self.cls, tag)

    @override
    def _deserialize(
        self, value: Any, attr: Any, data: Any, partial: Any = None, **kwargs: Any
    ) -> object:
        if type(value) is not dict:
            raise marshmallow.ValidationError(self.rule)
        if TAG not in value:
            return self.schema.load(value)
        cls = self.find(value[TAG])
        if cls is None:
            raise marshmallow.ValidationError(
                {TAG: [f"the name of {self.cls.__name__} or of a subclass"]}
            )
        schema = self.schema if cls is self.cls else self.schema_of(cls)
        return schema.load({key: item for key, item in value.items() if key != TAG})

    @override
    # marshmallow's Field and Nested name the first argument differently
    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        if value is None:
            return None
        if type(value) is self.cls:
            return self.schema.dump(value)
        return {TAG: tag_of(type(value)), **self.schema_of(type(value)).dump(value)}


def tag_of(cls: type) -> str:
    """Return the word that tells a class apart in JSON."""
    described = cls.__dict__.get("__description__")
    return described.name if isinstance(described, Description) else cls.__name__


def find_class(cls: type, tag: object) -> type | None:
    """Look for a wire name in a class and all its subclasses, the newest of equals first."""
    if tag_of(cls) == tag:
        return cls
    subclasses: list[type] = cls.__subclasses__()
    for subclass in reversed(subclasses):
        if "__description__" in subclass.__dict__ or subclass.__subclasses__():
            found = find_class(subclass, tag)
            if found is not None and "__description__" in found.__dict__:
                return found
    return None


class Member(NamedTuple):
    """One member of a union.

    ``tag`` is None for a member that JSON tells apart by itself; ``types`` are the Python types
    that it writes.
    """

    field: Any  # MessageField or ValueField, which have no common base but Field
    types: tuple[type, ...]
    tag: str | None


class UnionField(MessageField):
    """One of several kinds, told apart by the JSON type or, where that is not enough, by a tag.

    Members of declared classes carry ``"$type"`` among their fields; other tagged members are
    wrapped as ``{"$type": ..., "value": ...}``.
    """

    def __init__(self, members: tuple[Member, ...], rule: str, **options: Any) -> None:
        super().__init__(**options)
        self.members = members
        self.rule = rule
        self.kinds = frozenset(
            kind for member in members for kind in member.field.kinds if member.tag is None
        ) | ({"object"} if any(member.tag for member in members) else set())
        self._by_type = {cls: member for member in members for cls in member.types}

    def member_for(self, cls: type) -> Member:
        """Return the member that writes values of this class."""
        for base in cls.__mro__:
            found = self._by_type.get(base)
            if found is not None:
                return found
        raise marshmallow.ValidationError(self.rule)

    def plain_for(self, kind: str) -> list[Member]:
        """Return the untagged members that read a JSON type, the exact ones first."""
        found = [m for m in self.members if m.tag is None and kind in m.field.kinds]
        return sorted(found, key=lambda m: kind == "integer" and isinstance(m.field, FloatField))

    def tagged(self, tag: object) -> tuple[Member, type | None] | None:
        """Return the member that a tag names; with the class, for a declared class."""
        for member in self.members:
            if member.tag is None:
                continue
            if isinstance(member.field, ValueField):
                cls = member.field.find(tag)
                if cls is not None:
                    return member, cls
            elif member.tag == tag:
                return member, None
        return None

    @override
    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> object:
        return self.read(value)

    @override
    def read(self, value: Any) -> object:
        kind = JSON_KIND.get(type(value))
        if kind is None:
            raise marshmallow.ValidationError(self.rule)
        if kind == "object" and TAG in value and any(member.tag for member in self.members):
            return self._read_tagged(value)
        error: marshmallow.ValidationError | None = None
        candidates = self.plain_for(kind)
        for member in candidates:
            try:
                return member.field.deserialize(value)
            except marshmallow.ValidationError as refused:
                error = refused
        if error is not None and len(candidates) == 1:
            raise error
        raise marshmallow.ValidationError(self.rule)

    def _read_tagged(self, value: dict[str, Any]) -> object:
        found = self.tagged(value[TAG])
        if found is None:
            raise _nested_error((TAG,), "the name of a member of the union")
        member, cls = found
        if cls is not None:
            return member.field.deserialize(value)
        if value.keys() != {TAG, "value"}:
            raise marshmallow.ValidationError("an object with the keys $type and value")
        try:
            return member.field.deserialize(value["value"])
        except marshmallow.ValidationError as error:
            raise marshmallow.ValidationError({"value": error.messages}) from error

    @override
    def write(self, value: Any) -> object:
        member = self.member_for(type(value))
        made = _written(member.field, value)
        if member.tag is None:
            return made
        if isinstance(member.field, ValueField):
            return {TAG: tag_of(type(value)), **made}
        return {TAG: member.tag, "value": made}
