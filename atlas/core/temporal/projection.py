"""Computing the state of a timeline: from the nearest state known, through the events after it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

# Any: events are of whatever type the caller's codec makes.
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.core.temporal.events import FORK, EventCodec, events_in, events_of
from atlas.core.temporal.history import History, base_stream, least
from atlas.core.temporal.states import View
from atlas.errors import (
    ConfigurationError,
    ErasedError,
    LogFormatError,
    LogUnavailableError,
    StateError,
    TransitionError,
    UnknownVersionError,
)

__all__ = ["Projection"]

S = TypeVar("S")

_NEAR = 32
"""So many events are sooner applied than a snapshot is found."""

_RECORD = 60
"""About so many bytes a record is taken to need besides its payload: hashes, times, index entries."""

_EVENT = 40
"""So many more bytes each event counts, as applying it again takes time, also where it is packed."""

_TOGETHER = 64
"""At most so many records are read by one call of the JSON parser."""

_STEADY = 1.25
"""A state up to so many times as large as at the snapshot before does not grow with every event."""

BASE = "$base@1"


def _size(records: Sequence[Record]) -> int:
    return sum([len(record.payload or b"") for record in records]) + _RECORD * len(records)


@dataclass(slots=True)
class _Known(Generic[S]):
    """A state, and what there was since the snapshot before it."""

    version: int
    state: S
    snapshot_version: int = 0
    snapshot_size: int = 0
    bytes_since: int = 0
    bytes_needed: float = 0


class Projection(Generic[S]):
    """The states of one timeline in one view. Safe for threads; transitions run under its lock."""

    def __init__(self, history: History, view: View[S], codec: EventCodec) -> None:
        self.history = history
        self.view = view
        self._codec = codec
        self._lock = threading.RLock()
        self._latest: _Known[S] | None = None
        # Where somebody looked last: who goes through a history step by step looks near it next.
        self._last: _Known[S] | None = None

    def now(self) -> tuple[int, S]:
        """Return the last version and the state there."""
        with self._lock:
            known = self._latest or self._stored(None)
            self._latest = self._computed(known, None)
            return self._latest.version, self._latest.state

    def at(self, version: int) -> S:
        """Return the state at a version.

        Raises:
            UnknownVersionError: There is none such.
        """
        with self._lock:
            found = self._computed(self._nearest(version), version)
            if found.version < version:
                raise self._unknown(version, found.version)
            self._last = found
            return found.state

    def forget(self) -> None:
        """Forget every state but the ones kept in the log."""
        with self._lock:
            self._latest = self._last = None

    def checkpoint(self) -> int:
        """Keep the current state as a snapshot; return its version."""
        with self._lock:
            version, state = self.now()
            record = self.history.record_of(version) if version else None
            if record is not None and record.name != FORK:
                payload = self.view.dump(state, self._what(version))
                self._save(record, payload)
        return version

    def keep_bases(self, versions: Sequence[int]) -> None:
        """Store the states at these versions durably, as events before them will be erased."""
        if not self.view.is_named:
            raise ConfigurationError(
                f"The states of the timeline {self.history.name!r} are to be kept, and nothing says "
                f"under which name, as {self.view.name!r} may be that of others as well. Open it with "
                f"`view='...'`."
            )
        stream = base_stream(self.history.name, self.view.name)
        kept = self.history.engine.head(stream) or 0
        records = [
            NewRecord(stream, BASE, self.view.dump(self.at(version), self._what(version)), version)
            for version in sorted(set(versions))
            if version > kept
        ]
        if records:
            self.history.engine.append(records, expect={stream: kept}).wait()

    # -- where to begin --

    def _nearest(self, version: int) -> _Known[S]:
        near = [each for each in (self._latest, self._last) if each and each.version <= version]
        best = max(near, key=lambda each: each.version, default=self._first())
        if version - best.version <= _NEAR:
            return best
        stored = self._stored(version)
        return stored if stored.version > best.version else best

    def _first(self) -> _Known[S]:
        return _Known(0, self.view.initial)

    def _stored(self, until: int | None) -> _Known[S]:
        """Return the latest snapshot that is whole and made by this code, else the beginning."""
        if self.view.policy is None:
            return self._first()
        for segment in reversed(self.history.segments):
            end = least(until, segment.until)
            while end is None or end > segment.after:
                snapshot = self.history.engine.snapshot(segment.stream, self.view.label, end)
                if snapshot is None or snapshot.version <= segment.after:
                    break
                known = self._opened(snapshot)
                if known is not None:
                    return known
                end = snapshot.version - 1
        return self._first()

    def _opened(self, snapshot: Snapshot) -> _Known[S] | None:
        """Read a snapshot, unless it is of events that are no longer there, or of other code."""
        found = self.history.engine.read(
            snapshot.stream, after=snapshot.version - 1, until=snapshot.version
        )
        chain, payload = snapshot.payload[:32], snapshot.payload[32:]
        if not found or found[0].chain != chain:
            return None
        try:
            state = self.view.codec.load(payload)
        except (StateError, ValueError, TypeError, LookupError):
            return None
        # Before that another one is not worth its room, nor the time to find out.
        needed = min(self.view.policy.share if self.view.policy else 0, 1) * len(payload)
        return _Known(snapshot.version, state, snapshot.version, len(payload), 0, needed)

    def _base(self, until: int | None) -> _Known[S] | None:
        """Return the latest base state, kept when events before it were erased."""
        if not self.view.is_named:
            return None
        for segment in reversed(self.history.segments):
            end = least(until, segment.until)
            found = self.history.engine.read(
                base_stream(segment.stream, self.view.name),
                until=end,
                limit=1,
                newest_first=True,
            )
            if found and found[0].payload is not None and found[0].version > segment.after:
                record = found[0]
                state = self.view.codec.load(found[0].payload)
                return _Known(record.version, state, record.version, len(found[0].payload))
        return None

    # -- going on --

    def _computed(self, known: _Known[S], until: int | None) -> _Known[S]:
        try:
            return self._folded(known, until)
        except ErasedError as error:
            base = self._base(until)
            if base is not None and base.version > known.version:
                return self._folded(base, until)
            raise self._erased(error, until) from error

    def _folded(self, known: _Known[S], until: int | None) -> _Known[S]:
        """Apply the events after a known state up to a version."""
        here = replace(known)
        for records, end in self.history.pages(here.version, until):
            at = 0
            while at < len(records):
                at += self._fold_some(here, records, at, end)
        return here

    def _fold_some(
        self, here: _Known[S], records: Sequence[Record], at: int, end: int | None
    ) -> int:
        """Apply the events of a few records, or of one; return of how many."""
        few = self._few(here, records, at)
        events = events_of(few, self._codec) if len(few) > 1 else None
        if events is None:
            few = few[:1]
            events = self._events_after(here.version, few[0], end)
        self._apply(here, events)
        here.bytes_since += _size(few) + _EVENT * len(events)
        if here.version == few[-1].version:
            self._snapshot_when_due(here, few[-1])
        return len(few)

    def _few(self, here: _Known[S], records: Sequence[Record], at: int) -> Sequence[Record]:
        """Return records of one event each up to where a snapshot may be due, or else one record."""
        policy, most = self.view.policy, _TOGETHER
        if policy is not None:
            left = policy.events - (here.version - here.snapshot_version)
            most = left if 0 < left < most else most
        few = records[at : at + most]
        is_large = (
            policy is not None and here.bytes_since < policy.size <= here.bytes_since + _size(few)
        )
        are_single = few[0].version == here.version + 1 and few[-1].version == here.version + len(
            few
        )
        return few if are_single and not is_large else few[:1]

    def _events_after(self, version: int, record: Record, end: int | None) -> list[Any]:
        events = events_in(record, self._codec)
        first = record.version - len(events)
        if first > version:
            raise self._gap(record, version)
        last = record.version if end is None else min(record.version, end)
        if first < version or last < record.version:
            return events[version - first : last - first]
        return events

    def _apply(self, here: _Known[S], events: list[Any]) -> None:
        transition, state, version = self.view.transition, here.state, here.version
        event = None
        try:
            for event in events:
                state = transition(state, event)
                if state is None:
                    break
                version += 1
        except Exception as error:
            raise self._failed(event, version, f"raised {error!r}") from error
        if state is None:
            raise self._failed(event, version, "returned None, so its `return` may be missing")
        here.state, here.version = state, version

    def _snapshot_when_due(self, here: _Known[S], record: Record) -> None:
        policy = self.view.policy
        if policy is None or record.name == FORK:
            return
        is_due = (
            here.version - here.snapshot_version >= policy.events or here.bytes_since >= policy.size
        )
        if not is_due or here.bytes_since < here.bytes_needed:
            return
        payload = self.view.dump(here.state, self._what(here.version))
        size = len(payload)
        # What has grown repeats the snapshot before; what has not may come as often as it pays.
        share = policy.share if size > _STEADY * here.snapshot_size else min(policy.share, 1)
        here.bytes_needed = share * size
        if here.bytes_since < here.bytes_needed:
            return
        here.snapshot_version, here.snapshot_size = here.version, size
        here.bytes_since, here.bytes_needed = 0, min(policy.share, 1) * size
        # It is a cache: where the log can only be read, or its disk is full, reading goes on.
        with suppress(LogUnavailableError):
            self._save(record, payload)

    def _save(self, record: Record, payload: bytes) -> None:
        self.history.engine.save_snapshot(
            Snapshot(record.stream, record.version, self.view.label, record.chain + payload)
        )

    # -- what to say --

    def _what(self, version: int) -> str:
        return f"The state of the timeline {self.history.name!r} at version {version}"

    def _failed(self, event: object, version: int, what: str) -> TransitionError:
        return TransitionError(
            f"The transition of the timeline {self.history.name!r} {what}, at version {version}, "
            f"for {event!r}, which would have made version {version + 1}. The log is as it was; "
            f"mend the transition.",
            event=event,
            version=version,
        )

    def _erased(self, error: ErasedError, until: int | None) -> ErasedError:
        views = sorted(
            unquote(stream.rpartition("/")[2])
            for segment in self.history.segments
            for stream in self.history.engine.streams(base_stream(segment.stream))
        )
        what = "The last state" if until is None else f"The state at version {until}"
        return ErasedError(
            f"{what} of the timeline {self.history.name!r} needs events that were erased, at position "
            f"{error.position} of the log, and no base state of the view {self.view.name!r} covers "
            f"them; there are such of {', '.join(map(repr, views)) or 'no view'}. Read a later version, "
            f"open the timeline with the `view=` it was erased with, or import an export from before.",
            position=error.position,
        )

    def _gap(self, record: Record, version: int) -> LogFormatError:
        return LogFormatError(
            f"The stream {self.history.name!r} has version {record.version} after version {version}, "
            f"so that it is no timeline of a TemporalStore. Read it with what has written it."
        )

    def _unknown(self, version: int, last: int) -> UnknownVersionError:
        return UnknownVersionError(
            f"The timeline {self.history.name!r} has no version {version!r}; there are 0 to {last}.",
            version=version,
        )
