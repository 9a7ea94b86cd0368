"""TOML as text: the standard library reads it and does not write it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time

from atlas.errors import ConfigurationError

__all__ = ["toml_text"]


def toml_text(table: Mapping[str, object]) -> str:
    """Return a table as TOML that reads back equal; single values first, then a block for each table.

    Raises:
        ConfigurationError: A value is of a type that TOML does not have.
    """
    return "\n".join(_lines(table, ())).strip() + "\n"


def _lines(table: Mapping[str, object], path: tuple[str, ...]) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    single = {key: value for key, value in table.items() if key not in inner}
    # A table that only holds tables is made by naming those.
    if path and (single or not inner):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for key, value in single.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, below in inner.items():
        yield from _lines(below, (*path, key))


def _key(key: str) -> str:
    is_bare = key.isascii() and key.replace("-", "a").replace("_", "a").isalnum()
    return key if is_bare else _value(key)


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case datetime() | date() | time():
            return value.isoformat()
        case list():
            return f"[{', '.join(map(_value, value))}]"
        case Mapping():
            return (
                f"{{{', '.join(f'{_key(key)} = {_value(each)}' for key, each in value.items())}}}"
            )
        case _:
            raise ConfigurationError(f"TOML has no way to write {value!r}. Leave it out.")
