"""From a declared class to its marshmallow schema.

The schema is the one description of how a message is written and read; the compiled form
(`atlas.core.schema.compiled`) is a faster way of doing the same. Fields of builtin types come from
marshmallow-dataclass, with our own table of types; where that library is wrong without saying so, or
gives up (unions, enums, literals, sets, ``Annotated``, generics), the fields are made here. This is
the only module that imports it.
"""

from __future__ import annotations

import dataclasses
import enum
import threading
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, ClassVar, cast
from uuid import UUID

import marshmallow
import marshmallow_dataclass
from marshmallow import fields

from atlas.core import nodes
from atlas.core.annotations import description_of
from atlas.core.nodes import Node, RefusedError, RuleNode
from atlas.core.schema import fields as our
from atlas.errors import SchemaError

__all__ = ["MessageSchema", "Rule", "schema_for"]


class MessageSchema(marshmallow.Schema):
    """The schema of a declared class: strict about unknown fields, and it makes the instance.

    Attributes:
        cls: The class that is made.
        message_name: Its wire name.
        message_version: Its version; 0 for a value.
    """

    # marshmallow declares it on the instance, and both libraries read it from the class
    TYPE_MAPPING: ClassVar[dict[type, type[fields.Field[Any]]]] = {  # type: ignore[misc]
        str: our.TextField,
        int: our.IntegerField,
        float: our.FloatField,
        bool: our.BooleanField,
        bytes: our.BytesField,
        datetime: our.DatetimeField,
        date: our.DateField,
        time: our.TimeField,
        timedelta: our.TimedeltaField,
        Decimal: our.DecimalField,
        UUID: our.UuidField,
    }

    cls: ClassVar[Any]  # the class made, known only when the schema is derived
    message_name: ClassVar[str] = ""
    message_version: ClassVar[int] = 0

    class Meta:
        """Unknown fields are errors: a log that says more than its schema is misread."""

        unknown = marshmallow.RAISE

    @marshmallow.post_load
    def make(self, data: dict[str, Any], **_options: Any) -> object:
        """Make the instance; fields that were not given get their defaults."""
        return self.cls(**data)


_lock = threading.RLock()


def schema_for(cls: type) -> MessageSchema:
    """Return the marshmallow schema of a class declared with ``@message`` or ``@value``.

    Derived on first use and kept with the class. Safe to call from any thread.

    Raises:
        SchemaError: The class is not declared, or two members of a union cannot be told apart.
    """
    return _schema_of(cls, ())


def _schema_of(
    cls: type,
    arguments: tuple[object, ...],
    fields_of: Callable[[], tuple[tuple[str, Node], ...]] | None = None,
) -> MessageSchema:
    """Return the schema of a declared class, generic ones by what they are used with."""
    described = description_of(cls)
    key = ("schema", arguments)
    found: MessageSchema | None = described.derived.get(key)
    if found is not None:
        return found
    with _lock:
        found = described.derived.get(key)
        if found is None:
            required = {spec.name for spec in described.fields if spec.required}
            named = tuple(described.nodes.items()) if fields_of is None else fields_of()
            found = described.derived[key] = _make_schema(cls, named, required)
        return found


def _make_schema(
    cls: type, named: tuple[tuple[str, Node], ...], required: set[str]
) -> MessageSchema:
    described: Any = cls.__dict__.get("__description__")  # absent in a plain dataclass
    members = {
        name: _field(node, _Place(cls, name), required=name in required) for name, node in named
    }
    made: Any = type(f"{cls.__name__}Schema", (MessageSchema,), members)
    # Set afterwards, because a field may have any of these names.
    made.cls = cls
    made.message_name = described.name if described else cls.__name__
    made.message_version = described.version if described else 0
    made.__doc__, made.__module__ = cls.__doc__, cls.__module__
    return cast("MessageSchema", made())


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where a field belongs, for errors."""

    cls: type
    name: str

    def refuse(self, why: str) -> SchemaError:
        return SchemaError(
            f"{self.cls.__module__}.{self.cls.__qualname__}.{self.name} cannot be written: {why}."
        )


def _field(node: Node, place: _Place, **options: Any) -> Any:  # one of many classes of fields
    """Return the field for a node."""
    if isinstance(node, RuleNode):
        made = _field(node.inner, place, **options)
        made.validators.append(Rule(node))
        words = [extra for extra in node.extras if isinstance(extra, str)]
        if words:
            made.metadata["description"] = " ".join(words)
        return made
    if isinstance(node, nodes.UnionNode):
        return _union(node, place, options)
    return _plain_field(node, place, options)


def _plain_field(node: Node, place: _Place, options: dict[str, Any]) -> Any:
    match node:
        case nodes.ScalarNode(kind="none"):
            return our.NullField(**options)
        case nodes.ScalarNode(kind="any_float"):
            return our.FloatField(allow_nan=True, **options)
        case nodes.ScalarNode():
            return _from_marshmallow_dataclass(node.type, options)
        case nodes.EnumNode():
            return _enum(node.cls, node.rule, options)
        case nodes.LiteralNode():
            return our.ChoiceField(node.values, node.rule, **_allowing_none(node, options))
        case nodes.SequenceNode():
            return our.SequenceField(_field(node.item, place), **options)
        case nodes.PairNode():
            items = tuple(_field(item, place) for item in node.items)
            return our.PairField(items, **options)
        case nodes.SetNode():
            return our.SetField(_field(node.item, place), **options)
        case nodes.MappingNode():
            return our.MappingField(_field(node.key, place), _field(node.item, place), **options)
        case nodes.JsonNode():
            return our.JsonField(node, **options)
        case nodes.ClassNode() | nodes.DataclassNode():
            return our.ValueField(node.cls, _schema_of_node(node), schema_for, **options)
        case _:
            raise place.refuse(f"nothing is known of {type(node).__name__}")


def _from_marshmallow_dataclass(cls: type, options: dict[str, Any]) -> fields.Field[Any]:
    # its own default for `required` is True, and its field for a bare type is in our table
    return marshmallow_dataclass.field_for_schema(
        cls, metadata={"required": False, **options}, base_schema=MessageSchema
    )


def _enum(cls: type[enum.Enum], rule: str, options: dict[str, Any]) -> our.ChoiceField:
    field = our.ChoiceField(cls.__members__.values(), rule, **options)
    field.enum = cls if issubclass(cls, enum.Flag) else None
    return field


def _allowing_none(node: nodes.LiteralNode, options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "allow_none": True} if None in node.values else options


def _schema_of_node(
    node: nodes.ClassNode | nodes.DataclassNode,
) -> Callable[[], marshmallow.Schema]:
    if isinstance(node, nodes.DataclassNode):
        return lambda: _make_schema(node.cls, node.fields(), _required_of(node.cls))
    if not node.arguments:
        return lambda: schema_for(node.cls)
    return lambda: _schema_of(node.cls, node.arguments, node.fields)


def _required_of(cls: Any) -> set[str]:  # a dataclass, for which typing has no name
    return {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


class Rule:
    """The rules of an ``Annotated`` field as one marshmallow validator.

    Attributes:
        extras: Everything that stood in the annotation behind the type.
    """

    def __init__(self, node: RuleNode) -> None:
        self.node = node
        self.extras = node.extras

    def __call__(self, value: object) -> None:
        """Raise marshmallow's error if a rule says no."""
        try:
            self.node.check(value, ())
        except RefusedError as refused:
            raise marshmallow.ValidationError(refused.rule) from refused


