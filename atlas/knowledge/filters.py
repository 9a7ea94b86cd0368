"""Conditions on the metadata of documents, as values, and the little language they are written in.

    author == "Ann" and year >= 2020
    language in ["en", "de"] and not (title contains "draft")

A condition on a field that a document does not have is false, except ``!=``. A search refuses a
condition on a field that no document has, and one that compares a field with another kind of value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from atlas.errors import ConfigurationError
from atlas.knowledge.documents import Field

__all__ = ["All", "AnyOf", "Compare", "Filter", "Not", "matches", "parse_filter"]

Operator: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">=", "in", "contains"]


@dataclass(frozen=True, slots=True)
class Compare:
    """One field compared with a value.

    Attributes:
        field: Its name in the metadata; also ``source`` and ``title``.
        operator: ``contains`` looks for a text in a text, without regard to upper and lower case.
        value: What to compare with; a tuple for ``in``.
    """

    field: str
    operator: Operator
    value: Field | tuple[Field, ...]

    def holds(self, found: Field | None) -> bool:
        """Return whether a value found in the field meets the condition; None: it has no value."""
        value = self.value
        if self.operator == "in":
            return isinstance(value, tuple) and any(_equal(found, each) for each in value)
        if self.operator in {"==", "!="}:
            return _equal(found, value) == (self.operator == "==")
        if self.operator == "contains":
            return isinstance(found, str) and str(value).casefold() in found.casefold()
        order = _order(found, value)
        if order is None:
            return False
        if self.operator in {"<", "<="}:
            return order < 0 or (order == 0 and self.operator == "<=")
        return order > 0 or (order == 0 and self.operator == ">=")

    def suits(self, found: Field) -> bool:
        """Return whether a value is of a kind that can be compared so."""
        if self.operator == "contains":
            return isinstance(found, str)
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        return any(_kind(value) is _kind(found) for value in values)


@dataclass(frozen=True, slots=True)
class All:
    """All of these conditions."""

    conditions: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """At least one of these conditions."""

    conditions: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """Not this condition."""

    condition: Filter


Filter: TypeAlias = Compare | All | AnyOf | Not


def matches(condition: Filter, metadata: Mapping[str, Field]) -> bool:
    """Return whether metadata meet a condition."""
    match condition:
        case Compare():
            return condition.holds(metadata.get(condition.field))
        case All():
            return all(matches(each, metadata) for each in condition.conditions)
        case AnyOf():
            return any(matches(each, metadata) for each in condition.conditions)
        case Not():
            return not matches(condition.condition, metadata)


def _kind(value: Field) -> type:
    """Return the kind of a value; all numbers are of one."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _equal(found: Field | None, value: object) -> bool:
    # True is no number here: 1 == True would find what nobody asked for.
    return found == value and isinstance(found, bool) == isinstance(value, bool)


def _order(found: Field | None, value: object) -> int | None:
    """Return -1, 0 or 1; None for values that have no order among each other."""
    if isinstance(found, str) and isinstance(value, str):
        return (found > value) - (found < value)
    if isinstance(found, bool) or isinstance(value, bool):
        return None
    if isinstance(found, int | float) and isinstance(value, int | float):
        return (found > value) - (found < value)
    return None


# -- reading --------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<number>-?\d+(?:\.\d+)?)
    |(?P<word>[A-Za-z_][\w.\-]*)|(?P<sign>==|!=|<=|>=|[<>()\[\],=]))""",
    re.VERBOSE,
)
_OPERATORS: Final[Mapping[str, Operator]] = {
    "==": "==", "=": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=",
    "in": "in", "contains": "contains",
}  # fmt: skip


# Reading goes as deep as brackets do.
_DEEPEST: Final = 200


def parse_filter(text: str) -> Filter:
    """Return the condition that a text states.

    Args:
        text: Such as ``author == "Ann" and (year > 2020 or not draft == true)``. Values are texts
            in quotes, numbers, ``true`` and ``false``; ``in`` takes a list in brackets.

    Raises:
        ConfigurationError: The text is no condition.
    """
    return _Parser(text).whole()


class _Parser:
    """Reads a condition from left to right: ``or`` binds least, then ``and``, then ``not``."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._split(text))
        self._next = 0

    def whole(self) -> Filter:
        if sum(token in {"(", "not"} for _, token in self._tokens) > _DEEPEST:
            raise ConfigurationError(
                f"The condition {self._text[:60]!r}… has more than {_DEEPEST} brackets and `not`s. "
                f"Write it shorter: `in` takes many values at once."
            )
        condition = self._any()
        if self._next < len(self._tokens):
            raise self._error("the end, `and` or `or`")
        return condition

    def _any(self) -> Filter:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _all(self) -> Filter:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _not(self) -> Filter:
        if self._take("not"):
            return Not(self._not())
        if self._take("("):
            condition = self._any()
            self._expect(")")
            return condition
        return self._comparison()

    def _comparison(self) -> Filter:
        kind, field = self._peek()
        if kind != "word" or field in {"and", "or", "not", "in", "contains"}:
            raise self._error("the name of a field")
        self._next += 1
        negated = self._take("not")
        operator = _OPERATORS.get(self._peek()[1])
        if operator is None or (negated and operator not in {"in", "contains"}):
            raise self._error("one of == != < <= > >= in contains")
        self._next += 1
        value = self._list() if operator == "in" else self._value()
        found = Compare(field, operator, value)
        return Not(found) if negated else found

    def _list(self) -> tuple[Field, ...]:
        self._expect("[")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._expect("]")
        return tuple(values)

    def _value(self) -> Field:
        kind, token = self._peek()
        if kind == "string":
            self._next += 1
            return re.sub(r"\\(.)", r"\1", token[1:-1])
        if kind == "number" or token.lower() in {"true", "false"}:
            self._next += 1
            number: Field = json.loads(token.lower())
            return number
        raise self._error("a value: a text in quotes, a number, true or false")

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "")

    def _take(self, token: str) -> bool:
        kind, found = self._peek()
        taken = kind != "string" and found == token
        self._next += taken
        return taken

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise self._error(f"`{token}`")

    def _error(self, expected: str) -> ConfigurationError:
        found = self._peek()[1]
        return ConfigurationError(
            f"The condition {self._text!r} has {found!r} where {expected} should be. "
            f"Write for example: author == 'Ann' and year >= 2020."
            if found
            else f"The condition {self._text!r} ends where {expected} should be. "
            f"Write for example: author == 'Ann' and year >= 2020."
        )

    def _split(self, text: str) -> Iterator[tuple[str, str]]:
        place = 0
        while place < len(text.rstrip()):
            match = _TOKEN.match(text, place)
            if match is None:
                raise ConfigurationError(
                    f"The condition {text!r} cannot be read from {text[place:].strip()[:20]!r} on. "
                    f"Write for example: author == 'Ann' and year >= 2020."
                )
            assert match.lastgroup is not None
            yield match.lastgroup, match[match.lastgroup]
            place = match.end()
