"""Conversions of builtin types: what a subclass or a close relative of one is taken for.

Each returns the value as one of exactly the builtin type, or `DOUBT` where it is none.
"""

from __future__ import annotations

import typing
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from uuid import UUID

__all__ = [
    "BIG",
    "DOUBT",
    "MAX_DIGITS",
    "to_any_float",
    "to_bool",
    "to_bytes",
    "to_date",
    "to_datetime",
    "to_decimal",
    "to_float",
    "to_int",
    "to_str",
    "to_time",
    "to_timedelta",
    "to_uuid",
]

MAX_DIGITS = 4300
"""Longest int a message takes, in decimal digits: what Python reads and writes by default."""

BIG = 10**MAX_DIGITS
"""The first int that is too long, either way."""

DOUBT = object()
"""What generated code answers for a value it is not sure of."""


def to_str(value: object) -> object:
    """Return a plain str; or doubt."""
    return str.__str__(value) if isinstance(value, str) else DOUBT


def to_int(value: object) -> object:
    """Return a plain int of at most `MAX_DIGITS` digits; no bool; or doubt."""
    if not isinstance(value, int) or isinstance(value, bool) or not -BIG < value < BIG:
        return DOUBT
    return int.__int__(value)


def to_any_float(value: object) -> object:
    """Return a plain float, of an int too; or doubt."""
    if isinstance(value, float):
        return float.__pos__(value)
    return DOUBT if to_int(value) is DOUBT else float(typing.cast("int", value))


def to_float(value: object) -> object:
    """Return a finite plain float; or doubt."""
    converted = to_any_float(value)
    return converted if converted is not DOUBT and converted * 0.0 == 0.0 else DOUBT  # type: ignore[operator]  # a float here


def to_bool(value: object) -> object:
    """Return a bool; or doubt."""
    return value if value is True or value is False else DOUBT


def to_bytes(value: object) -> object:
    """Return bytes; or doubt."""
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else DOUBT


def to_datetime(value: object) -> object:
    """Return a plain datetime with a fixed offset; or doubt.

    A zone's rules may change, and twice-told hours never compare equal.
    """
    if not isinstance(value, datetime):
        return DOUBT
    offset = value.utcoffset()
    if offset is None:
        return DOUBT
    if type(value) is datetime and type(value.tzinfo) is timezone and not value.fold:
        return value
    zone = timezone(offset) if offset else UTC
    return datetime.combine(
        date(value.year, value.month, value.day),
        time(value.hour, value.minute, value.second, value.microsecond),
        zone,
    )


def to_date(value: object) -> object:
    """Return a plain date; no datetime; or doubt."""
    if not isinstance(value, date) or isinstance(value, datetime):
        return DOUBT
    return value if type(value) is date else date(value.year, value.month, value.day)


def to_time(value: object) -> object:
    """Return a plain time with a fixed offset, if any; or doubt."""
    if not isinstance(value, time):
        return DOUBT
    offset = value.utcoffset()
    if value.tzinfo is not None and offset is None:
        return DOUBT
    zone = None if offset is None else timezone(offset) if offset else UTC
    return time(value.hour, value.minute, value.second, value.microsecond, zone)


def to_timedelta(value: object) -> object:
    """Return a plain timedelta; or doubt."""
    if not isinstance(value, timedelta):
        return DOUBT
    return timedelta(value.days, value.seconds, value.microseconds)


def to_decimal(value: object) -> object:
    """Return a finite plain Decimal; or doubt."""
    if not isinstance(value, Decimal) or not value.is_finite():
        return DOUBT
    return value if type(value) is Decimal else Decimal(value)


def to_uuid(value: object) -> object:
    """Return a plain UUID; or doubt."""
    if not isinstance(value, UUID):
        return DOUBT
    return value if type(value) is UUID else UUID(int=value.int)
