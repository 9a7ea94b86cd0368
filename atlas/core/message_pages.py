"""Pages: many messages of one run in one record of the log.

A token is a message of some four letters; a record of its own, with hashes, ids and keys, would cost
fifty times that. A page says everything that messages have in common once, tells sequence and time
as differences, and is compressed as a whole. What comes out is equal to what went in: fields, ids,
times, causes, headers. Only secrets do not go in: a field marked `SECRET` is replaced by a marker.

The text inside is JSON, so that a page can be read without Atlas: see `pack` for its keys.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, cast

from atlas.core.messages import (
    FrozenDict,
    Message,
    Origin,
    message_id,
    origin_in,
    spelled_out,
    stamp,
)
from atlas.core.perspective import without_secrets
from atlas.core.schema.canonical import canonical_text, quote
from atlas.core.schema.codec import UnknownMessage, fields_text, from_fields
from atlas.errors import LogFormatError, ValidationError

__all__ = ["MARKER", "OUTSIDE", "PAGE", "logical_lines", "pack", "unpack"]

PAGE: Final = "atlas.page@1"
"""Name of the records that hold pages."""

MARKER: Final = "[redacted]"
"""What a page holds in the place of a secret."""

_PLAIN: Final = b"j"
_COMPRESSED: Final = b"z"
_WORTH_COMPRESSING: Final = 200


_NO_ALIASES: Final[Mapping[str, str]] = FrozenDict()

OUTSIDE: Final = "atlas-outside"
"""Header of a message that somebody else published because of the run, not the run itself: it is no
part of what a replay does again."""


def pack(
    run: str,
    messages: Sequence[Message],
    outside: AbstractSet[int] = frozenset(),
    aliases: Mapping[str, str] = _NO_ALIASES,
) -> bytes:
    """Return the bytes of a page.

    The text is an object: ``run``; ``buses``, ``names`` (name and version) and ``ids``, to which
    entries refer by index; ``entries``: for each message the index of its name, the index of its
    bus, sequence and time as differences from the entry before, the index of the id of its cause
    and of its correlation (null: none, or itself), its fields, and then, if there is any of them,
    its source and headers.

    Args:
        run: The run all of them belong to.
        messages: Published messages.
        outside: The places among them of those that get the header `OUTSIDE`.
        aliases: Ids under which causes are stored, by the ids they are referred to with.

    Raises:
        SchemaError: The class of a message cannot be written.
    """
    buses: dict[int | str, int] = {}
    names: dict[tuple[str, int], int] = {}
    ids: dict[str, int] = {}
    entries: list[str] = []
    last_sequence = last_time = 0
    for place, each in enumerate(messages):
        assert each._stamp is not None
        origin, causation, correlation, _, source, headers, _ = spelled_out(each._stamp)
        if place in outside:
            headers = {**headers, OUTSIDE: ""}
        bus, sequence, time_ns = (origin, 0, 0) if isinstance(origin, str) else origin
        known = _known(each)
        parts = [
            str(names.setdefault(known, len(names))),
            str(buses.setdefault(bus, len(buses))),
            str(sequence - last_sequence),
            str(time_ns - last_time),
            _reference(causation, ids, aliases),
            _reference(None if _same(correlation, origin) else correlation, ids, aliases),
            _fields(each),
        ]
        if source is not None or headers:
            parts.append("null" if source is None else quote(source))
            parts.append(canonical_text(dict(headers)))
        entries.append(f"[{','.join(parts)}]")
        last_sequence, last_time = sequence, time_ns
    head = canonical_text(
        {"buses": list(buses), "ids": list(ids), "names": list(names), "run": run}
    )
    text = f'{head[:-1]},"entries":[{",".join(entries)}]}}'
    data = text.encode("utf-8", "backslashreplace")
    if len(data) < _WORTH_COMPRESSING:
        return _PLAIN + data
    return _COMPRESSED + zlib.compress(data, 6)


def _known(each: Message) -> tuple[str, int]:
    if isinstance(each, UnknownMessage):
        return each.name, each.version
    return each.message_name, each.message_version


def _fields(each: Message) -> str:
    if isinstance(each, UnknownMessage):
        return canonical_text(each.fields)
    shown = without_secrets(each, MARKER)
    return fields_text(each) if shown is None else canonical_text(shown)


def _same(one: Origin, other: Origin) -> bool:
    return one == other or message_id(one) == message_id(other)


def _reference(origin: Origin | None, ids: dict[str, int], aliases: Mapping[str, str]) -> str:
    if origin is None:
        return "null"
    known = message_id(origin)
    return str(ids.setdefault(aliases.get(known, known), len(ids)))


def unpack(data: bytes) -> list[Message]:
    """Return the messages of a page, as today's classes, with their metadata.

    A message whose name or version this process does not know comes as an `UnknownMessage`; so does
    one whose class refuses the marker that stands in the place of a secret.

    Raises:
        LogFormatError: The bytes are no page.
        ValidationError: A message is not what its class allows.
        MigrationError: No chain of upcasters leads to today's version.
    """
    page = _opened(data)
    run, names, buses, ids = page["run"], page["names"], page["buses"], page["ids"]
    messages: list[Message] = []
    sequence = time_ns = 0
    for kind, bus, later, longer, cause, together, fields, *rest in page["entries"]:
        sequence += later
        time_ns += longer
        name, version = names[kind]
        made = _made(name, version, fields)
        origin: Origin = (buses[bus], sequence, time_ns)
        source, headers = rest or (None, {})
        stamp(
            made,
            (
                origin,
                None if cause is None else ids[cause],
                origin if together is None else ids[together],
                run,
                source,
                FrozenDict(headers),
                0,
            ),
        )
        messages.append(made)
    return messages


def _made(name: str, version: int, fields: Any) -> Message:  # Any: JSON of any shape
    try:
        return from_fields(name, version, fields, unknown="keep")
    except ValidationError:
        if MARKER not in canonical_text(fields):
            raise
        return UnknownMessage(name=name, version=version, fields=fields)


def _opened(data: bytes) -> dict[str, Any]:
    kind, rest = data[:1], data[1:]
    try:
        text = zlib.decompress(rest) if kind == _COMPRESSED else rest
        page = json.loads(text)
    except (zlib.error, ValueError) as error:
        raise LogFormatError(f"A record called {PAGE} is no page of messages: {error}.") from error
    if not isinstance(page, dict) or kind not in (_PLAIN, _COMPRESSED):
        raise LogFormatError(f"A record called {PAGE} is no page of messages: {data[:40]!r}.")
    return cast("dict[str, Any]", page)


def logical_lines(messages: Iterable[Message]) -> list[str]:
    """Return what happened in a run, line by line, without what differs each time it happens.

    Ids become numbers within the run, times and sequences are left out. Two runs in which the same
    happened in the same order give the same lines, byte for byte. What is marked as `OUTSIDE` is
    left out.
    """
    numbers: dict[str, int] = {}
    lines: list[str] = []
    for each in messages:
        assert each._stamp is not None
        origin, causation, correlation, _, source, headers, _ = spelled_out(each._stamp)
        if OUTSIDE in headers:
            continue
        number = len(lines) + 1
        numbers[message_id(origin_in(each._stamp))] = number
        name, version = _known(each)
        line = [
            number,
            name,
            version,
            None if causation is None else numbers.get(message_id(causation), "outside"),
            None if _same(correlation, origin) else numbers.get(message_id(correlation), "outside"),
            source,
            dict(headers),
        ]
        lines.append(f"{canonical_text(line)[:-1]},{_fields(each)}]")
    return lines
