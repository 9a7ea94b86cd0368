"""What a field of a message can hold: the kinds of values, as `Node` objects.

A node can do two things: *freeze* a value (check it, make it deeply immutable, or refuse it with a
rule in words), and contribute to the Python source of a constructor the test for values that are
right beyond doubt. What the test does not recognise goes to ``freeze``, so the two need not know
each other's corners.

Nodes are made from annotations by `atlas.core.annotations`. How they are written to JSON is the
matter of `atlas.core.schema`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import typing
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Final, NoReturn
from uuid import UUID

from typing_extensions import override

from atlas.core.conversions import (
    BIG,
    DOUBT,
    MAX_DIGITS,
    to_any_float,
    to_bool,
    to_bytes,
    to_date,
    to_datetime,
    to_decimal,
    to_float,
    to_int,
    to_str,
    to_time,
    to_timedelta,
    to_uuid,
)

__all__ = [
    "ALLOW_NAN",
    "ANY_FLOAT",
    "DOUBT",
    "JSON_KINDS",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "SCALARS",
    "AnyNode",
    "ClassNode",
    "Code",
    "DataclassNode",
    "EnumNode",
    "FrozenDict",
    "JsonNode",
    "LiteralNode",
    "MappingNode",
    "Node",
    "PairNode",
    "RefusedError",
    "RuleNode",
    "ScalarNode",
    "SequenceNode",
    "SetNode",
    "UnionNode",
]

MAX_DEPTH = 100
"""How deep JSON values may be nested, in a field or in encoded bytes."""


class AllowNaN(enum.Enum):
    """The marker that lets a float field be NaN or infinite."""

    ALLOW_NAN = "allow_nan"


ALLOW_NAN = AllowNaN.ALLOW_NAN
"""``Annotated[float, ALLOW_NAN]`` takes NaN and the infinities, which are refused otherwise."""


class RefusedError(Exception):
    """A value breaks a rule; the constructor turns this into a `ValidationError`."""

    def __init__(self, path: tuple[str, ...], value: object, rule: str) -> None:
        super().__init__(path, value, rule)
        self.path = path
        self.value = value
        self.rule = rule


class FrozenDict(dict[Any, Any]):  # a dict of whatever the field says
    """A read-only, hashable ``dict``: what a mapping in a message becomes.

    It reads, compares, prints and serialises like the plain dict it was made from. Methods that
    would change it raise ``TypeError``; make a changed copy with ``{**mapping, key: value}``.
    """

    __slots__ = ()

    def _refuse(self, *_args: object, **_options: object) -> NoReturn:
        raise TypeError(
            "A mapping inside a message cannot be changed; "
            "make a changed copy with {**mapping, key: value} and dataclasses.replace()."
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __hash__(self) -> int:  # type: ignore[override]  # dict has none; this one never changes
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[object, ...]:
        return FrozenDict, (dict(self),)

    def __copy__(self) -> FrozenDict:
        return self

    def __deepcopy__(self, _memo: object) -> FrozenDict:
        return self


# -- generated code -------------------------------------------------------------------------------


class Code:
    """Python source under construction, with the objects it refers to."""

    def __init__(self) -> None:
        self.names: dict[str, object] = {
            "_type": type,
            "_str": str,
            "_int": int,
            "_float": float,
            "_tuple": tuple,
            "_dict": dict,
            "_FrozenDict": FrozenDict,
            "_timezone": timezone,
            "_frozenset": frozenset,
            "_DOUBT": DOUBT,
            "_BIG": BIG,
            "_MINUS_BIG": -BIG,
        }
        self.functions: list[str] = []
        self._made: dict[int, str] = {}

    def bind(self, thing: object, hint: str) -> str:
        """Make an object known to the source and return the name it has there."""
        name = f"_{hint}_{len(self.names)}"
        self.names[name] = thing
        return name

    def check(self, node: Node, name: str) -> tuple[str, str]:
        """Return a test of the variable and the expression for its frozen value after it."""
        test = node.test(name, self)
        if test is not None:
            return test, name
        frozen = f"_{name.lstrip('_')}_frozen"
        return f"({frozen} := {self.function(node)}({name})) is not _DOUBT", frozen

    def function(self, node: Node) -> str:
        """Return the name of a function that freezes a value or answers ``_DOUBT``."""
        made = self._made.get(id(node))
        if made is not None:
            return made
        name = f"_freeze_{len(self._made)}"
        self._made[id(node)] = name
        body = node.body("x", self)
        if body is None:
            self.names[name] = _guarded(node)
            return name
        lines = "\n".join(f"    {line}" for line in body)
        self.functions.append(f"def {name}(x):\n{lines}\n")
        return name


def _guarded(node: Node) -> Callable[[object], object]:
    freeze = node.freeze

    def guarded(value: object) -> object:
        try:
            return freeze(value, ())
        except RefusedError:
            return DOUBT

    return guarded


# -- nodes ----------------------------------------------------------------------------------------


class Node:
    """What one annotation takes. ``rule`` says it in words (``"a str"``)."""

    rule: str = "a value"

    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        """Return the immutable form of a value, or raise `RefusedError` with its path and rule."""
        raise NotImplementedError

    def test(self, name: str, code: Code) -> str | None:
        """Return source that is true only for values that are frozen and valid as they are."""
        del name, code
        return None

    def body(self, name: str, code: Code) -> list[str] | None:
        """Return lines of a function that freezes or answers ``_DOUBT``; None: use `freeze`."""
        test = self.test(name, code)
        return None if test is None else [f"return {name} if {test} else _DOUBT"]

    def refusal(self, value: object, path: tuple[str, ...]) -> RefusedError:
        """Return the error that says this node does not take the value."""
        return RefusedError(path, value, self.rule)


class ScalarNode(Node):
    """One builtin type: ``kind`` is its name, ``type`` the class itself."""

    def __init__(
        self,
        kind: str,
        cls: type,
        rule: str,
        convert: Callable[[Any], object] | None,
        condition: str = "",
    ) -> None:
        self.kind = kind
        self.type = cls
        self.rule = rule
        self._convert = convert
        self._condition = condition

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        if value is None or self._convert is None:
            raise self.refusal(value, path)
        try:
            frozen = self._convert(value)
        except (OverflowError, ValueError, TypeError):
            frozen = DOUBT
        if frozen is DOUBT:
            raise self.refusal(value, path)
        return frozen

    @override
    def test(self, name: str, code: Code) -> str | None:
        cls = code.bind(self.type, self.kind) if self.type not in _KNOWN else _KNOWN[self.type]
        test = f"_type({name}) is {cls}"
        return f"{test} and {self._condition.format(name)}" if self._condition else test


_KNOWN: dict[type, str] = {str: "_str", int: "_int", float: "_float"}


class _IntNode(ScalarNode):
    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        if isinstance(value, int) and not isinstance(value, bool) and to_int(value) is DOUBT:
            shown = f"an int of {value.bit_length()} bits"
            raise RefusedError(path, shown, f"an int of at most {MAX_DIGITS} digits")
        return super().freeze(value, path)


class _NoneNode(ScalarNode):
    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        if value is not None:
            raise self.refusal(value, path)
        return None

    @override
    def test(self, name: str, code: Code) -> str | None:
        del code
        return f"{name} is None"


NONE = _NoneNode("none", type(None), "None", None)
SCALARS: dict[object, ScalarNode] = {
    str: ScalarNode("str", str, "a str", to_str),
    int: _IntNode("int", int, "an int", to_int, "_MINUS_BIG < {} < _BIG"),
    float: ScalarNode("float", float, "a finite float", to_float, "{} * 0.0 == 0.0"),
    bool: ScalarNode("bool", bool, "a bool", to_bool),
    bytes: ScalarNode("bytes", bytes, "bytes", to_bytes),
    datetime: ScalarNode(
        "datetime",
        datetime,
        "a datetime with a time zone",
        to_datetime,
        "_type({0}.tzinfo) is _timezone and not {0}.fold",
    ),
    date: ScalarNode("date", date, "a date", to_date),
    time: ScalarNode("time", time, "a time", to_time, "{0}.tzinfo is None and not {0}.fold"),
    timedelta: ScalarNode("timedelta", timedelta, "a timedelta", to_timedelta),
    Decimal: ScalarNode("decimal", Decimal, "a finite Decimal", to_decimal, "{}.is_finite()"),
    UUID: ScalarNode("uuid", UUID, "a UUID", to_uuid),
    type(None): NONE,
    None: NONE,
}
ANY_FLOAT = ScalarNode("any_float", float, "a float", to_any_float)


class EnumNode(Node):
    """A member of an enum, written by its value."""

    def __init__(self, cls: type[enum.Enum]) -> None:
        self.cls = cls
        self.rule = f"a member of {cls.__name__}"

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        if not (isinstance(value, self.cls)):
            raise self.refusal(value, path)
        return value

    @override
    def test(self, name: str, code: Code) -> str | None:
        return f"_type({name}) is {code.bind(self.cls, 'enum')}"


class LiteralNode(Node):
    """One of the values given."""

    def __init__(self, values: tuple[object, ...]) -> None:
        self.values = values
        self.rule = _one_of(values)

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        for allowed in self.values:
            if type(value) is type(allowed) and value == allowed:
                return allowed
        if isinstance(value, str) and not isinstance(value, enum.Enum):
            plain = str.__str__(value)
            if plain in self.values:
                return plain
        raise self.refusal(value, path)

    @override
    def test(self, name: str, code: Code) -> str | None:
        if not all(type(value) is str for value in self.values):
            return None
        return f"_type({name}) is _str and {name} in {code.bind(frozenset(self.values), 'allowed')}"


def _one_of(values: Iterable[object]) -> str:
    shown = [repr(value) for value in values]
    return shown[0] if len(shown) == 1 else f"one of {', '.join(shown)}"


class SequenceNode(Node):
    """Any number of items of one kind; becomes a tuple."""

    def __init__(self, item: Node) -> None:
        self.item = item
        self.rule = f"a tuple or list, each item {item.rule}"

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        items = _items(self, value, path)
        freeze = self.item.freeze
        return tuple([freeze(item, (*path, str(at))) for at, item in enumerate(items)])

    @override
    def body(self, name: str, code: Code) -> list[str] | None:
        test, frozen = code.check(self.item, "item")
        head = [
            f"if _type({name}) is not _tuple:",
            f"    if _type({name}) is not {code.bind(list, 'list')}: return _DOUBT",
            f"    {name} = _tuple({name})",
        ]
        if frozen == "item":
            return [
                *head,
                f"for item in {name}:",
                f"    if not ({test}): return _DOUBT",
                f"return {name}",
            ]
        return [
            *head,
            "made = []",
            f"for item in {name}:",
            f"    if not ({test}): return _DOUBT",
            f"    made.append({frozen})",
            "return _tuple(made)",
        ]


class PairNode(Node):
    """A tuple of fixed length, each place of its own kind."""

    def __init__(self, items: tuple[Node, ...]) -> None:
        self.items = items
        self.rule = (
            f"a tuple of {len(items)}: {', '.join(item.rule for item in items) or 'nothing'}"
        )

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        given = _items(self, value, path)
        if len(given) != len(self.items):
            raise self.refusal(value, path)
        pairs = zip(self.items, given, strict=True)
        return tuple([node.freeze(item, (*path, str(at))) for at, (node, item) in enumerate(pairs)])


def _items(node: Node, value: object, path: tuple[str, ...]) -> list[Any]:
    """Return the items of a sequence that is no text; a generator would be used up by a refusal."""
    if isinstance(value, list | tuple) or (
        isinstance(value, collections.abc.Sequence)
        and not isinstance(value, str | bytes | bytearray | memoryview)
    ):
        return list(value)
    raise node.refusal(value, path)


class SetNode(Node):
    """A set; becomes a frozenset."""

    def __init__(self, item: Node) -> None:
        self.item = item
        self.rule = f"a set, each item {item.rule}"

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        if not isinstance(value, collections.abc.Set):
            raise self.refusal(value, path)
        return frozenset([self.item.freeze(item, (*path, repr(item))) for item in value])

    @override
    def body(self, name: str, code: Code) -> list[str] | None:
        test, frozen = code.check(self.item, "item")
        if frozen != "item":
            return None
        return [
            f"if _type({name}) is not _frozenset and _type({name}) is not {code.bind(set, 'set')}:",
            "    return _DOUBT",
            f"for item in {name}:",
            f"    if not ({test}): return _DOUBT",
            f"return _frozenset({name})",
        ]


_NO_ITEMS: Final = FrozenDict()


class MappingNode(Node):
    """A mapping; becomes a `FrozenDict`."""

    def __init__(self, key: Node, item: Node) -> None:
        self.key = key
        self.item = item
        self.rule = f"a mapping, each key {key.rule}, each value {item.rule}"

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        if not isinstance(value, collections.abc.Mapping):
            raise self.refusal(value, path)
        return FrozenDict(
            {
                self.key.freeze(key, (*path, str(key))): self.item.freeze(item, (*path, str(key)))
                for key, item in value.items()
            }
        )

    @override
    def body(self, name: str, code: Code) -> list[str] | None:
        key_test, key = code.check(self.key, "key")
        test, frozen = code.check(self.item, "item")
        if key != "key":
            return None
        loop = [f"for key in {name}:", f"    item = {name}[key]"]  # quicker than .items()
        refuse = f"    if not ({key_test} and {test}): return _DOUBT"
        if frozen == "item":
            return [
                f"if _type({name}) is not _FrozenDict and _type({name}) is not _dict:",
                "    return _DOUBT",
                *loop,
                refuse,
                f"return {name} if _type({name}) is _FrozenDict else _FrozenDict({name})",
            ]
        return [
            f"if _type({name}) is not _dict and _type({name}) is not _FrozenDict: return _DOUBT",
            f"if not {name}: return {code.bind(_NO_ITEMS, 'no_items')}",
            "made = {}",
            *loop,
            refuse,
            f"    made[key] = {frozen}",
            "return _FrozenDict(made)",
        ]


class JsonNode(Node):
    """Any JSON value; lists become tuples, objects become read-only."""

    rule = "a JSON value (None, bool, int, finite float, str, list or dict with str keys)"

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        return self._freeze(value, path, 0)

    def _freeze(self, value: object, path: tuple[str, ...], depth: int) -> object:
        scalar = SCALARS.get(type(value))
        if scalar is not None and scalar.kind in JSON_KINDS:
            return scalar.freeze(value, path)
        if depth >= MAX_DEPTH:
            raise RefusedError(path, value, f"JSON nested at most {MAX_DEPTH} deep")
        if isinstance(value, list | tuple):
            return tuple(
                [self._freeze(item, (*path, str(at)), depth + 1) for at, item in enumerate(value)]
            )
        if isinstance(value, Mapping):
            return FrozenDict(
                {
                    SCALARS[str].freeze(key, (*path, str(key))): self._freeze(
                        item, (*path, str(key)), depth + 1
                    )
                    for key, item in value.items()
                }
            )
        return self.other(value, path)

    def other(self, value: object, path: tuple[str, ...]) -> object:
        """Freeze what no JSON type is: subclasses of the scalars, nothing else."""
        for cls in (str, int, float):
            if isinstance(value, cls) and not isinstance(value, enum.Enum):
                return SCALARS[cls].freeze(value, path)
        raise self.refusal(value, path)


JSON_KINDS = frozenset({"none", "bool", "int", "float", "str"})


class AnyNode(JsonNode):
    """What a type variable without a bound takes in a `value`: whatever a message may hold.

    The class that uses the generic value says what the variable is, and checks it.
    """

    rule = "a value that a message can hold"

    @override
    def other(self, value: object, path: tuple[str, ...]) -> object:
        node = SCALARS.get(type(value))
        if node is not None:
            return node.freeze(value, path)
        if "__description__" in type(value).__dict__ or isinstance(value, enum.Enum):
            return value
        if isinstance(value, set | frozenset):
            return frozenset([self.freeze(item, (*path, repr(item))) for item in value])
        return super().other(value, path)


class _ObjectNode(Node):
    """An instance of a class with fields that are described when they are first asked for."""

    def __init__(self, cls: type, fields: Callable[[], tuple[tuple[str, Node], ...]]) -> None:
        self.cls = cls
        self.rule = f"{_article(cls.__name__)} {cls.__name__}"
        self._describe = fields
        self._fields: tuple[tuple[str, Node], ...] | None = None

    def fields(self) -> tuple[tuple[str, Node], ...]:
        """Return names and nodes of the fields, type variables replaced by what they stand for."""
        if self._fields is None:
            self._fields = self._describe()
        return self._fields


class ClassNode(_ObjectNode):
    """An instance of a class made by `message` or `value`: valid and frozen since it was made.

    Attributes:
        arguments: What a generic class is used with (``Page[Item]``); its fields are checked again.
    """

    def __init__(
        self,
        cls: type,
        fields: Callable[[], tuple[tuple[str, Node], ...]],
        arguments: tuple[object, ...] = (),
    ) -> None:
        super().__init__(cls, fields)
        self.arguments = arguments

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        if not isinstance(value, self.cls) or "__description__" not in type(value).__dict__:
            raise self.refusal(value, path)
        if self.arguments:
            for name, node in self.fields():
                node.freeze(getattr(value, name), (*path, name))
        return value

    @override
    def test(self, name: str, code: Code) -> str | None:
        return None if self.arguments else f"_type({name}) is {code.bind(self.cls, 'class')}"


class DataclassNode(_ObjectNode):
    """An instance of a plain frozen dataclass; its fields are checked where it enters a message."""

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        if type(value) is not self.cls:
            raise self.refusal(value, path)
        changed = {}
        for name, node in self.fields():
            given = getattr(value, name)
            frozen = node.freeze(given, (*path, name))
            if frozen is not given:
                changed[name] = frozen
        # a dataclass instance: its class was checked above
        return dataclasses.replace(typing.cast("Any", value), **changed) if changed else value


class UnionNode(Node):
    """One of several kinds."""

    def __init__(self, members: tuple[Node, ...]) -> None:
        self.members = members
        self.rule = " or ".join(dict.fromkeys(member.rule for member in members))

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        """Prefer the member that takes the value as it is: 7 stays an int in ``float | int``."""
        frozen: list[object] = []
        deepest: RefusedError | None = None
        for member in self.members:
            try:
                made = member.freeze(value, path)
            except RefusedError as refused:
                if len(refused.path) > len(path) and deepest is None:
                    deepest = refused
                continue
            if type(made) is type(value) and made == value:
                return made
            frozen.append(made)
        if frozen:
            return frozen[0]
        if deepest is not None:
            raise deepest
        raise self.refusal(value, path)

    @override
    def test(self, name: str, code: Code) -> str | None:
        tests = [member.test(name, code) for member in self.members]
        if None in tests:
            return None
        plain = [
            member.cls
            for member in self.members
            if isinstance(member, ClassNode) and not member.arguments
        ]
        if len(plain) > 2:
            rest = [
                typing.cast("str", member.test(name, code))
                for member in self.members
                if not isinstance(member, ClassNode)
            ]
            classes = code.bind(frozenset(plain), "classes")
            return f"({' or '.join([*rest, f'_type({name}) in {classes}'])})"
        first = sorted(typing.cast("list[str]", tests), key=lambda test: not test.endswith("None"))
        return f"({' or '.join(first)})"

    @override
    def body(self, name: str, code: Code) -> list[str] | None:
        lines = []
        for member in self.members:
            test = member.test(name, code)
            if test is not None:
                lines.append(f"if {test}: return {name}")
        for member in self.members:
            if member.test(name, code) is None:
                made = code.function(member)
                lines.append(f"frozen = {made}({name})")
                lines.append("if frozen is not _DOUBT: return frozen")
        return [*lines, "return _DOUBT"]


class RuleNode(Node):
    """A kind with rules on top: ``Annotated[int, Range(min=1)]``."""

    def __init__(self, inner: Node, extras: tuple[object, ...]) -> None:
        self.inner = inner
        self.extras = extras
        self.rules = tuple(_rules(extras))
        self.rule = inner.rule

    @override
    def freeze(self, value: object, path: tuple[str, ...]) -> object:
        frozen = self.inner.freeze(value, path)
        self.check(frozen, path)
        return frozen

    def check(self, value: object, path: tuple[str, ...]) -> None:
        """Raise `RefusedError` if a rule says no: by raising ``ValueError`` or returning False.

        Rules are not asked about None, as in marshmallow.
        """
        if value is None:
            return
        for rule in self.rules:
            try:
                passed = rule(value)
            except Exception as error:
                if not isinstance(error, ValueError) and not hasattr(error, "messages"):
                    raise
                raise RefusedError(path, value, _said(error)) from error
            if passed is False:
                raise RefusedError(path, value, _words(rule))


def _rules(extras: tuple[object, ...]) -> Iterable[Callable[[Any], object]]:
    for extra in extras:
        if hasattr(extra, "deserialize"):  # a marshmallow field, known by what it does
            field: Any = extra() if isinstance(extra, type) else extra
            yield from field.validators
        elif callable(extra) and not isinstance(extra, type):
            yield extra


def _said(error: Exception) -> str:
    """Return the words of a validator as a rule that ends a sentence."""
    messages = getattr(error, "messages", None)
    words = "; ".join(map(str, messages)) if isinstance(messages, list) else str(error)
    words = words.rstrip(".") or type(error).__name__
    return f"a value that passes its rule ({words})"


def _words(rule: object) -> str:
    return f"a value that passes {getattr(rule, '__name__', repr(rule))}"


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in "aeiou" else "a"
