"""JSON Schema 2020-12 of a message, made from its marshmallow schema."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

from marshmallow import fields, validate

from atlas.core.schema import fields as our
from atlas.core.schema.canonical import canonical_text
from atlas.core.schema.derive import MessageSchema, Rule, schema_for
from atlas.typing import JSON

__all__ = ["breaking_changes", "json_schema"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(cls: type, *, rules: bool = False) -> dict[str, JSON]:
    """Return the JSON Schema of the fields of a declared class.

    Classes it refers to are under ``$defs``, by their wire names. The schema says what a reader may
    rely on; rules that JSON Schema has no word for stay with the constructor.

    Args:
        cls: The class.
        rules: Whether to name those rules, as ``x-rules``: a published contract does, so that one
            that is added can be told.

    Raises:
        SchemaError: The class is not declared.
    """
    schema = schema_for(cls)
    writer = _Writer(rules=rules)
    body = writer.object(schema)
    name, version = schema.message_name, schema.message_version
    head: dict[str, JSON] = {"$schema": _DIALECT, "title": name}
    if version:
        head["$id"] = f"urn:atlas:message:{name}:{version}"
        head["version"] = version
    if writer.definitions:
        body["$defs"] = dict(sorted(writer.definitions.items()))
    return {**head, **body}


class _Writer:
    """Turns fields into fragments and collects the definitions they refer to."""

    def __init__(self, *, rules: bool) -> None:
        self._rules = rules
        self.definitions: dict[str, JSON] = {}
        self._names: dict[int, str] = {}

    def object(self, schema: MessageSchema) -> dict[str, JSON]:
        """Return the fragment of a whole class."""
        properties: dict[str, JSON] = {}
        for name, field in schema.fields.items():
            fragment = self.field(field)
            default = _default(schema.cls, name)
            if default is not dataclasses.MISSING:
                fragment = {**fragment, "default": _plain(field, default)}
            properties[name] = fragment
        made: dict[str, JSON] = {
            "type": "object",
            "properties": properties,
            "required": [name for name, field in schema.fields.items() if field.required],
            "additionalProperties": False,
        }
        text = inspect.cleandoc(schema.cls.__doc__ or "")
        if text.startswith(f"{schema.cls.__name__}("):
            text = ""  # what a dataclass without a docstring gets is its signature: no words
        return {"description": text, **made} if text else made

    def field(self, field: Any) -> dict[str, JSON]:
        """Return the fragment of a field, its rules and None included."""
        made = self._kind(field)
        for validator in field.validators:
            if isinstance(validator, Rule):
                made = {**made, **_constraints(validator.extras, rules=self._rules)}
        if field.allow_none and not isinstance(field, our.JsonField | our.NullField):
            made = _or_null(made)
        words = field.metadata.get("description")
        return {**made, "description": words} if words else made

    def _kind(self, field: Any) -> dict[str, JSON]:
        match field:
            case our.TimedeltaField():
                return {"type": "integer", "format": "microseconds"}
            case our.FloatField(allow_nan=True):
                return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
            case our.BytesField():
                return {"type": "string", "contentEncoding": "base64"}
            case our.ChoiceField():
                return self._choice(field)
            case our.SequenceField():
                return {"type": "array", "items": self.field(field.item)}
            case our.SetField():
                return {"type": "array", "items": self.field(field.item), "uniqueItems": True}
            case our.PairField():
                items: list[JSON] = [self.field(item) for item in field.items]
                return {
                    "type": "array",
                    "prefixItems": items,
                    "items": False,
                    "minItems": len(items),
                }
            case our.MappingField():
                names = self.field(field.key)
                made: dict[str, JSON] = {
                    "type": "object",
                    "additionalProperties": self.field(field.item),
                }
                if isinstance(field.key, our.IntegerField):
                    return {**made, "propertyNames": {"pattern": "^(0|-?[1-9][0-9]*)$"}}
                return made if names == {"type": "string"} else {**made, "propertyNames": names}
            case our.ValueField():
                return self._reference(field)
            case our.UnionField():
                return {"anyOf": [self._member(member) for member in field.members]}
            case our.JsonField():
                return {}
            case _:
                return dict(_SCALARS[type(field)])

    def _choice(self, field: our.ChoiceField) -> dict[str, JSON]:
        if field.enum is not None:
            return {"type": "integer", "minimum": 0}
        values: list[Any] = [plain for _, plain in field.choices]
        return {"const": values[0]} if len(values) == 1 else {"enum": values}

    def _member(self, member: our.Member) -> JSON:
        if member.tag is None:
            return self.field(member.field)
        if not isinstance(member.field, our.ValueField):
            return {
                "type": "object",
                "properties": {our.TAG: {"const": member.tag}, "value": self.field(member.field)},
                "required": [our.TAG, "value"],
                "additionalProperties": False,
            }
        return self._reference(member.field, tagged=True)

    def _reference(self, field: our.ValueField, *, tagged: bool = False) -> dict[str, JSON]:
        """Refer to a class, and to its subclasses, which are always tagged."""
        found: list[JSON] = [self._define(field.cls, field.schema, tagged=tagged)]
        found += [
            self._define(subclass, field.schema_of(subclass), tagged=True)
            for subclass in _subclasses(field.cls)
        ]
        if len(found) == 1 and isinstance(found[0], dict):
            return found[0]
        return {"anyOf": found}

    def _define(self, cls: type, schema: Any, *, tagged: bool) -> dict[str, JSON]:
        name = self._name_of(cls, schema) + ("+type" if tagged else "")
        if name not in self.definitions:
            self.definitions[name] = {}  # taken first: classes may refer to themselves
            body = self.object(schema)
            self.definitions[name] = _tagged(body, our.tag_of(cls)) if tagged else body
        return {"$ref": f"#/$defs/{name}"}

    def _name_of(self, cls: type, schema: Any) -> str:
        """Name a definition by the wire name; classes that share one are numbered."""
        # A declared class has one schema, or one for each use of a generic one; a plain dataclass has a
        # new one wherever it is named, within itself too.
        key = id(schema if "__description__" in cls.__dict__ else cls)
        known = self._names.get(key)
        if known is None:
            known = base = our.tag_of(cls)
            number = 1
            while known in self._names.values():
                number += 1
                known = f"{base}.{number}"
            self._names[key] = known
        return known


_SCALARS: Mapping[type, Mapping[str, JSON]] = {
    our.NullField: {"type": "null"},
    our.TextField: {"type": "string"},
    our.IntegerField: {"type": "integer"},
    our.BooleanField: {"type": "boolean"},
    our.FloatField: {"type": "number"},
    our.DatetimeField: {"type": "string", "format": "date-time"},
    our.DateField: {"type": "string", "format": "date"},
    our.TimeField: {"type": "string", "format": "time"},
    our.DecimalField: {"type": "string", "format": "decimal"},
    our.UuidField: {"type": "string", "format": "uuid"},
}


def _subclasses(cls: type) -> list[type]:
    """Return the declared classes that can be imported and stand where this one is expected."""
    found: dict[str, type] = {}
    direct: list[type] = cls.__subclasses__()
    for subclass in direct:
        if "__description__" in subclass.__dict__ and "<locals>" not in subclass.__qualname__:
            found[our.tag_of(subclass)] = subclass
        found.update((our.tag_of(deeper), deeper) for deeper in _subclasses(subclass))
    return [found[name] for name in sorted(found)]


def _tagged(body: dict[str, Any], tag: str) -> dict[str, JSON]:
    return {
        **body,
        "properties": {our.TAG: {"const": tag}, **body["properties"]},
        "required": [our.TAG, *body["required"]],
    }


def _or_null(made: dict[str, JSON]) -> dict[str, JSON]:
    kind = made.get("type")
    if isinstance(kind, str) and "enum" not in made:
        return {**made, "type": [kind, "null"]}
    members = made.get("anyOf")
    if isinstance(members, list) and len(made) == 1:
        return {"anyOf": [*members, {"type": "null"}]}
    return {"anyOf": [made, {"type": "null"}]}


_RULES = "x-rules"


def _constraints(extras: tuple[object, ...], *, rules: bool) -> dict[str, JSON]:
    """Translate the validators that JSON Schema has words for, and name the others if asked to."""
    made: dict[str, Any] = {}
    for extra in extras:
        match extra:
            case validate.Range():
                low = "minimum" if extra.min_inclusive else "exclusiveMinimum"
                high = "maximum" if extra.max_inclusive else "exclusiveMaximum"
                _tighten(made, low, extra.min, max)
                _tighten(made, high, extra.max, min)
            case validate.Length():
                exact = extra.equal
                _tighten(made, "minLength", extra.min if exact is None else exact, max)
                _tighten(made, "maxLength", extra.max if exact is None else exact, min)
            case validate.OneOf():
                made["enum"] = list(extra.choices)
            case validate.Regexp() if isinstance(extra.regex.pattern, str):
                made["pattern"] = f"^{extra.regex.pattern.removeprefix('^')}"
            case _ if rules:
                made[_RULES] = [*made.get(_RULES, []), _rule_name(extra)]
            case _:
                pass
    return made


def _tighten(made: dict[str, Any], key: str, bound: Any, choose: Callable[..., Any]) -> None:
    """Note a bound; of several rules that give one, the tighter counts."""
    if bound is not None:
        made[key] = bound if key not in made else choose(made[key], bound)


def _rule_name(rule: object) -> str:
    if isinstance(rule, validate.Validator):
        return repr(rule)  # tells what it is made with
    named = rule if hasattr(rule, "__qualname__") else type(rule)
    return f"{named.__module__}.{named.__qualname__}"


def _default(cls: type, name: str) -> Any:
    described: Any = cls.__dict__.get("__description__")  # absent in a plain dataclass
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    if described is None or field.default is dataclasses.MISSING:
        return field.default
    return described.nodes[name].freeze(field.default, ())


def _plain(field: fields.Field[Any], value: object) -> Any:
    return field._serialize(value, None, None)


# -- compatibility --------------------------------------------------------------------------------

_ANNOTATIONS = frozenset(
    {"$id", "$schema", "$defs", "title", "description", "default", "version", "examples"}
)


def breaking_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return why payloads of the old JSON Schema may not be read by the new one; empty: they may.

    Conservative: a change it does not understand counts as breaking.
    """
    return _Comparison(old, new).fragment(old, new, "")


