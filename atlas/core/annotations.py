"""What the annotation of a field means: from ``tuple[int, ...]`` to a `Node`, and what is refused.

`Description` holds what is known of a class made by `message` or `value`. This module imports
neither marshmallow nor anything else that is slow to load: classes are described whenever a module
with messages is imported.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NoReturn, TypeVar

from atlas.core.nodes import (
    ALLOW_NAN,
    ANY_FLOAT,
    JSON_KINDS,
    SCALARS,
    AnyNode,
    ClassNode,
    DataclassNode,
    EnumNode,
    JsonNode,
    LiteralNode,
    MappingNode,
    Node,
    PairNode,
    RuleNode,
    ScalarNode,
    SequenceNode,
    SetNode,
    UnionNode,
)
from atlas.errors import SchemaError
from atlas.typing import JSON

__all__ = ["Description", "FieldSpec", "Scope", "UnresolvedError", "describe", "description_of"]


class UnresolvedError(Exception):
    """An annotation names something that does not exist yet."""


def description_of(cls: type) -> Description:
    """Return the description of a declared class.

    Raises:
        SchemaError: The class itself is not declared with ``@message`` or ``@value``.
    """
    given: object = cls
    if not isinstance(given, type):
        raise SchemaError(f"{given!r} is no class; give one that has @message or @value above it.")
    found = cls.__dict__.get("__description__")
    if not isinstance(found, Description):
        raise SchemaError(
            f"{cls.__module__}.{cls.__qualname__} is not declared; put @message or @value above it."
        )
    return found


# -- described classes ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a described class, with its default as the user gave it."""

    name: str
    annotation: object
    owner: type
    default: object
    factory: Callable[[], object] | None
    kw_only: bool
    compared: bool
    shown: bool
    metadata: Mapping[Any, Any]

    @property
    def required(self) -> bool:
        """Whether the field must be given."""
        return self.default is dataclasses.MISSING and self.factory is None


class Description:
    """What Atlas knows of a class made by `message` or `value`.

    Annotations that name what does not exist yet are resolved when they are first needed.

    Attributes:
        cls: The class.
        kind: Whether it is a message or a value.
        name: Its wire name.
        version: Its version; 0 for a value.
        fields: Its fields, in order.
        derived: What other modules made from it and keep with the class, by their own keys.
    """

    def __init__(
        self,
        cls: type,
        *,
        kind: Literal["message", "value"],
        name: str,
        version: int,
        fields: tuple[FieldSpec, ...],
        frame: types.FrameType,
    ) -> None:
        self.cls = cls
        self.kind = kind
        self.name = name
        self.version = version
        self.fields = fields
        self.derived: dict[Any, Any] = {}
        # Held only until all names are found: a frame keeps everything in it alive.
        self._frame = None if frame.f_locals is frame.f_globals else frame
        self._globals = frame.f_globals
        self._kept: Mapping[str, object] = {}
        self._nodes: dict[str, Node] | None = None

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The node of each field, by name, in the order of the fields."""
        if self._nodes is None:
            try:
                self._resolve()
            except UnresolvedError as error:
                raise SchemaError(
                    f"{self.cls.__module__}.{self.cls.__qualname__} has an annotation that names "
                    f"what does not exist: {error}. Define or import it before the first "
                    f"{self.cls.__name__} is made."
                ) from error
        return typing.cast("Mapping[str, Node]", self._nodes)

    def try_to_resolve(self) -> bool:
        """Describe the fields if all the names in their annotations exist by now."""
        try:
            self._resolve()
        except UnresolvedError:
            return False
        return True

    def specialised(
        self, arguments: tuple[object, ...], scope: Scope
    ) -> tuple[tuple[str, Node], ...]:
        """Return the fields with the class's type variables replaced by these annotations."""
        parameters = getattr(self.cls, "__parameters__", ())
        given = {
            variable: argument if isinstance(argument, _Bound) else _Bound(argument, scope)
            for variable, argument in zip(parameters, arguments, strict=False)
        }
        return tuple(self._describe(given)) if given else tuple(self.nodes.items())

    def _resolve(self) -> None:
        self._nodes = dict(self._describe({}))
        names = self._names()
        used = {
            word
            for spec in self.fields
            if isinstance(spec.annotation, str)
            for word in re.findall(r"\w+", spec.annotation)
        }
        self._kept = {name: names[name] for name in used & set(names)}
        self._frame = None

    def _names(self) -> Mapping[str, object]:
        return self._kept if self._frame is None else self._frame.f_locals

    def _describe(self, variables: Mapping[object, object]) -> Iterable[tuple[str, Node]]:
        inherited = _inherited_variables(self.cls, variables)
        for spec in self.fields:
            described = spec.owner.__dict__.get("__description__", self)
            module = sys.modules.get(spec.owner.__module__, types)
            scope = Scope(
                cls=self.cls,
                field=spec.name,
                globals=described._globals if described.cls is spec.owner else vars(module),
                locals={
                    **described._names(),
                    spec.owner.__name__: spec.owner,
                    self.cls.__name__: self.cls,
                },
                variables=inherited.get(spec.owner, variables),
                loose=self.kind == "value",
            )
            yield spec.name, describe(spec.annotation, scope)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Bound:
    """An annotation together with the place it was written in."""

    annotation: object
    scope: Scope


