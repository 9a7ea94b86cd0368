"""The one table of types: what a value is in Python, SQLite, PostgreSQL and JSON.

The SQL engines take their column types from here, and whatever leaves a log as JSON (an export, a
file of records set aside) is converted here. Nothing else in a log has a type of its own.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from atlas.core.log.records import Record
from atlas.typing import JSON

__all__ = [
    "COLUMNS",
    "TYPES",
    "ColumnType",
    "Dialect",
    "column",
    "record_from_json",
    "record_to_json",
    "table_of_types",
]

Dialect: TypeAlias = Literal["sqlite", "postgresql"]
"""A database whose column types are known here."""


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A type of value in a log, in each place where it may be.

    Attributes:
        name: What it is called in the documentation.
        python: Its type in Python, as text.
        sqlite: Its column type in SQLite.
        postgresql: Its column type in PostgreSQL.
        json: How it is written in JSON, in words.
        to_json: Python to JSON.
        from_json: JSON to Python; raises ValueError or TypeError for what `to_json` does not make.
    """

    name: str
    python: str
    sqlite: str
    postgresql: str
    json: str
    # The values are of the Python type named above; Python cannot say so here.
    to_json: Callable[[Any], JSON]
    # The same, the other way round.
    from_json: Callable[[Any], Any]


def _number(value: JSON) -> int:
    if type(value) is not int:
        raise TypeError(f"A whole number is needed here, not {value!r}.")
    return value


def _text(value: JSON) -> str:
    if type(value) is not str:
        raise TypeError(f"A text is needed here, not {value!r}.")
    return value


def _nanoseconds(value: JSON) -> int:
    return int(_text(value))


def _bytes_to_json(value: bytes | None) -> JSON:
    return None if value is None else b64encode(value).decode("ascii")


def _bytes_from_json(value: JSON) -> bytes | None:
    return None if value is None else b64decode(_text(value), validate=True)


def _hash_from_json(value: JSON) -> bytes:
    found = bytes.fromhex(_text(value))
    if len(found) != 32:
        raise ValueError(f"A hash has 64 hexadecimal digits, not {value!r}.")
    return found


_NUMBER: Final = ColumnType("number", "int", "INTEGER", "bigint", "number", _number, _number)
# As text: a JSON number keeps 53 bits in many readers, and ns since 1970 need 61.
_TIME: Final = ColumnType(
    "time in ns", "int", "INTEGER", "bigint", "string of digits", str, _nanoseconds
)
# Ordered by code point everywhere: SQLite's BINARY, PostgreSQL's "C", Python's `<`.
_TEXT: Final = ColumnType("text", "str", "TEXT", 'text COLLATE "C"', "string", _text, _text)
_BYTES: Final = ColumnType(
    "bytes",
    "bytes | None",
    "BLOB",
    "bytea",
    "string in base64, or null",
    _bytes_to_json,
    _bytes_from_json,
)
_HASH: Final = ColumnType(
    "hash", "bytes", "BLOB", "bytea", "string of 64 hexadecimal digits", bytes.hex, _hash_from_json
)

TYPES: Final = (_NUMBER, _TIME, _TEXT, _BYTES, _HASH)
"""All types there are."""

COLUMNS: Final[Mapping[str, ColumnType]] = MappingProxyType(
    {
        "position": _NUMBER,
        "stream": _TEXT,
        "version": _NUMBER,
        "name": _TEXT,
        "time_ns": _TIME,
        "wall_ns": _TIME,
        "payload": _BYTES,
        "digest": _HASH,
        "chain": _HASH,
        # Of other tables than that of the records:
        "id": _NUMBER,
        "stream_id": _NUMBER,
        "name_id": _NUMBER,
        "checksum": _NUMBER,
        "label": _TEXT,
        "reader": _TEXT,
    }
)
"""The type of each column, by its name, which is the same in every table and every database."""

_FIELDS: Final = Record._fields


def column(name: str, dialect: Dialect) -> str:
    """Return the name and type of a column, for a CREATE TABLE."""
    kind = COLUMNS[name]
    return f"{name} {kind.sqlite if dialect == 'sqlite' else kind.postgresql}"


def record_to_json(record: Record) -> dict[str, JSON]:
    """Return a record as JSON, by its field names."""
    return {field: COLUMNS[field].to_json(getattr(record, field)) for field in _FIELDS}


def record_from_json(found: Mapping[str, JSON]) -> Record:
    """Return the record that `record_to_json` made this of.

    Raises:
        ValueError: A field is missing, unknown, or holds what cannot be.
    """
    if set(found) != set(_FIELDS):
        raise ValueError(
            f"A record has the fields {', '.join(_FIELDS)}; this has {', '.join(found)}."
        )
    try:
        return Record(**{field: COLUMNS[field].from_json(found[field]) for field in _FIELDS})
    except (TypeError, ValueError) as error:
        raise ValueError(f"This is no record: {error}") from error


def table_of_types() -> str:
    """Return the table of types in Markdown, as in ``docs/design/log.md``."""
    head = "| type | columns | Python | SQLite | PostgreSQL | JSON |\n|---|---|---|---|---|---|\n"
    return head + "".join(_line(kind) for kind in TYPES)


def _line(kind: ColumnType) -> str:
    names = ", ".join(f"`{name}`" for name, its in COLUMNS.items() if its is kind)
    python = f"`{kind.python}`".replace("|", r"\|")
    return f"| {kind.name} | {names} | {python} | `{kind.sqlite}` | `{kind.postgresql}` | {kind.json} |\n"
