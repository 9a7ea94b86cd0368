"""Stored runs: what happened in them, and what was known at any moment of them.

A run is a stream of messages in the log, from ``run.started`` to ``run.ended``. A fork shares the
events of its parent up to where it was forked, and stores only its own.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, cast

from atlas.core.causality import causal_tree
from atlas.core.effects import (
    EffectCancelled,
    EffectDelivered,
    EffectNoted,
    EffectRead,
    EffectStarted,
    RunContinued,
    RunSeeded,
    before_pending,
    resume_point,
)
from atlas.core.log.engine import Engine, Progress
from atlas.core.log.records import NewRecord
from atlas.core.message_log import stream_of
from atlas.core.message_pages import (
    OUTSIDE,
    PAGE,
    lines_as_they_come,
    logical_lines,
    may_tell_of,
    pack,
    unpack,
)
from atlas.core.messages import Event, Message, message
from atlas.core.patches import Patch, diff, plain
from atlas.core.programs import load_program
from atlas.core.schema.canonical import canonical_text
from atlas.core.schema.codec import decode, encode
from atlas.core.transitions import Transition
from atlas.errors import (
    AtlasError,
    ConfigurationError,
    ErasedError,
    LogFormatError,
    UnknownRunError,
    UnknownVersionError,
    VersionConflictError,
    nearest_name,
)
from atlas.typing import JSON

__all__ = [
    "ENTRIES",
    "Comparison",
    "Run",
    "RunEnded",
    "RunStarted",
    "RunStatus",
    "Runs",
    "holding",
    "is_lifecycle",
]

S = TypeVar("S")

RunStatus: TypeAlias = Literal["completed", "failed", "cancelled", "unfinished"]
"""How a run ended; one that is still going on, or whose process died, is unfinished."""

_PREFIX: Final = stream_of("")
_STATES_EVERY: Final = 1_000
_PAGES_AT_ONCE: Final = 64
_TOLD_EVERY: Final = 500
_FORMAT: Final = 1


@message("run.started")
class RunStarted(Event):
    """A run begins. It is the first event of a run, and of what a fork adds to its parent.

    Attributes:
        run: Id of the run.
        name: What it was called.
        mode: Whether it is a run of its own, or the fork of another.
        parent: The run it was forked from.
        at: The number of events it shares with its parent.
        program: ``module:function`` of what runs, when that is known.
        arguments: What that is called with.
    """

    run: str
    name: str
    mode: Literal["recording", "fork"] = "recording"
    parent: str | None = None
    at: int | None = None
    program: str | None = None
    arguments: Mapping[str, JSON] = field(default_factory=dict)


@message("run.ended")
class RunEnded(Event):
    """A run is over.

    Attributes:
        run: Id of the run.
        status: How it ended.
        error: What it failed with.
        exact: Whether a replay can do exactly the same: no input reached it that is not recorded.
    """

    run: str
    status: Literal["completed", "failed", "cancelled"]
    error: str | None = None
    exact: bool = True


ENTRIES: Final = (
    RunSeeded,
    RunContinued,
    EffectStarted,
    EffectDelivered,
    EffectRead,
    EffectCancelled,
    EffectNoted,
)
"""The messages of which the journal of a run consists; see `atlas.core.effects`."""


def is_lifecycle(event: Message) -> bool:
    """Return whether an event is about a run and not part of what it does."""
    return isinstance(event, RunStarted | RunEnded)


def is_doing(event: Message) -> bool:
    """Return whether an event is part of what a run does, and not of how it is kept.

    Notes are not: they are made while effects are performed, at a moment of their own, which a
    replay does not know.
    """
    return not isinstance(event, RunStarted | RunEnded | RunSeeded | RunContinued | EffectNoted)


def holding(events: Iterable[Message]) -> list[tuple[int, Message]]:
    """Return the events of a run that hold, with their numbers.

    A run that was broken off in the middle of a stream of pieces and then resumed began that stream
    anew; what had been made of its first pieces holds no more. Of any other run all events hold.
    """
    kept: list[tuple[int, Message]] = []
    entries: list[int] = []
    for number, event in enumerate(events, 1):
        if isinstance(event, RunContinued):
            del entries[event.kept :]
            cut = entries[-1] + 1 if entries else 0
            kept[cut:] = [each for each in kept[cut:] if _stays(each[1])]
        if isinstance(event, ENTRIES):
            entries.append(len(kept))
        kept.append((number, event))
    return kept


def _breaks_off(event: Message) -> bool:
    return isinstance(event, EffectDelivered) and (event.effect, event.what) == ("0", "cancel")


def _stays(event: Message) -> bool:
    return is_lifecycle(event) or OUTSIDE in event.meta.headers


class Run(Generic[S]):
    """One stored run, read from the log when something of it is asked for. Any thread may read.

    Events are numbered from 1; ``at(n)`` is the state after event *n*, and before the next one.

    Attributes:
        id: The run's id.
    """

    def __init__(
        self,
        engine: Engine,
        run: str,
        transition: Transition[S, Any],
        initial: S,
    ) -> None:
        self.id = run
        self._engine = engine
        self._transition = transition
        self._initial = initial
        self._states: list[tuple[int, S]] = [(0, initial)]

    def __repr__(self) -> str:
        return f"<Run {self.id} {self.name!r} {self.status}, {len(self)} events>"

    def __len__(self) -> int:
        return self._engine.head(stream_of(self.id)) or 0

    # -- what it is --

    @functools.cached_property
    def started(self) -> RunStarted:
        """The event with which the run began; made up for messages stored outside every run."""
        first = next(self._own(), None)
        if isinstance(first, RunStarted):
            return first
        return RunStarted(self.id, "session")

    @property
    def origin(self) -> RunStarted:
        """The event that tells its program: its first, or that of the run it was forked from."""
        if self.parent is None or self.started.program is not None:
            return self.started
        return self._parent().origin

    @property
    def name(self) -> str:
        """What the run was called."""
        return self.started.name

    # Any: whatever the program takes and returns
    def program(
        self, where: str | None = None
    ) -> tuple[Callable[..., Awaitable[Any]], Mapping[str, JSON]]:
        """Return the function that made the run, and with which arguments it was called.

        Args:
            where: Where it is now: ``module:function`` or ``script.py:function``; default: where it
                was when the run was recorded.

        Raises:
            ConfigurationError: It is not known, or not found.
        """
        origin = self.origin
        where = where or origin.program
        if where is None:
            raise ConfigurationError(
                f"It is not known which program made run {self.id} ({self.name!r}). Name it as "
                f"package.module:function or script.py:function, or record it with "
                f"app.record(function), which notes it."
            )
        return load_program(where), cast("dict[str, JSON]", plain(origin.arguments))

    @property
    def parent(self) -> str | None:
        """The run it was forked from."""
        return self.started.parent

    @property
    def forked_at(self) -> int | None:
        """How many events it shares with its parent."""
        return self.started.at

    @property
    def ended(self) -> RunEnded | None:
        """The event with which it ended last; None while it is unfinished."""
        last = self._engine.read(stream_of(self.id), newest_first=True, limit=1)
        return next(
            (
                event
                for record in last
                for event in reversed(_messages(record))
                if isinstance(event, RunEnded)
            ),
            None,
        )

    @property
    def status(self) -> RunStatus:
        """How it ended."""
        ended = self.ended
        return "unfinished" if ended is None else ended.status

    @property
    def time(self) -> datetime | None:
        """When it began."""
        return next((event.meta.time for event in self._own()), None)

    # -- what happened --

    @property
    def events(self) -> tuple[Message, ...]:
        """Everything that happened in it, in order, read anew each time."""
        return tuple(self.read())

    def read(self, after: int = 0, until: int | None = None) -> Iterator[Message]:
        """Yield events by number: ``after`` < number <= ``until``; page by page, so any run fits.

        Raises:
            ErasedError: The events asked for were erased.
            LogCorruptedError: What is stored is not what was written.
        """
        started = self.started
        if started.parent is not None and started.at is not None and after < started.at:
            until_shared = started.at if until is None else min(until, started.at)
            yield from self._parent().read(after, until_shared)
            after = started.at
        if until is None or after < until:
            yield from self._own(after, until)

    def _own(self, after: int = 0, until: int | None = None) -> Iterator[Message]:
        at = after
        while True:
            records = self._engine.read(stream_of(self.id), after=at, limit=_PAGES_AT_ONCE)
            for record in records:
                messages = _messages(record)
                first = record.version - len(messages) + 1
                for number, each in enumerate(messages, first):
                    if until is not None and number > until:
                        return
                    if number > after:
                        yield each
                at = record.version
            if len(records) < _PAGES_AT_ONCE:
                return

    def holding(self) -> Iterator[Message]:
        """Yield the events that hold, see `held`: page by page, unless the run was ever resumed."""
        return iter(self.held()) if self._was_continued() else self.read()

    def _was_continued(self) -> bool:
        name = RunContinued.message_name
        of_parent = self.parent is not None and self._parent()._was_continued()
        return of_parent or any(may_tell_of(page, name) for page in self._pages())

    def _pages(self) -> Iterator[bytes]:
        at = 0
        while True:
            records = self._engine.read(stream_of(self.id), after=at, limit=_PAGES_AT_ONCE)
            yield from (each.payload for each in records if each.payload and each.name == PAGE)
            if len(records) < _PAGES_AT_ONCE:
                return
            at = records[-1].version

    def _parent(self) -> Run[S]:
        assert self.parent is not None
        return Run(self._engine, self.parent, self._transition, self._initial)

    def held(self) -> list[Message]:
        """Return the events that hold: all, unless the run was broken off and resumed."""
        return [event for _, event in holding(self.read())]

    def resumed(self) -> list[Message]:
        """Return the events that a resumed run repeats: those that hold, but no end by an interrupt.

        Who broke the run off from outside does not want it to be broken off again.
        """
        held = self.held()
        if self.status != "cancelled":
            return held
        ends = [place for place, event in enumerate(held) if _breaks_off(event)]
        return held[: ends[-1]] if ends else held

    def tree(self, until: int | None = None) -> str:
        """Draw what caused what, up to an event; see `causal_tree`."""
        return causal_tree(self.read(until=until))

    @property
    def lines(self) -> list[str]:
        """What the run did, line by line, the same for two runs that did the same.

        Ids, times, and what others did because of it, are left out; see `logical_lines`.
        """
        return logical_lines(filter(is_doing, self.held()))

    @property
    def digest(self) -> str:
        """SHA-256 of `lines`, in hex: equal for runs that did the same, byte for byte."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    # -- what was known --

    def at(self, number: int | None = None, *, time: datetime | int | None = None) -> S:
        """Return the state as it was after an event, or at a time.

        Args:
            number: Number of the event; negative: counted from the end. Default: the last one.
            time: An aware datetime, or nanoseconds since 1970, instead.

        Raises:
            UnknownVersionError: The run has no such event.
            ConfigurationError: Both are given.
        """
        if time is not None:
            if number is not None:
                raise ConfigurationError(
                    f"at() was asked for event {number} and for the time {time}. Give one of them."
                )
            number = self.number_at(time)
        number = self._checked(len(self) if number is None else number)
        before = bisect.bisect_right(self._states, number, key=lambda known: known[0]) - 1
        reached, state = self._states[before]
        if reached == number:
            return state
        for count, event in enumerate(self.read(reached, number), reached + 1):
            if isinstance(event, RunContinued):
                held = (event for _, event in holding(self.read(until=count)))
                state = functools.reduce(self._transition, held, self._initial)
            else:
                state = self._transition(state, event)
            if count % _STATES_EVERY == 0 and count > self._states[-1][0]:
                self._states.append((count, state))
        return state

    def number_at(self, time: datetime | int) -> int:
        """Return the number of the last event at this time or before; 0 when there is none.

        Events count as never earlier than the one before them, whatever the clock did.
        """
        wanted = time if isinstance(time, int) else _nanoseconds(time)
        reached, found = 0, 0
        for number, event in enumerate(self.read(), 1):
            reached = max(reached, event.meta.time_ns or 0)
            if reached > wanted:
                break
            found = number
        return found

    def diff(self, start: int, stop: int | None = None) -> Patch:
        """Return how the state changed between two events, as RFC 6902 operations."""
        return diff(self.at(start), self.at(stop))

    def _checked(self, number: int) -> int:
        count = len(self)
        if type(number) is not int:
            raise ConfigurationError(
                f"{number!r} is no number of an event of run {self.id}. Give a whole number up to "
                f"{count}; negative ones count from the end."
            )
        wanted = number + count + 1 if number < 0 else number
        if not 0 <= wanted <= count:
            raise UnknownVersionError(
                f"Run {self.id} has no event {number}; it has {count}.", version=number
            )
        return wanted

    def before_fork(self, number: int, *, anew: str = "") -> tuple[list[Message], int]:
        """Return what a fork at an event repeats.

        It repeats all that the run asked of the world, and got, up to this event; in the middle of a
        stream of pieces, up to before its first.

        Args:
            number: Of the event.
            anew: A kind of effects of which one that is under way there is to be asked for anew, perhaps
                otherwise, and so what led to it from the delivery before.

        Returns:
            The events that hold up to there, and the number of the last one.
        """
        held = holding(self.read(until=self._checked(number)))
        entries = [(place, each) for place, each in held if isinstance(each, ENTRIES)]
        end = resume_point([each for _, each in entries])
        if anew:
            end = before_pending([each for _, each in entries[:end]], anew)
        last = entries[end - 1][0] if end else 0
        return [each for place, each in held if place <= last], last

    # -- taking it elsewhere --

    def export(self, path: str | Path, progress: Progress | None = None) -> int:
        """Write the run as JSON lines: a header, then one event a line, whole with its metadata.

        A fork is written with the events that it shares, so that it can be read alone.

        Args:
            path: The file, which is replaced.
            progress: Told how many events of how many are written.

        Returns:
            How many events were written.
        """
        count, whole = 0, len(self)
        with Path(path).open("wb") as file:
            # What is summed up stands before it. A file that can be written anywhere gets the sum in
            # the end, and is refused without; into a pipe, the run is read twice.
            is_file = file.seekable()
            file.write(self._header("0" * 64 if is_file else self._sha256()))
            summed = hashlib.sha256()
            for event in self.read():
                line = encode(event) + b"\n"
                summed.update(line)
                file.write(line)
                count += 1
                if progress is not None and count % _TOLD_EVERY == 0:
                    progress(count, whole)
            if is_file:
                file.seek(0)
                file.write(self._header(summed.hexdigest()))
        return count

    def _header(self, sha256: str) -> bytes:
        header = {"atlas": "run", "format": _FORMAT, "run": self.id, "sha256": sha256}
        return f"{canonical_text(header)}\n".encode("utf-8", "backslashreplace")

    def _sha256(self) -> str:
        summed = hashlib.sha256()
        for event in self.read():
            summed.update(encode(event) + b"\n")
        return summed.hexdigest()