def _inherited_variables(
    cls: type, variables: Mapping[object, object]
) -> dict[type, Mapping[object, object]]:
    """Follow ``class Users(Page[User])``: what the variables of each base stand for."""
    found: dict[type, Mapping[object, object]] = {cls: variables}
    pending = [cls]
    while pending:
        current = pending.pop()
        for base in current.__dict__.get("__orig_bases__", ()):
            origin = typing.get_origin(base)
            if not isinstance(origin, type) or origin is typing.Generic:
                continue
            outer = found[current]
            arguments = [outer.get(item, item) for item in typing.get_args(base)]
            parameters = getattr(origin, "__parameters__", ())
            found[origin] = dict(zip(parameters, arguments, strict=False))
            pending.append(origin)
    return found


# -- from annotation to node ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """Where an annotation was written: for looking names up and for telling where it is wrong."""

    cls: type
    field: str
    globals: Mapping[str, object]
    locals: Mapping[str, object]
    variables: Mapping[object, object]
    loose: bool = False

    def refuse(self, annotation: object, why: str, mend: str) -> NoReturn:
        """Raise the `SchemaError` for an annotation that has no description."""
        shown = annotation if isinstance(annotation, str) else _shown(annotation)
        raise SchemaError(
            f"{self.cls.__module__}.{self.cls.__qualname__}.{self.field} is annotated {shown}, "
            f"{why}. {mend}"
        )


def _shown(annotation: object) -> str:
    return annotation.__name__ if type(annotation) is type else repr(annotation)


def describe(annotation: object, scope: Scope) -> Node:
    """Return what an annotation takes.

    Raises:
        SchemaError: The annotation cannot be checked, frozen or written to a log.
        UnresolvedError: It names something that does not exist yet.
    """
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return JsonNode() if annotation == JSON else describe(_evaluate(annotation, scope), scope)
    if isinstance(annotation, _Bound):
        return describe(annotation.annotation, annotation.scope)
    try:
        known = SCALARS.get(annotation)
    except TypeError:  # Literal[[]] and the like are not hashable
        known = None
    if known is not None:
        return known
    origin = typing.get_origin(annotation)
    if origin is not None:
        return _describe_form(annotation, origin, typing.get_args(annotation), scope)
    if isinstance(annotation, TypeVar):
        return _describe_variable(annotation, scope)
    if hasattr(annotation, "__supertype__"):  # NewType
        return describe(annotation.__supertype__, scope)
    if hasattr(annotation, "__value__"):  # type X = ...
        return _describe_alias(annotation, (), scope)
    if isinstance(annotation, type):
        return _describe_class(annotation, scope)
    if annotation is typing.Self:
        return describe(scope.cls, scope)
    if annotation is typing.LiteralString:
        return SCALARS[str]
    return _refuse_form(annotation, scope)


def _evaluate(text: str, scope: Scope) -> object:
    """Evaluate the text of an annotation, which is code of the module that holds the class."""
    try:
        return eval(text, dict(scope.globals), dict(scope.locals))  # noqa: S307  # as typing does
    except NameError as error:
        raise UnresolvedError(f"{scope.field}: {text} ({error})") from error
    except Exception as error:
        raise SchemaError(
            f"{scope.cls.__module__}.{scope.cls.__qualname__}.{scope.field} is annotated {text!r}, "
            f"which cannot be evaluated ({error}). Write an annotation that is valid at run time."
        ) from error


