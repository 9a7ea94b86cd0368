"""Where the events of a timeline are: its own records, and those it shares with what it was forked from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from atlas.core.log.engine import Engine
from atlas.core.log.records import NewRecord, Record
from atlas.core.schema.canonical import canonical_text
from atlas.core.temporal.events import FORK
from atlas.core.temporal.times import Times, times_of
from atlas.core.temporal.values import is_storable
from atlas.errors import ConfigurationError, LogFormatError

__all__ = ["CHUNK", "History", "Segment", "base_stream", "check_name", "facts_stream", "least"]

CHUNK = 320
"""How many records are read at once: so few that they and their rows are gone before there are 700 new
objects, when Python looks for garbage; with 1,000, that takes a third of the time of a rebuild."""

LABEL, FORKED = "$label@1", "$forked@1"


def check_name(name: object) -> str:
    """Return the name of a timeline, if it may be one.

    Raises:
        ConfigurationError: It is no text, is empty, begins with ``$``, or cannot be stored.
    """
    if not isinstance(name, str) or not name or name.startswith("$") or not is_storable(name):
        raise ConfigurationError(
            f"{name!r} is no name of a timeline; use a text such as 'order-A1' that does not begin "
            f"with '$' (which marks the streams of the log itself), without NUL and lone surrogates."
        )
    return name


def facts_stream(name: str) -> str:
    """Return the stream that keeps the labels and the forks of a timeline."""
    return f"$timeline/{name}"


def base_stream(name: str, view: str = "") -> str:
    """Return the stream of the base states of a view; without one, what all of them begin with."""
    return f"$base/{quote(name, safe='')}/{quote(view, safe='')}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a history: the versions after one up to another that are in one stream.

    Attributes:
        stream: Where they are.
        after: The version before the first.
        until: The last version; None for the part that still grows.
    """

    stream: str
    after: int
    until: int | None


class History:
    """The records of a timeline, with those of its ancestors. Safe for threads."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name
        self._segments: tuple[Segment, ...] = ()
        self._imported: dict[str, Times | None] = {}

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Where the versions are, oldest first; the last segment is the timeline's own."""
        if self._segments:
            return self._segments
        first = self.engine.read(self.name, limit=1)
        if not first:
            return (Segment(self.name, 0, None),)  # it may yet become a fork
        self._segments = _lineage(self.engine, first[0])
        return self._segments

    @property
    def start(self) -> int:
        """The version this timeline was forked at; 0 if it was not."""
        return self.segments[-1].after

    def head(self) -> int:
        """Return the last version; 0 when there is none."""
        return self.engine.head(self.name) or 0

    def records(self, after: int, until: int | None = None) -> Iterator[tuple[Record, int]]:
        """Yield the records after a version, each with the last version of it that belongs here.

        The last one contains ``until``. Of a record of several events, the first may be before
        ``after``, and the last beyond where the timeline was forked, or beyond ``until``.
        """
        for records, end in self.pages(after, until):
            for record in records:
                yield record, record.version if end is None else min(record.version, end)

    def pages(
        self, after: int, until: int | None = None
    ) -> Iterator[tuple[list[Record], int | None]]:
        """Yield the same records many at once, with the last version of them that belongs here.

        That is None where all of them do.
        """
        for segment in self.segments:
            start = max(after, segment.after)
            end = least(until, segment.until)
            if end is None or start < end:
                for records in self._read(segment.stream, start, end):
                    yield records, end

    def _read(self, stream: str, after: int, until: int | None) -> Iterator[list[Record]]:
        while True:
            found = self.engine.read(stream, after=after, until=until, limit=CHUNK)
            yield found
            if found:
                after = found[-1].version
            if len(found) < CHUNK:
                break
        if until is not None and after < until:
            # It is in the middle of a batch, or was not reached yet.
            yield self.engine.read(stream, after=after, limit=1)

    def record_of(self, version: int) -> Record | None:
        """Return the record that contains a version."""
        return next((record for record, _ in self.records(version - 1, version)), None)

    def segment_of(self, version: int) -> Segment:
        """Return where a version is."""
        segments = self.segments
        return next((s for s in segments if s.until is None or version <= s.until), segments[-1])

    # -- time --

    def version_at(self, time_ns: int) -> int:
        """Return the last version that was appended at a time or before; 0 when none was."""
        position = self.engine.position_at(time_ns)
        for index, segment in reversed(list(enumerate(self.segments))):
            if time_ns < self._floor(index):
                continue
            times = self._times(segment.stream)
            if times is not None and time_ns < times.times[-1]:
                found = times.version_at(time_ns)
            else:
                found = self._last_until(segment, position)
                found = found if times is None else max(found or 0, times.versions[-1])
            if found is not None and found >= max(segment.after, 1):
                return found if segment.until is None else min(found, segment.until)
        return 0

    def time_ns(self, record: Record) -> int:
        """Return when a record was appended: for an imported one, to the log it came from.

        It is never before the record before, even if the clock was behind when that was imported.
        """
        segments = self.segments
        index = next(i for i, each in enumerate(segments) if each.stream == record.stream)
        times = self._times(record.stream)
        if times is None:
            return max(record.time_ns, self._floor(index))
        imported = times.time_of(record.version)
        own = max(record.time_ns, times.times[-1]) if imported is None else imported
        return max(own, self._floor(index))

    def _floor(self, index: int) -> int:
        """Return when the last imported record before a segment was appended; 0 for none."""
        floor = 0
        for segment in self.segments[:index]:
            times = self._times(segment.stream)
            if times is not None and segment.until is not None:
                floor = max(floor, times.time_before(segment.until))
        return floor

    def _times(self, stream: str) -> Times | None:
        # A stream is imported as a whole, before it has any other record: so this cannot change.
        if stream not in self._imported:
            found = times_of(self.engine, stream)
            if not self._segments:
                return found
            self._imported[stream] = found
        return self._imported[stream]

    def _last_until(self, segment: Segment, position: int) -> int | None:
        """Return the version of the last record of a stream up to a position of the log.

        Positions rise with versions, so that a few records are looked at, whatever their number.
        """
        there = self.engine.read_all(after=position - 1, until=position)
        if there and there[0].stream == segment.stream:
            return there[0].version
        newest = self.engine.read(segment.stream, limit=1, newest_first=True)
        if not newest:
            return None
        high = newest[0]
        if high.position <= position:
            return high.version
        low = self.engine.read(segment.stream, limit=1)[0]
        if low.position > position:
            return None
        floor, halve = low.version, False
        while floor + 1 < high.version:
            guess = _between(floor, low, high, position, halve=halve)
            halve = not halve
            found = self.engine.read(
                segment.stream, after=floor, until=guess, limit=1, newest_first=True
            )
            if not found:
                # Records of several events leave gaps: nothing is between the two beside this one.
                found = self.engine.read(segment.stream, after=guess, limit=1)
                if found[0].position > position:
                    return low.version
                guess = found[0].version
            if found[0].position > position:
                high = found[0]
            else:
                low, floor = found[0], guess
        return low.version

    # -- labels and forks --

    def labels(self) -> dict[str, int]:
        """Return the version of each label, also of those from before the timeline was forked."""
        found = {
            label: version
            for segment in self.segments
            for label, version in _facts(self.engine, segment.stream, LABEL, "label", "version")
            if segment.until is None or version <= segment.until
        }
        return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))

    def label_record(self, label: str, version: int) -> NewRecord:
        """Return the record that gives a version a label."""
        return _fact(facts_stream(self.name), LABEL, {"label": label, "version": version})

    def forks(self) -> list[tuple[str, int]]:
        """Return the timelines that were forked from the timeline itself, and at which version."""
        return list(_facts(self.engine, self.name, FORKED, "to", "at"))

    def fork_records(self, name: str, at: int) -> list[NewRecord]:
        """Return the records that make a timeline share this one's events up to a version."""
        # What it shares may be shared already: then it is taken from where it is.
        source = self.segment_of(at).stream
        payload = canonical_text({"at": at, "from": source}).encode("utf-8", "backslashreplace")
        return [
            NewRecord(name, FORK, payload, at),
            _fact(facts_stream(source), FORKED, {"at": at, "to": name}),
        ]