class Runs(Mapping[str, Run[S]]):
    """The runs of a log by id, in the order in which they began. Any thread may use it.

    Args:
        engine: The log.
        transition: How an event changes the state that `Run.at` returns.
        initial: That state before the first event.
    """

    def __init__(self, engine: Engine, transition: Transition[S, Any], initial: S) -> None:
        self._engine = engine
        self._transition = transition
        self._initial = initial

    def __getitem__(self, run: str) -> Run[S]:
        if self._engine.head(stream_of(run)) is None:
            known = list(self)
            raise UnknownRunError(
                f"There is no run {run!r} in {self._engine.address}{nearest_name(run, known)}. "
                f"It has {len(known)} runs; `atlas runs` lists them."
            )
        return Run(self._engine, run, self._transition, self._initial)

    def __iter__(self) -> Iterator[str]:
        return (stream.removeprefix(_PREFIX) for stream in self._engine.streams(_PREFIX))

    def __len__(self) -> int:
        return len(self._engine.streams(_PREFIX))

    def __contains__(self, run: object) -> bool:
        return isinstance(run, str) and self._engine.head(stream_of(run)) is not None

    def latest(self) -> Run[S]:
        """Return the run that began last.

        Raises:
            UnknownRunError: There is none.
        """
        runs = list(self)
        if not runs:
            raise UnknownRunError(f"There are no runs in {self._engine.address} yet.")
        return self[runs[-1]]

    def compare(self, one: str, other: str) -> Comparison:
        """Return where two runs part, and what they did from there on."""
        return Comparison(one, other, tuple(self[one].lines), tuple(self[other].lines))

    def part(self, one: str, other: str) -> Parting:
        """Return where two runs part, reading each but once, and no further than that.

        What they did alike is compared as in `compare`, and forgotten.
        """
        events = tuple(filter(is_doing, self[run].holding()) for run in (one, other))
        ways = tuple(map(lines_as_they_come, events))
        shared = 0
        for pair in itertools.zip_longest(*ways):
            if None in pair or pair[0][0] != pair[1][0]:
                rests = [
                    _Rest(itertools.chain([] if first is None else [first], way), after)
                    for first, way, after in zip(pair, ways, events, strict=True)
                ]
                return Parting(shared, (rests[0], rests[1]))
            shared += 1
        return Parting(shared, None)

    def import_(self, path: str | Path, progress: Progress | None = None) -> Run[S]:
        """Store a run that `Run.export` wrote. It is read and checked whole before any is stored.

        Args:
            path: The file.
            progress: Told how many of its bytes are read.

        Raises:
            LogFormatError: The file is no such run, or not what was written; the line is named.
            VersionConflictError: The log has a run of this id already.
        """
        run, events = _read_export(Path(path), progress)
        records: list[NewRecord] = []
        version = 0
        for of_run, group in itertools.groupby(events, key=lambda event: event.meta.run or run):
            for page in _batches(group, 512):
                version += len(page)
                time_ns = page[-1].meta.time_ns
                records.append(
                    NewRecord(stream_of(run), PAGE, pack(of_run, page), version, time_ns)
                )
        try:
            self._engine.append(records, expect={stream_of(run): 0}).wait()
        except VersionConflictError as error:
            raise VersionConflictError(
                f"{self._engine.address} has a run {run} already, of {error.actual} events. Import "
                f"{path} into another log.",
                expected=0,
                actual=error.actual,
            ) from error
        return self[run]