_SEQUENCES = {list, collections.abc.Sequence, collections.abc.MutableSequence}
_SETS = {set, frozenset, collections.abc.Set, collections.abc.MutableSet}
_MAPPINGS = {dict, collections.abc.Mapping, collections.abc.MutableMapping}


def _describe_form(
    annotation: object, origin: object, arguments: tuple[Any, ...], scope: Scope
) -> Node:
    if origin is typing.Annotated:
        return _describe_annotated(arguments[0], tuple(arguments[1:]), scope)
    if origin in (typing.Union, types.UnionType):
        return _describe_union(annotation, arguments, scope)
    if origin is Literal:
        return _describe_literal(annotation, arguments, scope)
    if origin in (typing.Final, typing.ClassVar):
        return describe(arguments[0], scope)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return SequenceNode(describe(arguments[0], scope))
        return PairNode(tuple(describe(item, scope) for item in arguments))
    if origin in _SEQUENCES:
        return SequenceNode(describe(arguments[0], scope))
    if origin in _SETS:
        return _describe_set(annotation, arguments[0], scope)
    if origin in _MAPPINGS:
        return _describe_mapping(annotation, arguments, scope)
    if hasattr(origin, "__value__"):
        return _describe_alias(origin, arguments, scope)
    if isinstance(origin, type) and "__description__" in origin.__dict__:
        described = description_of(origin)
        bound = tuple(_bound(argument, scope) for argument in arguments)
        return ClassNode(origin, lambda: described.specialised(bound, scope), bound)
    return _refuse_form(annotation, scope)


def _bound(argument: object, scope: Scope) -> object:
    """Return what an argument of a generic class stands for here, a class itself if it is one."""
    if isinstance(argument, TypeVar):
        argument = scope.variables.get(argument, argument)
    if isinstance(argument, _Bound) and isinstance(argument.annotation, type):
        return argument.annotation
    return argument


def _describe_annotated(inner: object, extras: tuple[object, ...], scope: Scope) -> Node:
    if ALLOW_NAN in extras:
        if inner is not float:
            scope.refuse(inner, "which has no NaN", "Leave ALLOW_NAN to fields of type float.")
        node: Node = ANY_FLOAT
    else:
        node = describe(inner, scope)
    for extra in extras:
        if type(extra).__module__.partition(".")[0] in _FOREIGN_RULES:
            scope.refuse(
                inner,
                f"with the rule {extra!r} of another library, which nobody would check",
                "Use a validator of marshmallow, or a function that raises ValueError.",
            )
    rest = tuple(extra for extra in extras if extra is not ALLOW_NAN)
    return RuleNode(node, rest) if rest else node


_FOREIGN_RULES = frozenset({"annotated_types", "pydantic", "msgspec"})


def _describe_union(annotation: object, arguments: tuple[object, ...], scope: Scope) -> Node:
    members: list[Node] = []
    for argument in arguments:
        node = describe(argument, scope)
        members.extend(node.members if isinstance(node, UnionNode) else [node])
    if any(isinstance(member, JsonNode) for member in members):
        if all(isinstance(member, JsonNode) or _is_json(member) for member in members):
            return JsonNode()
        scope.refuse(
            annotation,
            "a union of JSON with something that looks the same in JSON",
            "Wrap one of the two in a @value class.",
        )
    return UnionNode(tuple(members))