# -- unions ---------------------------------------------------------------------------------------

_NATURAL = frozenset({"str", "int", "float", "bool", "none", "any_float"})


def _union(node: nodes.UnionNode, place: _Place, options: dict[str, Any]) -> Any:
    members = [member for member in node.members if member is not nodes.NONE]
    if len(members) < len(node.members):
        options = {**options, "allow_none": True}
    if len(members) == 1:
        return _field(members[0], place, **options)
    made = [(member, _field(member, place)) for member in members]
    return our.UnionField(tuple(_members(made, place)), node.rule, **options)


def _members(made: list[tuple[Node, Any]], place: _Place) -> list[our.Member]:
    """Decide which members need a tag: those whose JSON type another member has too."""
    wanted = {id(field) for node, field in made if _clashes(node, field, made)}
    wraps = any(id(field) in wanted and not isinstance(field, our.ValueField) for _, field in made)
    members = []
    for node, field in made:
        needs_tag = id(field) in wanted or (wraps and "object" in field.kinds)
        members.append(our.Member(field, _types(node), _tag(node) if needs_tag else None))
    tags = [member.tag for member in members if member.tag is not None]
    for tag in tags:
        if tags.count(tag) > 1:
            raise place.refuse(
                f"two members of the union would both be tagged {tag!r} in JSON; "
                f"wrap one of them in a @value class of its own"
            )
    return members


def _clashes(node: Node, field: Any, made: list[tuple[Node, Any]]) -> bool:
    """Whether another member reads the same JSON type; natural scalars and literals stay plain."""
    if _is_natural(node):
        return False
    return any(other is not field and field.kinds & other.kinds for _, other in made)


def _is_natural(node: Node) -> bool:
    if isinstance(node, RuleNode):
        return _is_natural(node.inner)
    if isinstance(node, nodes.LiteralNode):
        return not any(isinstance(value, enum.Enum) for value in node.values)
    return isinstance(node, nodes.ScalarNode) and node.kind in _NATURAL


def _types(node: Node) -> tuple[type, ...]:
    """Return the Python types of the frozen values of a node."""
    match node:
        case RuleNode():
            return _types(node.inner)
        case nodes.ScalarNode():
            return (node.type,)
        case nodes.LiteralNode():
            return tuple({type(value) for value in node.values})
        case nodes.SequenceNode() | nodes.PairNode():
            return (tuple,)
        case nodes.SetNode():
            return (frozenset,)
        case nodes.MappingNode():
            return (nodes.FrozenDict,)
        case nodes.EnumNode() | nodes.ClassNode() | nodes.DataclassNode():
            return (node.cls,)
        case _:
            return ()


_CONTAINER_TAGS: Mapping[type[Node], str] = {
    nodes.SequenceNode: "tuple",
    nodes.PairNode: "tuple",
    nodes.SetNode: "set",
    nodes.MappingNode: "mapping",
}


def _tag(node: Node) -> str:
    match node:
        case RuleNode():
            return _tag(node.inner)
        case nodes.ScalarNode():
            return node.kind
        case nodes.EnumNode():
            return node.cls.__name__
        case nodes.LiteralNode():
            return "literal"
        case nodes.ClassNode() | nodes.DataclassNode():
            return our.tag_of(node.cls)
        case _:
            return _CONTAINER_TAGS[type(node)]
