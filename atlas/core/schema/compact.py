"""The compact binary form of JSON values: CBOR (RFC 8949) in its deterministic encoding.

The same value always gives the same bytes, a good third fewer than JSON. Only what JSON values need
is written and read: no tags but those of big integers, no indefinite lengths, no other simple values.
Lone surrogates pass in the three-byte form that UTF-8 would give them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from atlas.core.schema.canonical import MAX_NESTING
from atlas.errors import ValidationError

__all__ = ["pack", "unpack"]

_INT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAGGED, _OTHER = range(8)
_MAX_HEAD = 1 << 64


def pack(value: object) -> bytes:
    """Return the CBOR of a JSON value; tuples count as lists.

    Raises:
        TypeError: It is no JSON value.
    """
    out = bytearray()
    _pack(value, out)
    return bytes(out)


def _pack(value: object, out: bytearray) -> None:
    if value is None or value is True or value is False:
        out.append({None: 0xF6, True: 0xF5, False: 0xF4}[value])
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        _head(_TEXT, len(raw), out)
        out += raw
    elif isinstance(value, int):
        _pack_int(value, out)
    elif isinstance(value, float):
        out += _float(value)
    elif isinstance(value, list | tuple):
        _head(_ARRAY, len(value), out)
        for item in value:
            _pack(item, out)
    elif isinstance(value, Mapping):
        _head(_MAP, len(value), out)
        for key, item in sorted((pack(key), item) for key, item in value.items()):
            out += key
            _pack(item, out)
    else:
        raise TypeError(f"{value!r} is no JSON value.")


def _head(major: int, number: int, out: bytearray) -> None:
    if number < 24:
        out.append(major << 5 | number)
    elif number < 1 << 8:
        out += bytes((major << 5 | 24, number))
    elif number < 1 << 16:
        out += struct.pack(">BH", major << 5 | 25, number)
    elif number < 1 << 32:
        out += struct.pack(">BI", major << 5 | 26, number)
    else:
        out += struct.pack(">BQ", major << 5 | 27, number)


def _pack_int(value: int, out: bytearray) -> None:
    major, number = (_INT, value) if value >= 0 else (_NEGATIVE, -1 - value)
    if number < _MAX_HEAD:
        _head(major, number, out)
        return
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    out.append(0xC2 if major == _INT else 0xC3)
    _head(_BYTES, len(raw), out)
    out += raw


def _float(value: float) -> bytes:
    """Return the shortest of the three widths that keeps the value."""
    for lead, form in ((0xF9, ">e"), (0xFA, ">f")):
        try:
            raw = struct.pack(form, value)
        except OverflowError:
            continue
        if struct.unpack(form, raw)[0] == value:
            return bytes((lead,)) + raw
    return b"\xfb" + struct.pack(">d", value)


def unpack(data: bytes, name: str = "message") -> object:
    """Read what `pack` writes.

    Raises:
        ValidationError: The bytes are no such CBOR, have a key twice, or are nested too deep.
    """
    reader = _Reader(data)
    try:
        value = reader.value(0)
    except (IndexError, struct.error, ValueError) as error:
        shown = data if len(data) <= 80 else data[:77] + b"..."
        raise ValidationError(name, "", shown, f"CBOR ({error})") from error
    if reader.at != len(data):
        raise ValidationError(name, "", data[reader.at :][:80], "the end of the message")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise ValueError("it ends too early")
        raw = self.data[self.at : end]
        self.at = end
        return raw

    def value(self, depth: int) -> object:
        if depth > MAX_NESTING:
            raise ValueError(f"it is nested more than {MAX_NESTING} deep")
        first = self.take(1)[0]
        major, info = first >> 5, first & 31
        if major == _OTHER:
            return self._other(first)
        number = self._number(info)
        match major:
            case 0:
                return number
            case 1:
                return -1 - number
            case 3:
                return self.take(number).decode("utf-8", "surrogatepass")
            case 4:
                return [self.value(depth + 1) for _ in self._bounded(number)]
            case 5:
                return self._map(number, depth)
            case 6:
                return self._big(number)
            case _:
                raise ValueError("bytes are no JSON value")

    def _number(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise ValueError("lengths must be definite")
        return int.from_bytes(self.take(1 << (info - 24)), "big")

    def _bounded(self, count: int) -> range:
        """Refuse a count that the rest cannot hold before anything is made for it."""
        if count > len(self.data) - self.at:
            raise ValueError("it ends too early")
        return range(count)

    def _map(self, count: int, depth: int) -> dict[str, object]:
        made: dict[str, object] = {}
        for _ in self._bounded(count):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in made:
                raise ValueError(f"the key {key!r} is no text or comes twice")
            made[key] = self.value(depth + 1)
        return made

    def _big(self, tag: int) -> int:
        first = self.take(1)[0]
        if tag not in (2, 3) or first >> 5 != _BYTES:
            raise ValueError("a tag that no JSON value has")
        number = int.from_bytes(self.take(self._number(first & 31)), "big")
        return number if tag == 2 else -1 - number

    def _other(self, first: int) -> object:
        plain = {0xF4: False, 0xF5: True, 0xF6: None}
        if first in plain:
            return plain[first]
        forms = {0xF9: (">e", 2), 0xFA: (">f", 4), 0xFB: (">d", 8)}
        if first not in forms:
            raise ValueError("a simple value that JSON has not")
        form, width = forms[first]
        made: float = struct.unpack(form, self.take(width))[0]
        if made * 0.0 != 0.0:
            raise ValueError("no finite number")
        return made