def _is_json(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.kind in JSON_KINDS


def _describe_literal(annotation: object, arguments: tuple[object, ...], scope: Scope) -> Node:
    for argument in arguments:
        if isinstance(argument, bytes):
            scope.refuse(annotation, "a literal of bytes", "Use Literal with str, int or bool.")
    return LiteralNode(arguments)


def _describe_set(annotation: object, argument: object, scope: Scope) -> Node:
    item = describe(argument, scope)
    if isinstance(item, JsonNode) and not isinstance(item, AnyNode):
        scope.refuse(
            annotation, "a set of free JSON, which has no order", "Use tuple[JSON, ...] instead."
        )
    return SetNode(item)


def _describe_mapping(annotation: object, arguments: tuple[object, ...], scope: Scope) -> Node:
    key = describe(arguments[0], scope)
    if not _is_key(key):
        scope.refuse(
            annotation,
            "and JSON has only text for keys",
            "Use keys of type str, int, UUID, date, a str Literal or an Enum of str values, "
            "or a tuple of @value pairs.",
        )
    return MappingNode(key, describe(arguments[1], scope))


def _is_key(node: Node) -> bool:
    if isinstance(node, RuleNode):
        return _is_key(node.inner)
    if isinstance(node, ScalarNode):
        return node.kind in {"str", "int", "uuid", "date"}
    if isinstance(node, LiteralNode):
        return all(type(value) is str for value in node.values)
    if isinstance(node, EnumNode):
        return all(type(member.value) is str for member in node.cls)
    return False


_open_aliases: set[int] = set()


def _describe_alias(alias: Any, arguments: tuple[object, ...], scope: Scope) -> Node:  # 3.12 alias
    if id(alias) in _open_aliases:
        scope.refuse(
            alias, "an alias that refers to itself", "Use atlas.typing.JSON or a @value class."
        )
    _open_aliases.add(id(alias))
    try:
        inner = alias.__value__[arguments] if arguments else alias.__value__
        return describe(inner, scope)
    except NameError as error:
        raise UnresolvedError(str(error)) from error
    finally:
        _open_aliases.discard(id(alias))


def _describe_variable(variable: TypeVar, scope: Scope) -> Node:
    given = scope.variables.get(variable, variable)
    if given is not variable:
        return describe(given, scope)
    if variable.__constraints__:
        return _describe_union(variable, variable.__constraints__, scope)
    if variable.__bound__ is not None:
        return describe(variable.__bound__, scope)
    return AnyNode() if scope.loose else JsonNode()


def _describe_class(cls: type, scope: Scope) -> Node:
    if "__description__" in cls.__dict__:
        described = description_of(cls)
        return ClassNode(cls, lambda: tuple(described.nodes.items()))
    if issubclass(cls, enum.Enum):
        _check_enum(cls, scope)
        return EnumNode(cls)
    if dataclasses.is_dataclass(cls):
        return _describe_dataclass(cls, scope)
    return _refuse_form(cls, scope)


def _check_enum(cls: type[enum.Enum], scope: Scope) -> None:
    if not len(cls):
        scope.refuse(cls, "an enum without members", "Give it members before it is used.")
    for member in cls:
        if not isinstance(member.value, str | int | bool):
            scope.refuse(
                cls,
                f"and its member {member.name} has the value {member.value!r}",
                "Enums are written by value: give each member a str or an int.",
            )


def _describe_dataclass(cls: type, scope: Scope) -> Node:
    parameters: Any = cls.__dict__.get("__dataclass_params__")  # a private class of dataclasses
    if parameters is None or not parameters.frozen:
        scope.refuse(
            cls,
            "a dataclass that can be changed",
            "Declare it with @value (or @dataclass(frozen=True)).",
        )
    if any(not field.init for field in dataclasses.fields(cls)):
        scope.refuse(cls, "a dataclass with a field out of __init__", "Use a @value class.")

    def fields() -> tuple[tuple[str, Node], ...]:
        made = []
        for field in dataclasses.fields(cls):
            owner = next(base for base in cls.__mro__ if field.name in _annotations(base))
            inner = Scope(
                cls=cls,
                field=field.name,
                globals=vars(sys.modules.get(owner.__module__, types)),
                locals={**scope.locals, cls.__name__: cls},
                variables={},
                loose=True,
            )
            made.append((field.name, describe(field.type, inner)))
        return tuple(made)

    return DataclassNode(cls, fields)


def _annotations(cls: type) -> Mapping[str, object]:
    return inspect.get_annotations(cls)


def _refuse_form(annotation: object, scope: Scope) -> NoReturn:
    mend = (
        "Messages hold None, bool, int, float, str, bytes, datetime, date, time, timedelta, "
        "Decimal, UUID, Enum and Literal, @value and @message classes, frozen dataclasses, and "
        "tuples, sets and mappings of these."
    )
    if annotation is Any or annotation is object:
        mend = "Use atlas.typing.JSON for free JSON, or name the type."
    elif getattr(annotation, "__module__", "").startswith("pathlib"):  # not loaded to say this
        mend = "Paths differ between systems: keep the path as a str."
    elif annotation in (list, tuple, set, frozenset, dict, *_SEQUENCES, *_SETS, *_MAPPINGS):
        mend = "Say what it holds, as in tuple[str, ...] or dict[str, int]."
    elif isinstance(annotation, type) and issubclass(annotation, tuple | dict):
        mend = "Declare a @value class instead of a NamedTuple or TypedDict."
    elif isinstance(annotation, dataclasses.InitVar):
        mend = "InitVar is not kept in a message; make it a field."
    scope.refuse(annotation, "which no message can hold", mend)