def _lineage(engine: Engine, first: Record) -> tuple[Segment, ...]:
    """Follow the markers of forks back to a timeline that is none."""
    stream, until = first.stream, None
    found: list[Segment] = []
    while first.name == FORK:
        source, at = _marker(first)
        found.append(Segment(stream, at, until))
        stream, until = source, at
        earlier = engine.read(source, limit=1)
        if not earlier or any(segment.stream == source for segment in found):
            raise LogFormatError(
                f"{first.stream!r} was forked from {source!r}, which is not in the log. Import both "
                f"timelines together."
            )
        first = earlier[0]
    found.append(Segment(stream, 0, until))
    return tuple(reversed(found))


def _marker(record: Record) -> tuple[str, int]:
    try:
        content = json.loads(record.payload or b"")
        source, at = str(content["from"]), int(content["at"])
    except (ValueError, TypeError, LookupError) as error:
        raise LogFormatError(
            f"The timeline {record.stream!r} was forked from another, and position "
            f"{record.position} of the log does not say which: {error}. Its own events can be "
            f"exported still."
        ) from error
    return source, at


def _facts(
    engine: Engine, name: str, kind: str, key: str, number: str
) -> Iterator[tuple[str, int]]:
    for record in engine.read(facts_stream(name)):
        if record.name == kind and record.payload is not None:
            content = json.loads(record.payload)
            yield content[key], content[number]


def _fact(stream: str, kind: str, content: dict[str, object]) -> NewRecord:
    return NewRecord(stream, kind, canonical_text(content).encode("utf-8", "backslashreplace"))


def _between(floor: int, low: Record, high: Record, position: int, *, halve: bool) -> int:
    """Guess the version at a position: where it would be at a steady pace, or else the middle."""
    last = high.version - 1
    if halve:
        return (floor + 1 + last) // 2
    share = (position - low.position) / (high.position - low.position)
    return min(max(low.version + int(share * (high.version - low.version)), floor + 1), last)


def least(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two versions, where None is beyond all."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