class _Comparison:
    def __init__(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        self._old_definitions = old.get("$defs", {})
        self._new_definitions = new.get("$defs", {})
        self._seen: set[tuple[str, str]] = set()

    def fragment(self, old: Any, new: Any, path: str) -> list[str]:
        """Compare two fragments; ``path`` is where they stand."""
        where = path or "the message"
        if isinstance(old, bool) or isinstance(new, bool):
            return [] if old == new or new is True else [f"{where} takes less than before"]
        if "$ref" in old and "$ref" in new:
            pair = old["$ref"], new["$ref"]
            if pair in self._seen:
                return []
            self._seen.add(pair)
        old, new = _resolved(old, self._old_definitions), _resolved(new, self._new_definitions)
        if "anyOf" in old or "anyOf" in new:
            return self._alternatives(old, new, path)
        # Bytes, moments and the like are text in JSON: where they become plain text, or anything, the
        # old payloads are read, but as something else.
        found = [
            f"{where} has another {key}: {old[key]!r}, now {new.get(key)!r}"
            for key in sorted(old.keys() & _MEANINGS)
            if key not in new
        ]
        if not new.keys() - _ANNOTATIONS:
            return found
        found += _kinds_lost(old, new, where)
        found += [
            f"{where} has another {key}: {old.get(key)!r}, now {new[key]!r}"
            for key in sorted(new.keys() - _ANNOTATIONS - _COMPARED)
            if _is_narrower(key, old.get(key), new[key])
        ]
        return [*found, *self._properties(old, new, path), *self._items(old, new, path)]

    def _alternatives(self, old: Any, new: Any, path: str) -> list[str]:
        """Each alternative of before must be taken by one of now."""
        now = [kind for member in new.get("anyOf", [new]) for kind in _split(member)]
        return [
            f"{path or 'the message'} no longer takes {_short(kind)}"
            for member in old.get("anyOf", [old])
            for kind in _split(member)
            if all(self._would_break(kind, other, path) for other in now)
        ]

    def _would_break(self, old: Any, new: Any, path: str) -> bool:
        before = set(self._seen)
        broken = bool(self.fragment(old, new, path))
        if broken:
            self._seen = before
        return broken

    def _properties(self, old: Any, new: Any, path: str) -> list[str]:
        before, now = old.get("properties", {}), new.get("properties", {})
        added = sorted(set(new.get("required", ())) - set(old.get("required", ())))
        found = [f"{_join(path, name)} is now required" for name in added]
        for name, fragment in before.items():
            if name not in now:
                found.append(f"{_join(path, name)} is gone")
            else:
                found += self.fragment(fragment, now[name], _join(path, name))
                found += _default_changed(fragment, now[name], _join(path, name))
        return found

    def _items(self, old: Any, new: Any, path: str) -> list[str]:
        found = []
        for key in ("items", "additionalProperties", "propertyNames"):
            if key in new:
                found += self.fragment(old.get(key, True), new[key], _join(path, "*"))
        before, now = old.get("prefixItems", []), new.get("prefixItems", [])
        if len(before) != len(now):
            found.append(f"{path} had {len(before)} places and has {len(now)}")
        for at, (was, becomes) in enumerate(zip(before, now, strict=False)):
            found += self.fragment(was, becomes, _join(path, str(at)))
        return found


_MEANINGS = frozenset({"contentEncoding", "format"})
_LOWEST = frozenset({"minimum", "exclusiveMinimum", "minLength", "minItems"})
_HIGHEST = frozenset({"maximum", "exclusiveMaximum", "maxLength"})


def _is_narrower(key: str, old: Any, new: Any) -> bool:
    if old is None or old == new:
        return bool(old != new)
    if key == _RULES:
        return not set(new) <= set(old)
    return bool(new > old if key in _LOWEST else new < old if key in _HIGHEST else True)


def _default_changed(old: Any, new: Any, path: str) -> list[str]:
    """Payloads that leave the field out would mean something else."""
    if "default" not in old or "default" not in new:
        return []
    before, now = canonical_text(old["default"]), canonical_text(new["default"])
    return [] if before == now else [f"{path} has another default: {before}, now {now}"]


_COMPARED = frozenset(
    {
        "type",
        "enum",
        "const",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "propertyNames",
        "prefixItems",
    }
)


def _resolved(fragment: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = fragment.get("$ref")
    if reference is None:
        return fragment
    found: Mapping[str, Any] = definitions.get(reference.removeprefix("#/$defs/"), {"not": {}})
    return found


def _kinds_lost(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> list[str]:
    found = []
    before, now = _types(old), _types(new)
    values, allowed = _values(old), _values(new)
    if now is not None and before is not None and allowed is None:
        lost = {
            kind
            for kind in before
            if kind not in now and not (kind == "integer" and "number" in now)
        }
        if lost:
            found.append(f"{where} no longer takes {', '.join(sorted(lost))}")
    elif now is not None and before is None:
        found.append(f"{where} took anything and now only {', '.join(sorted(now))}")
    if allowed is not None:
        gone = ["anything else"] if values is None else [v for v in values if v not in allowed]
        if gone:
            found.append(f"{where} no longer takes {', '.join(map(repr, gone))}")
    return found


def _types(fragment: Mapping[str, Any]) -> set[str] | None:
    kind = fragment.get("type")
    if kind is not None:
        return {kind} if isinstance(kind, str) else set(kind)
    values = _values(fragment)
    return None if values is None else {_KINDS[type(value)] for value in values}


_KINDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
    list: "array",
    dict: "object",
}


def _values(fragment: Mapping[str, Any]) -> list[Any] | None:
    if "const" in fragment:
        return [fragment["const"]]
    return fragment.get("enum")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _split(fragment: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Take a list of types apart, so that its members can find their places one by one."""
    kinds = fragment.get("type")
    if not isinstance(kinds, list):
        return [fragment]
    return [{**fragment, "type": kind} for kind in kinds]


def _short(fragment: Mapping[str, Any]) -> str:
    return str(fragment.get("$ref") or fragment.get("type") or fragment)
