r"""Canonical JSON: the same value always gives the same text, on every Python, in every process.

Keys are sorted by code point, there is no white space, text is UTF-8 and only what JSON demands is
escaped. Lone surrogates, which UTF-8 cannot hold, are escaped (``\ud800``), so that any ``str`` can
be written; two of them that form a pair are read back as the character they form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from atlas.core.nodes import MAX_DEPTH
from atlas.errors import ValidationError

__all__ = ["MAX_NESTING", "canonical_text", "from_bytes", "one_shot", "quote", "to_bytes"]

MAX_NESTING = 2 * MAX_DEPTH
"""How deep arrays and objects may be nested in the bytes of a message, envelope included."""

# encode_basestring is the C function, or its equal in Python, that json.dumps itself calls
quote: Callable[[str], str] = json.encoder.encode_basestring


def one_shot(encoder: json.JSONEncoder) -> Callable[[object], str]:
    """Return what ``encoder.encode`` does, at half its price.

    That makes its C part anew for each value, which takes as long as writing a short one. The encoder
    must not check for circles, which needs a memory of its own for each value.
    """
    # Any: the C part of the json module, which not every Python has, is not in its types
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    write = make(
        None,
        encoder.default,
        quote,
        None,
        encoder.key_separator,
        encoder.item_separator,
        encoder.sort_keys,
        encoder.skipkeys,
        encoder.allow_nan,
    )
    return lambda value: "".join(write(value, 0))


_encode = one_shot(
    json.JSONEncoder(
        ensure_ascii=False,
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
        check_circular=False,
    )
)


def canonical_text(value: object) -> str:
    """Return the canonical text of a JSON value; tuples count as lists."""
    return _encode(value)


def to_bytes(text: str, name: str) -> bytes:
    """Return the bytes of canonical text, refusing nesting that could not be read back."""
    data = text.encode("utf-8", "backslashreplace")
    _check_nesting(data, name)
    return data


def from_bytes(data: bytes | bytearray | memoryview, name: str = "message") -> object:
    """Read JSON strictly: UTF-8, no NaN, no key twice, not too deep.

    Raises:
        ValidationError: The bytes are not such JSON; the rule says what is expected.
    """
    raw = bytes(data)
    _check_nesting(raw, name)
    try:
        return _decoder.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValidationError(name, "", _excerpt(raw), "text in UTF-8") from error
    except _RepeatedKeyError as error:
        raise ValidationError(name, error.key, error.key, "each key once") from error
    except ValueError as error:
        raise ValidationError(name, "", _excerpt(raw), f"JSON ({error})") from error


def _excerpt(raw: bytes) -> bytes:
    return raw if len(raw) <= 80 else raw[:77] + b"..."


class _RepeatedKeyError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} comes twice")
        self.key = key


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(key)
            seen.add(key)
    return made


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON number")


_decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse_constant)

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\Z)|[\[\]{}]', re.DOTALL)


def _check_nesting(data: bytes, name: str) -> None:
    """Bound the depth before anything recurses; counting settles it for nearly every message."""
    if data.count(b"[") + data.count(b"{") <= MAX_NESTING:
        return
    depth = 0
    for token in _TOKEN.finditer(data):
        first = token.group()[:1]
        if first in b"[{":
            depth += 1
            if depth > MAX_NESTING:
                raise ValidationError(
                    name, "", _excerpt(data), f"JSON nested at most {MAX_NESTING} deep"
                )
        elif first in b"]}":
            depth -= 1