class _Rest:
    """What a run did from one line on, to be read once, either way."""

    def __init__(self, lines: Iterator[tuple[str, Message]], after: Iterator[Message]) -> None:
        self._lines = lines
        self._after = after

    def lines(self) -> Iterator[str]:
        """Yield its lines; see `Run.lines`."""
        return (line for line, _ in self._lines)

    def events(self) -> Iterator[Message]:
        """Yield its events."""
        first = next(self._lines, None)
        if first is not None:
            yield first[1]
        yield from self._after


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two runs part.

    Attributes:
        shared: How many lines are the same from the beginning on.
        rests: What each did from there on, to be read once; None: they did the same.
    """

    shared: int
    rests: tuple[_Rest, _Rest] | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        one: Id of the first run.
        other: Id of the second.
        lines: What the first one did; see `Run.lines`.
        other_lines: What the second one did.
    """

    one: str
    other: str
    lines: tuple[str, ...]
    other_lines: tuple[str, ...]

    @property
    def shared(self) -> int:
        """How many lines are the same from the beginning on."""
        pairs = zip(self.lines, self.other_lines, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    @property
    def same(self) -> bool:
        """Whether they did the same, byte for byte."""
        return self.lines == self.other_lines

    def __str__(self) -> str:
        if self.same:
            return f"{self.one} and {self.other} did the same: {len(self.lines)} events."
        shared = self.shared
        rows = itertools.zip_longest(self.lines[shared:], self.other_lines[shared:], fillvalue="")
        shown = [f"  {_short(left):60}  {_short(right)}" for left, right in rows]
        return "\n".join(
            [
                f"{self.one} and {self.other} do the same for {shared} events, then part:",
                f"  {self.one:60}  {self.other}",
                *shown,
            ]
        )


def _short(line: str) -> str:
    return line if len(line) <= 60 else f"{line[:57]}..."


# Any: what a record holds is JSON of any shape until it is decoded.
def _messages(record: Any) -> list[Message]:
    if record.payload is None:
        raise ErasedError(
            f"The events up to {record.version} of {record.stream} were erased.",
            position=record.position,
        )
    return unpack(record.payload) if record.name == PAGE else []


def _nanoseconds(time: object) -> int:
    if not isinstance(time, datetime):
        raise ConfigurationError(
            f"time is {time!r}. Give an aware datetime, such as datetime.now(timezone.utc)."
        )
    if time.tzinfo is None:
        raise UnknownVersionError(
            f"{time} says no time zone. Give an aware datetime, such as "
            f"datetime.now(timezone.utc).",
            version=0,
        )
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    whole = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    return whole * 1_000 + 999  # a datetime is cut off: what it was made of is within it


def _batches(items: Iterable[Message], size: int) -> Iterator[list[Message]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _read_export(path: Path, progress: Progress | None) -> tuple[str, list[Message]]:
    summed = hashlib.sha256()
    events: list[Message] = []
    size = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        header = _header(path, file.readline())
        for number, line in enumerate(file, 2):
            summed.update(line)
            done += len(line)
            if progress is not None and number % _TOLD_EVERY == 0:
                progress(done, size)
            try:
                events.append(decode(line.rstrip(b"\n"), unknown="keep"))
            except AtlasError as error:
                raise LogFormatError(f"{path}, line {number}: {error}") from error
    if summed.hexdigest() != header["sha256"]:
        raise LogFormatError(
            f"{path} is not what was exported: it was changed or cut off after line {len(events)}."
        )
    return header["run"], events


def _header(path: Path, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("atlas") != "run":
        raise LogFormatError(f"{path} is no run: its first line is {line[:60]!r}.")
    if header.get("format") != _FORMAT:
        raise LogFormatError(
            f"{path} has format {header.get('format')!r}; this Atlas reads {_FORMAT}. Use a newer one."
        )
    if not all(isinstance(header.get(name), str) for name in ("run", "sha256")):
        raise LogFormatError(f"{path} is no run: its first line has no texts `run` and `sha256`.")
    return header
