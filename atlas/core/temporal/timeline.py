"""A timeline: the events of one thing, and the states that follow from them."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from datetime import UTC, datetime, timedelta

# Any: events are of whatever type the caller's codec makes.
from typing import Any, Generic, TypeVar

from atlas.core.log.engine import Append
from atlas.core.patches import Patch, diff
from atlas.core.temporal.events import Entry, EventCodec, entries_in, new_records
from atlas.core.temporal.following import Bell, Follower
from atlas.core.temporal.history import History, base_stream, check_name
from atlas.core.temporal.projection import Projection
from atlas.core.temporal.states import View
from atlas.errors import (
    ConfigurationError,
    UnknownNameError,
    UnknownVersionError,
    VersionConflictError,
)

__all__ = ["Appended", "Timeline", "time_in_ns"]

S = TypeVar("S")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Appended:
    """Events on their way into the log: await it, or wait for it, to know that they are stored.

    What nobody waits for is stored all the same; if it fails, `TemporalStore.flush` and ``close``
    raise its error.
    """

    __slots__ = ("_append",)

    def __init__(self, append: Append) -> None:
        self._append = append

    @property
    def done(self) -> bool:
        """Whether they are stored, or have failed."""
        return self._append.done

    def wait(self, timeout: float | None = None) -> int:
        """Block until they are stored; return the version of the last one.

        Args:
            timeout: At most so many seconds.

        Raises:
            VersionConflictError: The timeline was not at the version expected; nothing is stored.
            LogUnavailableError: The log cannot be written; nothing is stored.
            TimeoutError: It took longer; they may be stored yet.
        """
        return self._append.wait(_seconds(timeout))[-1].version

    def __await__(self) -> Generator[Any, Any, int]:
        records = yield from self._append.__await__()
        return records[-1].version


class Timeline(Generic[S]):
    """The events of one thing in the order they were appended, and its state after each of them.

    Version 0 is the initial state; each event makes the next version. Made by
    `TemporalStore.timeline`; as light as a name until it is read. Safe for threads and across
    processes: reading shows what every process has stored. Reading blocks for as long as the log
    is read, which is short once the state is known; a first look at a long timeline belongs on a
    thread (``await asyncio.to_thread(order.now)``) where an event loop must go on.
    """

    def __init__(
        self,
        history: History,
        codec: EventCodec,
        bell: Bell,
        projection: Projection[S] | None,
    ) -> None:
        self._history = history
        self._codec = codec
        self._bell = bell
        self._projected = projection

    def __repr__(self) -> str:
        return f"<Timeline {self.name!r}>"

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self._history.name

    @property
    def version(self) -> int:
        """The version of the last event stored; 0 when there is none."""
        return self._history.head()

    @property
    def forked_from(self) -> tuple[str, int] | None:
        """The timeline whose events come before its own, and the last version they share."""
        segments = self._history.segments
        return (segments[-2].stream, segments[-1].after) if len(segments) > 1 else None

    @property
    def _states(self) -> Projection[S]:
        if self._projected is None:
            raise ConfigurationError(
                f"The timeline {self.name!r} was opened without a transition, so that it has events "
                f"and no state. Open it with `store.timeline({self.name!r}, transition, "
                f"initial=...)`."
            )
        return self._projected

    @property
    def view(self) -> View[S]:
        """How its state follows from its events."""
        return self._states.view

    # -- writing --

    def append(self, *events: object, expected_version: int | None = None) -> Appended:
        """Append events: all of them or none, with nobody else's between them. Returns at once.

        Events given together are packed, up to 64 into one record: they are read back faster, and
        erased together.

        Args:
            events: One or more, of the types that the codec of the timeline takes.
            expected_version: The version the timeline must be at; None: whichever it is.

        Returns:
            To be awaited, or waited for, where it matters that they are stored: the version of the
            last event.

        Raises:
            SchemaError: An event cannot be stored.
            ConfigurationError: There is no event, or the version is none.
        """
        if not events:
            raise ConfigurationError("There is nothing to append; give one event or more.")
        stream = self.name
        if expected_version is None:
            records = new_records(stream, events, self._codec, None)
            return Appended(self._history.engine.append(records))
        expected = _version(expected_version, "expected_version")
        records = new_records(stream, events, self._codec, expected)
        return Appended(self._history.engine.append(records, expect={stream: expected}))

    def label(self, label: str, *, at: int | None = None) -> Appended:
        """Give a version a label, to find it by; a label that there is already moves.

        Args:
            label: Any text that is not empty.
            at: The version; None: the last one.

        Returns:
            To be awaited, or waited for, as for `append`.

        Raises:
            UnknownVersionError: There is no such version.
        """
        record = self._history.label_record(_label(label), self._known_version(at))
        return Appended(self._history.engine.append([record]))

    # -- reading --

    def now(self) -> S:
        """Return the state after the last event.

        Raises:
            TransitionError: The transition failed for an event.
            ErasedError: Events it needs were erased, and no base state was kept.
            UnknownMessageError: The code has no class for an event.
            LogCorruptedError: A record is not what was appended.
        """
        return self._states.now()[1]

    def current(self) -> tuple[int, S]:
        """Return the last version and its state, read in one step; errors as for `now`."""
        return self._states.now()

    def at(
        self, version: int | None = None, *, time: datetime | None = None, label: str | None = None
    ) -> S:
        """Return the state at a version, as of a time, or at a label; errors as for `now`.

        Args:
            version: From 0, the initial state, to the last.
            time: The state after the last event that was appended at this time or before, by the
                clock of the log, which never goes back. Must have a time zone.
            label: The state at the version of a label.

        Raises:
            UnknownVersionError: There is no such version.
            UnknownNameError: There is no such label.
        """
        return self._states.at(self.version_at(version, time=time, label=label))

    def version_at(
        self, version: int | None = None, *, time: datetime | None = None, label: str | None = None
    ) -> int:
        """Return the version as of a time, or at a label; arguments and errors as for `at`."""
        if sum(each is not None for each in (version, time, label)) != 1:
            raise ConfigurationError("Give exactly one of a version, `time=` and `label=`.")
        if version is not None:
            return _version(version, "version")
        if time is not None:
            return self._history.version_at(time_in_ns(time))
        labels = self._history.labels()
        if label not in labels:
            known = ", ".join(map(repr, labels)) or "no labels at all"
            raise UnknownNameError(
                f"The timeline {self.name!r} has no label {label!r}; it has {known}.",
                name=str(label),
            )
        return labels[label]

    def events(self, *, after: int = 0, until: int | None = None) -> list[Entry]:
        """Return the events after a version, up to another; None: up to the last one.

        For so many that they should not be in memory together, use ``follow(until=order.version)``.

        Raises:
            ErasedError: One of them was erased.
            UnknownMessageError: The code has no class for an event.
        """
        after = _version(after, "after")
        if until is not None:
            until = _version(until, "until")
        return [
            entry
            for record, last in self._history.records(after, until)
            for entry in entries_in(record, self._codec, self._history.time_ns(record))
            if after < entry.version <= last
        ]

    def diff(self, before: int, after: int | None = None) -> Patch:
        """Return the RFC 6902 patch from the state at one version to that at another.

        Args:
            before: The version to start from; it may be the later one.
            after: The version to arrive at; None: the last one.

        Raises:
            PatchError: Something that changed has no JSON form.
        """
        old = self._states.at(_version(before, "before"))
        new = self.now() if after is None else self._states.at(_version(after, "after"))
        return diff(old, new)

    def follow(
        self, *, after: int = 0, until: int | None = None, timeout: float | None = None
    ) -> Follower:
        """Return the events after a version, first those stored, then those appended from now on.

        Args:
            after: Begin after this version; ``order.version`` for new events only.
            until: End with this version; None: go on for ever.
            timeout: End when no event came for so many seconds; None: never.

        Returns:
            For ``for`` (in a thread) or ``async for``; events of every process come, each once and in
            order.
        """
        return Follower(
            self._history,
            self._codec,
            self._bell,
            after=_version(after, "after"),
            until=None if until is None else _version(until, "until"),
            timeout=_seconds(timeout),
        )

    @property
    def labels(self) -> Mapping[str, int]:
        """The version of each label, in order of versions; those before a fork belong to it too."""
        return self._history.labels()

    # -- branching --

    def fork(self, name: str, *, at: int | None = None) -> Timeline[S]:
        """Begin another timeline that shares the events of this one up to a version.

        They are shared, not copied; what happens to one of the two later does not show in the
        other, but what is erased is erased for both. Blocks until it is stored.

        Args:
            name: The name of the new timeline, of which there must be nothing yet.
            at: The last version to share; None: all there is.

        Raises:
            UnknownVersionError: There is no such version.
            VersionConflictError: There is a timeline of this name.
        """
        check_name(name)
        version = self._known_version(at)
        engine = self._history.engine
        if version:
            engine.append(self._history.fork_records(name, version), expect={name: 0}).wait()
        elif engine.head(name):
            raise VersionConflictError(
                f"{name!r} has events already, so that it cannot begin as a fork at version 0.",
                expected=0,
                actual=engine.head(name) or 0,
            )
        return self._sibling(name)

    @property
    def forks(self) -> Mapping[str, int]:
        """The timelines that share events with this one directly, and up to which version."""
        return dict(self._history.forks())

    def _sibling(self, name: str) -> Timeline[S]:
        history = History(self._history.engine, name)
        states = self._projected
        projection = None if states is None else Projection(history, states.view, self._codec)
        return Timeline(history, self._codec, self._bell, projection)

    # -- keeping --

    def checkpoint(self, label: str | None = None) -> int:
        """Keep the current state as a snapshot, and give it a label; return its version. Blocks."""
        version = self._states.checkpoint()
        if label is not None:
            self.label(label, at=version).wait()
        return version

    def rebuild(self) -> S:
        """Forget all snapshots and compute the state from the events; return it.

        For when code changed that the transition calls; a change of the transition itself is noticed.
        """
        states = self._states
        for segment in self._history.segments:
            self._history.engine.drop_snapshots(segment.stream)
        states.forget()
        return states.now()[1]

    def erase(self, until: int | None = None, *, base: bool = True) -> int:
        """Destroy the events up to a version; the hash chain still verifies. Blocks.

        States from that version on can still be read, and so can forks: the states they need are
        kept first, as base states that nothing but another erasure removes. Earlier ones cannot.

        Args:
            until: The last version to erase; None: all there are.
            base: Keep base states for this view. False keeps nothing that was made of the erased
                events, neither snapshots nor base states of any view: later states cannot be read.

        Returns:
            How many records were erased.

        Raises:
            UnknownVersionError: There is no such version.
            ConfigurationError: The version is within events stored as one record, or was shared by
                another timeline, where it would have to be erased.
        """
        version = self._known_version(until)
        if version == 0:
            return 0
        self._check_erasable(version)
        if base:
            self._states.keep_bases(self._needed_bases(version))
        count = self._erase_records(version)
        if not base:
            self._drop_derived()
        if self._projected is not None:
            self._projected.forget()
        return count

    def last_erasable(self, version: int) -> int:
        """Return the last version up to which `erase` can erase without going beyond this one."""
        record = self._history.record_of(version) if version > self._history.start else None
        if record is None:
            return 0
        if record.version == version:
            return version
        found = self._history.engine.read(self.name, until=version, limit=1, newest_first=True)
        return found[0].version if found and found[0].version > self._history.start else 0

    def _check_erasable(self, version: int) -> None:
        start = self._history.start
        if version <= start:
            source = self._history.segment_of(version).stream
            raise ConfigurationError(
                f"The versions up to {start} of the timeline {self.name!r} are those of {source!r}; "
                f"erase them there."
            )
        possible = self.last_erasable(version)
        if possible != version:
            record = self._history.record_of(version)
            assert record is not None
            raise ConfigurationError(
                f"Version {version} of the timeline {self.name!r} was appended together with others "
                f"as one record; erase until {record.version}"
                + (f", or until {possible}." if possible else ".")
            )

    def _needed_bases(self, version: int) -> list[int]:
        """Return the versions whose states must outlive the events: this one and those of forks."""
        start = self._history.start
        forks = [at for _, at in self._history.forks() if start < at < version]
        kept = self._history.engine.head(base_stream(self.name, self.view.name)) or 0
        return [at for at in [*forks, version] if at > kept]

    def _erase_records(self, version: int) -> int:
        # The marker of a fork has the version the fork starts at, and stays.
        after = self._history.start or None
        return self._history.engine.erase(self.name, after=after, until=version)

    def _drop_derived(self) -> None:
        engine = self._history.engine
        for stream in engine.streams(base_stream(self.name)):
            engine.erase(stream)
        engine.drop_snapshots(self.name)
        for name, _ in self._history.forks():
            self._sibling(name)._drop_derived()

    def _known_version(self, version: int | None) -> int:
        last = self.version
        if version is None:
            return last
        if _version(version, "version") > last:
            raise UnknownVersionError(
                f"The timeline {self.name!r} has no version {version!r}; there are 0 to {last}.",
                version=version,
            )
        return version


def _version(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{what} is {value!r}; give an int from 0, versions are such.")
    if value >= 2**63:
        raise UnknownVersionError(f"{what} is {value!r}; no log has so many.", version=value)
    return value


def _seconds(timeout: object) -> float | None:
    if timeout is None or (isinstance(timeout, (int, float)) and not math.isnan(timeout)):
        return timeout
    raise ConfigurationError(f"timeout is {timeout!r}; give a number of seconds, or None.")


def _label(label: object) -> str:
    if not isinstance(label, str) or not label:
        raise ConfigurationError(f"{label!r} is no label; use a text such as 'before refund'.")
    return label


def time_in_ns(time: object) -> int:
    """Return a time as ns since 1970.

    Raises:
        ConfigurationError: It is no datetime, or has no time zone.
    """
    if not isinstance(time, datetime) or time.tzinfo is None:
        raise ConfigurationError(
            f"{time!r} is no point in time; use a datetime with a time zone, such as "
            f"datetime.now(UTC)."
        )
    return (time - _EPOCH) // _MICROSECOND * 1000 + 999
