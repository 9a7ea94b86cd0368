"""Sample payloads of a message: some that every reader must take, some that it must refuse.

Made from the schema, always the same, and checked against it before they are given out.
"""

from __future__ import annotations

from typing import Any

import marshmallow

from atlas.core.schema import fields as our
from atlas.core.schema.codec import load
from atlas.core.schema.derive import MessageSchema, schema_for
from atlas.errors import ValidationError
from atlas.typing import JSON

__all__ = ["invalid_samples", "valid_samples"]

_MAX_DEPTH = 3

_SCALARS: dict[type, tuple[JSON, ...]] = {
    our.TextField: ("text", "a", "name@example.org", "https://example.org/", "A1", ""),
    our.IntegerField: (1, 0, 10, 100, 1000, -1),
    our.FloatField: (1.5, 0.5, 10.0, 100.0, 0.0, -1.5),
    our.BooleanField: (True, False),
    our.BytesField: ("AQI=", ""),
    our.DatetimeField: ("2026-01-31T12:30:00+00:00",),
    our.DateField: ("2026-01-31",),
    our.TimeField: ("12:30:00",),
    our.TimedeltaField: (1_500_000,),
    our.DecimalField: ("1.50",),
    our.UuidField: ("01890a5d-ac96-774b-bcce-b302099a8057",),
    our.NullField: (None,),
    our.JsonField: ({"key": [1, "text", None]},),
}
_WRONG: tuple[JSON, ...] = (5, "no such value", None, [], {}, 1.5, True, {"$type": "nothing"})


def valid_samples(cls: type) -> list[dict[str, JSON]]:
    """Return payloads of the class: with the required fields only, and with every field."""
    schema = schema_for(cls)
    found: list[dict[str, JSON]] = []
    for every in (False, True):
        made = _object(schema, 0, every=every)
        if made is not None and made not in found and _is_valid(cls, made):
            found.append(made)
    return found


def invalid_samples(cls: type) -> list[dict[str, JSON]]:
    """Return refused payloads, each as ``{"fields": ..., "field": ..., "rule": ...}``."""
    valid = valid_samples(cls)
    if not valid:
        return []
    schema, full = schema_for(cls), valid[-1]
    broken: list[dict[str, JSON]] = [{**full, "no_such_field": 1}]
    for name, field in schema.fields.items():
        if field.required:
            broken.append({key: value for key, value in full.items() if key != name})
        wrong = _refused_by(field)
        if wrong is not _NONE:
            broken.append({**full, name: wrong})
    return [sample for payload in broken if (sample := _refusal(cls, payload)) is not None]


def _is_valid(cls: type, payload: dict[str, JSON]) -> bool:
    try:
        load(cls, payload)
    except ValueError:  # a rule of the class itself, which no schema knows
        return False
    return True


def _refusal(cls: type, payload: dict[str, JSON]) -> dict[str, JSON] | None:
    try:
        load(cls, payload)
    except ValidationError as error:
        return {"fields": payload, "field": error.field, "rule": error.rule}
    return None


_NONE = object()


def _refused_by(field: Any) -> Any:
    for wrong in _WRONG:
        try:
            field.deserialize(wrong)
        except marshmallow.ValidationError:
            return wrong
    return _NONE


def _object(schema: MessageSchema, depth: int, *, every: bool) -> dict[str, JSON] | None:
    made: dict[str, JSON] = {}
    for name, field in schema.fields.items():
        if not field.required and not every:
            continue
        sample = _sample(field, depth)
        if sample is not _NONE:
            made[name] = sample
        elif field.required:
            return None
    return made


def _sample(field: Any, depth: int) -> Any:
    """Return the first candidate that the field takes."""
    for candidate in _candidates(field, depth):
        try:
            field.deserialize(candidate)
        except ValueError:  # a rule of a nested class
            continue
        except marshmallow.ValidationError:
            continue
        return candidate
    return None if field.allow_none else _NONE


def _candidates(field: Any, depth: int) -> list[Any]:
    if depth > _MAX_DEPTH:
        return [[], {}]
    match field:
        case our.ChoiceField():
            return [plain for _, plain in field.choices]
        case our.SequenceField() | our.SetField():
            item = _sample(field.item, depth + 1)
            return [[], []] if item is _NONE else [[item], []]
        case our.PairField():
            return [[_sample(item, depth + 1) for item in field.items]]
        case our.MappingField():
            key, item = _sample(field.key, depth + 1), _sample(field.item, depth + 1)
            return [{}] if item is _NONE else [{str(key): item}, {}]
        case our.ValueField():
            schema: Any = field.schema
            return [_object(schema, depth + 1, every=True), _object(schema, depth + 1, every=False)]
        case our.UnionField():
            return [made for member in field.members for made in _of_member(member, depth)]
        case _:
            return list(_SCALARS[type(field)])


def _of_member(member: our.Member, depth: int) -> list[Any]:
    made = _sample(member.field, depth)
    if made is _NONE:
        return []
    if member.tag is None:
        return [made]
    if isinstance(member.field, our.ValueField):
        return [{our.TAG: member.tag, **made}]
    return [{our.TAG: member.tag, "value": made}]
