"""Events as records of a timeline, and back.

One event is one record: its name says what it is, its payload is JSON. Events that are appended
together are packed, up to 64 into a record whose version is that of the last of them: read back they
cost a third.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

# Any: the fields of events, as JSON has them, and events of whatever type a codec makes.
from typing import Any, Protocol, cast

from atlas.core.log.records import NewRecord, Record
from atlas.core.messages import Message, message_class
from atlas.core.nodes import DOUBT
from atlas.core.schema.canonical import canonical_text, to_bytes
from atlas.core.schema.codec import decode, dump, encode, load
from atlas.core.schema.compiled import compiled_for
from atlas.core.schema.migrations import upcast
from atlas.core.temporal.values import Values
from atlas.errors import (
    AtlasError,
    ConfigurationError,
    ErasedError,
    LogFormatError,
    SchemaError,
    UnknownMessageError,
)
from atlas.typing import JSON

__all__ = [
    "BATCH",
    "ERASED",
    "FORK",
    "DataclassEvents",
    "Entry",
    "EventCodec",
    "MessageEvents",
    "entries_in",
    "events_in",
    "events_of",
    "is_erased",
    "new_records",
]

BATCH, FORK, ERASED, PLAIN = "$batch@1", "$fork@1", "$erased@1", "$json@1"
_PACK = 64
"""At most so many events in one record: a state within is computed from the record as a whole."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """An event in its place.

    Attributes:
        version: Its place in the timeline, from 1.
        event: What was appended, as an instance of today's class.
        position: The place of its record in the whole log.
        time_ns: When it was appended, in ns since 1970; never before the event before.
        wall_ns: When it happened, by the clock of who wrote it; for a message, when it was published.
    """

    version: int
    event: Any
    position: int
    time_ns: int
    wall_ns: int

    @property
    def time(self) -> datetime:
        """When it was appended, in UTC, to the microsecond."""
        return _EPOCH + timedelta(microseconds=self.time_ns // 1000)


class EventCodec(Protocol):
    """Turns events into JSON and back. Must be pure and safe for threads."""

    def dump(self, event: Any) -> tuple[str, JSON]:
        """Return the name of an event, such as ``order.placed@1``, and its content.

        A name that begins with ``$`` belongs to the store.
        """
        ...

    def load(self, name: str, content: JSON) -> Any:
        """Return the event with this name and content, also one that older code has written."""
        ...


class MessageEvents:
    """Events that are Atlas messages, with their metadata if they were published, or JSON values.

    Messages of an old version are led up to today's by the upcasters registered for them.
    """

    def __init__(self) -> None:
        self._labels: dict[str, tuple[str, int]] = {}

    def dump(self, event: object) -> tuple[str, JSON]:
        """Return the name and the fields of a message; with its metadata if it was published."""
        if not isinstance(event, Message):
            try:
                _check_plain(event)
            except RecursionError as error:
                raise SchemaError(
                    "An event holds itself, or is nested too deep to be stored. Store what it "
                    "refers to by an id, or flatten it."
                ) from error
            return PLAIN, cast("JSON", event)
        name = f"{event.message_name}@{event.message_version}"
        if event._stamp is None:
            return name, cast("JSON", dump(event))
        envelope = json.loads(encode(event))
        return name, [envelope["fields"], envelope["meta"]]

    def load(self, name: str, content: JSON) -> object:
        """Return the message as an instance of today's class.

        Raises:
            UnknownMessageError: No message has this name, or the record is newer than the code.
            MigrationError: No chain of upcasters leads to today's version.
            ValidationError: A field is not what the class wants.
        """
        if name == PLAIN:
            return content
        try:
            label, version = self._labels[name]
        except KeyError:
            label, version = self._parsed(name)
        if type(content) is list:
            return _published(label, version, content)
        cls = _todays(label)
        if cls is None or cls.message_version != version:
            label, content = upcast(label, version, cast("dict[str, JSON]", content))
            cls = message_class(label)
        made = compiled_for(cls).read(content)
        # What the quick reader is not sure of, the schema judges.
        return load(cls, content) if made is DOUBT else made

    def _parsed(self, name: str) -> tuple[str, int]:
        label, mark, version = name.rpartition("@")
        if not (mark and label and version.isdecimal()):
            raise LogFormatError(
                f"{name!r} is no name of a message, such as 'order.placed@1'. Read the timeline with "
                f"the codec that it was written with."
            )
        found = self._labels[name] = label, int(version)
        return found


def _todays(label: str) -> type[Message] | None:
    try:
        return message_class(label)
    except UnknownMessageError:
        return None  # it may have been renamed: the upcasters know


def _published(label: str, version: int, content: list[JSON]) -> Message:
    fields, meta = content
    return decode(
        canonical_text({"fields": fields, "meta": meta, "name": label, "version": version}).encode(
            "utf-8", "backslashreplace"
        )
    )


def _check_plain(event: object) -> None:
    """Refuse what is no JSON value, and what would be read back as something else."""
    kind = type(event)
    if kind is dict:
        given = cast("dict[object, object]", event)
        for key, item in given.items():
            if type(key) is not str:
                raise _no_event(key)
            _check_plain(item)
    elif kind is list:
        for item in cast("list[object]", event):
            _check_plain(item)
    elif kind not in _SCALARS or (kind is float and not math.isfinite(cast("float", event))):
        raise _no_event(event)


_SCALARS = frozenset({str, int, float, bool, type(None)})


def _no_event(event: object) -> SchemaError:
    return SchemaError(
        f"{event!r} is neither an Atlas message nor a JSON value, so that it cannot be stored. Put "
        f"@message above its class, or give the timeline `events=DataclassEvents(...)` or a codec "
        f"of your own."
    )


class DataclassEvents:
    """Events that are frozen dataclasses, by the name of their class.

    Args:
        kinds: The classes; their fields may hold whatever `Values` can write. A field that is added
            later needs a default.
        names: Names in the log for classes that were renamed or would share one.

    Raises:
        ConfigurationError: Something is no dataclass, or two have the same name.
    """

    def __init__(self, *kinds: type, names: dict[str, type] | None = None) -> None:
        self._kinds = {f"{kind.__qualname__}@1": kind for kind in kinds}
        self._kinds |= {f"{name}@1": kind for name, kind in (names or {}).items()}
        for kind in self._kinds.values():
            if not dataclasses.is_dataclass(kind):
                raise ConfigurationError(f"{kind!r} is no dataclass; put @dataclass above it.")
        if len(self._kinds) < len(kinds) + len(names or {}):
            raise ConfigurationError(
                f"Two of {kinds!r} have the same name; tell them apart with `names=`."
            )
        self._names = {kind: name for name, kind in self._kinds.items()}
        self._values = Values(None, kinds)

    def dump(self, event: object) -> tuple[str, JSON]:
        """Return the name of the class, and the fields."""
        name = self._names.get(type(event))
        if name is None:
            raise SchemaError(
                f"{event!r} is none of {', '.join(sorted(self._kinds))}; add its class to "
                f"`DataclassEvents(...)`."
            )
        given = cast("Any", event)
        return name, {
            field.name: self._values.dump(getattr(given, field.name))
            for field in dataclasses.fields(given)
            if field.init
        }

    def load(self, name: str, content: JSON) -> object:
        """Return an instance of the class."""
        kind = self._kinds.get(name)
        if kind is None:
            raise LogFormatError(
                f"{name!r} is none of {', '.join(sorted(self._kinds))}; add its class to "
                f"`DataclassEvents(...)`, under its old name with `names=`."
            )
        fields = cast("dict[str, JSON]", content)
        try:
            return kind(**{key: self._values.load(item) for key, item in fields.items()})
        except (TypeError, ValueError) as error:
            raise LogFormatError(f"{content!r} does not fit {kind!r} any more: {error}.") from error


# -- writing --------------------------------------------------------------------------------------


def new_records(
    stream: str, events: Sequence[object], codec: EventCodec, expected: int | None
) -> list[NewRecord]:
    """Return the records of events: one for a single one, else packed.

    Args:
        stream: The timeline.
        events: One or more.
        codec: How they are written.
        expected: The version before them; None: whichever there is, and the engine numbers them.

    Raises:
        SchemaError: An event cannot be written.
    """
    dumped = [_dumped(event, codec) for event in events]
    if len(events) == 1:
        ((name, content),) = dumped
        version = None if expected is None else expected + 1
        return [NewRecord(stream, name, _bytes(content, name), version, _time_of(events[0]))]
    return [
        _packed(
            stream,
            dumped[at : at + _PACK],
            None if expected is None else expected + at,
            _time_of(events[min(at + _PACK, len(events)) - 1]),
        )
        for at in range(0, len(events), _PACK)
    ]


def _packed(
    stream: str, dumped: Sequence[tuple[str, JSON]], after: int | None, time_ns: int | None
) -> NewRecord:
    runs: list[list[JSON]] = []
    for name, content in dumped:
        if not runs or runs[-1][0] != name:
            runs.append([name])
        runs[-1].append(content)
    version = None if after is None else after + len(dumped)
    return NewRecord(stream, BATCH, _bytes(runs, BATCH), version, time_ns, len(dumped))


def _dumped(event: object, codec: EventCodec) -> tuple[str, JSON]:
    name, content = codec.dump(event)
    if not _is_name(name):
        raise SchemaError(
            f"The codec {codec!r} names {event!r} {name!r}; names are texts that do not begin "
            f"with '$', which marks those of the store."
        )
    return name, content


def _is_name(name: object) -> bool:
    if not isinstance(name, str) or not name:
        return False
    return name == PLAIN or not name.startswith("$")


def _time_of(event: object) -> int | None:
    return event.meta.time_ns if isinstance(event, Message) and event._stamp else None


def _bytes(content: object, name: str) -> bytes:
    try:
        return to_bytes(canonical_text(content), name)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, AtlasError):
            raise
        raise SchemaError(f"The content of {name!r} is no JSON value: {error}.") from error


# -- reading --------------------------------------------------------------------------------------


# Twice as quick as json.loads, which looks for other encodings first. The log vouches for the bytes.
_read_json = json.JSONDecoder().raw_decode


def is_erased(record: Record) -> bool:
    """Whether the content of a record is gone."""
    return record.payload is None or record.name == ERASED


def events_in(record: Record, codec: EventCodec) -> list[Any]:
    """Return the events of a record; the marker of a fork has none.

    Raises:
        ErasedError: They were erased.
        LogFormatError: It is no record of a timeline, or not one that this codec reads.
        UnknownMessageError: The code has no message of this name and version.
    """
    name = record.name
    if name == FORK:
        return []
    payload = record.payload
    if payload is None or name == ERASED:
        raise _erased(record)
    try:
        content, _ = _read_json(payload.decode())
        load = codec.load
        if name != BATCH:
            return [load(name, content)]
        return [load(run[0], item) for run in content for item in run[1:]]
    except UnknownMessageError as error:
        raise UnknownMessageError(
            f"{_place(record)} cannot be read: {error}", name=error.name, version=error.version
        ) from error
    except (AtlasError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise LogFormatError(
            f"{_place(record)} cannot be read: {str(error).rstrip('.')}. Read it with the codec it was written with, "
            f"and register upcasters for what has changed since."
        ) from error


def events_of(records: Sequence[Record], codec: EventCodec) -> list[Any] | None:
    """Return the events of records that hold one each, read by one call of the JSON parser.

    None if they are not such records, or one cannot be read: `events_in` says which, and why.
    """
    if not _OF_THE_STORE.isdisjoint([record.name for record in records]):
        return None
    try:
        # One that was erased has no payload, which is an error like others.
        text = b",".join([record.payload for record in records])  # type: ignore[misc]
        contents, _ = _read_json(f"[{text.decode()}]")
        if len(contents) != len(records):
            return None
        load = codec.load
        return [
            load(record.name, content) for record, content in zip(records, contents, strict=True)
        ]
    # Whatever it is, it is met again, and told, where they are read one by one.
    except (AtlasError, ValueError, TypeError, LookupError, RecursionError):
        return None


_OF_THE_STORE = frozenset({BATCH, FORK, ERASED})


def entries_in(record: Record, codec: EventCodec, time_ns: int) -> list[Entry]:
    """Return the events of a record, appended at this time, with their places."""
    events = events_in(record, codec)
    first = record.version - len(events) + 1
    return [
        Entry(first + index, event, record.position, time_ns, record.wall_ns)
        for index, event in enumerate(events)
    ]


def _place(record: Record) -> str:
    return (
        f"Version {record.version} of the timeline {record.stream!r}, a {record.name!r} at position "
        f"{record.position} of the log,"
    )


def _erased(record: Record) -> ErasedError:
    return ErasedError(
        f"{_place(record)} was erased. Read a later version, which a base state kept by `erase` "
        f"covers, or import an export from before.",
        position=record.position,
    )
