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
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import PathLike
from typing import IO, Any, Final, Generic, Literal, TextIO, TypeAlias, TypeVar, cast

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
from atlas.core.message_pages import OUTSIDE, PAGE, logical_lines, pack, unpack
from atlas.core.messages import Event, Message, message
from atlas.core.patches import Patch, diff, plain
from atlas.core.programs import load_program
from atlas.core.schema.canonical import canonical_text
from atlas.core.schema.codec import decode, encode
from atlas.core.temporal.transfer import storable_path, whole_file
from atlas.core.temporal.values import is_storable
from atlas.core.transitions import Transition
from atlas.errors import (
    AtlasError,
    ConfigurationError,
    ErasedError,
    LogCorruptedError,
    LogFormatError,
    LogUnavailableError,
    MigrationError,
    UnknownRunError,
    UnknownVersionError,
    ValidationError,
    VersionConflictError,
    nearest_name,
)
from atlas.typing import JSON

__all__ = [
    "ENTRIES",
    "UNREADABLE",
    "Comparison",
    "ExportedRun",
    "Run",
    "RunEnded",
    "RunStarted",
    "RunStatus",
    "Runs",
    "holding",
    "is_lifecycle",
    "read_export",
]

S = TypeVar("S")

RunStatus: TypeAlias = Literal["completed", "failed", "cancelled", "unfinished"]
"""How a run ended; one that is still going on, or whose process died, is unfinished."""

UNREADABLE: Final = (LogCorruptedError, LogFormatError, MigrationError, ValidationError)
"""What is raised when a run cannot be read, though its log can."""

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
    anew; what had been made of its first pieces holds no more. What others did because of a run after it
    had ended, such as a handler that failed late, is no part of what it did. All else holds.
    """
    kept: list[tuple[int, Message]] = []
    entries: list[int] = []
    is_over = False
    for number, event in enumerate(events, 1):
        if isinstance(event, RunContinued):
            del entries[event.kept :]
            cut = entries[-1] + 1 if entries else 0
            kept[cut:] = [each for each in kept[cut:] if _stays(each[1])]
        if isinstance(event, ENTRIES):
            entries.append(len(kept))
        if is_lifecycle(event) or isinstance(event, ENTRIES):
            is_over = isinstance(event, RunEnded)
        elif is_over:
            continue
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
        return Run(self._engine, self.parent, self._transition, self._initial).origin

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
        for count in (1, _PAGES_AT_ONCE, None):  # mostly it is in the last page
            pages = self._engine.read(stream_of(self.id), newest_first=True, limit=count)
            for event in (each for page in pages for each in reversed(_messages(page))):
                if isinstance(event, RunEnded):
                    return event
                # What others do because of it, such as a handler that fails late, may come after the end.
                if isinstance(event, (RunStarted, *ENTRIES)):
                    return None
        return None

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
            shared = Run(self._engine, started.parent, self._transition, self._initial)
            until_shared = started.at if until is None else min(until, started.at)
            yield from shared.read(after, until_shared)
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
                    if number > at:  # pages may be joined while they are read
                        yield each
                at = record.version
            if len(records) < _PAGES_AT_ONCE:
                return

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

    def export(self, target: str | PathLike[str] | TextIO, progress: Progress | None = None) -> int:
        """Write the run as JSON lines: a header, then one event a line, whole with its metadata.

        A fork is written with the events that it shares, so that it can be read alone.

        Args:
            target: A path, which is replaced when the file is whole, or a text file.
            progress: Told how many events of how many are written.

        Returns:
            How many events were written.

        Raises:
            ConfigurationError: The target is nothing to write to.
            LogUnavailableError: It cannot be written.
            LogCorruptedError: What is stored is not what was written.
        """
        if isinstance(target, str | PathLike):
            with whole_file(target) as file:
                return self._export(file, progress)
        if not hasattr(target, "write"):
            raise ConfigurationError(
                f"{target!r} is nothing to write to. Give a path or a text file."
            )
        return self._export(target, progress)

    def _export(self, file: TextIO, progress: Progress | None) -> int:
        count, whole = 0, len(self)
        header = {"atlas": "run", "format": _FORMAT, "run": self.id, "sha256": self._sha256()}
        file.write(canonical_text(header) + "\n")
        for event in self.read():
            file.write(encode(event).decode() + "\n")
            count += 1
            if progress is not None and (count % _TOLD_EVERY == 0 or count == whole):
                progress(count, whole)
        return count

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
                f"It has {len(known)} run{'s' * (len(known) != 1)}; `atlas runs` lists them."
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

    def compare(self, one: str, other: str, progress: Progress | None = None) -> Comparison:
        """Return where two runs part, and what they did from there on.

        Args:
            one: Id of the first run.
            other: Id of the second.
            progress: Told how many events of how many are read, of both runs.
        """
        runs = self[one], self[other]
        count = itertools.count(1)
        whole = sum(map(len, runs))
        lines, other_lines = (
            tuple(
                logical_lines(
                    event
                    for _, event in holding(_told(run.read(), progress, count, whole))
                    if is_doing(event)
                )
            )
            for run in runs
        )
        if progress is not None:
            progress(whole, whole)
        pairs = zip(_unmeasured(lines), _unmeasured(other_lines), strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return Comparison(one, other, lines, other_lines, shared)

    def import_(
        self, source: str | PathLike[str] | IO[Any], progress: Progress | None = None
    ) -> Run[S]:
        """Store a run that `Run.export` wrote. It is read and checked whole before any is stored.

        Args:
            source: A path, or an open file.
            progress: Told how many of its bytes are read, if it is a path.

        Raises:
            LogFormatError: The file is no such run, or not what was written; the line is named.
            LogUnavailableError: It cannot be read.
            VersionConflictError: The log has a run of this id already.
        """
        return self.store(read_export(source, progress))

    def store(self, exported: ExportedRun) -> Run[S]:
        """Store a run that was exported, and read by `read_export`; see `import_`."""
        run, records, version = exported.run, list[NewRecord](), 0
        for of_run, group in itertools.groupby(
            exported.events, key=lambda event: event.meta.run or run
        ):
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
                f"{exported.source} into another log.",
                expected=0,
                actual=error.actual,
            ) from error
        return self[run]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs side by side.

    Two runs are never the same to the byte, as a run and its replay are: each has ids and moments of
    its own. These, clocks that were read, and durations in events, are not compared.

    Attributes:
        one: Id of the first run.
        other: Id of the second.
        lines: What the first one did; see `Run.lines`.
        other_lines: What the second one did.
        shared: How many lines say the same from the beginning on.
    """

    one: str
    other: str
    lines: tuple[str, ...]
    other_lines: tuple[str, ...]
    shared: int

    @property
    def same(self) -> bool:
        """Whether they did the same from beginning to end."""
        return self.shared == len(self.lines) == len(self.other_lines)

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


# Ids of Atlas and of vendors, and hashes, each a whole text, in JSON that may be in JSON.
_IDS: Final = re.compile(
    r'(?<=")(?:[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}|[0-9a-f]{12}|[0-9a-f]{64}'
    r'|[a-z]{2,12}[-_][A-Za-z0-9]{16,64})(?=\\*")'
)
_MOMENTS: Final = re.compile(
    r'"moment_ns":\d+|"kind":"(?:now|monotonic)","request":"[^"]*","value":"[^"]*"'
)
_FRACTIONS: Final = re.compile(r"(?<=[:\[,])-?\d+(?:\.\d+(?:e[+-]?\d+)?|e-?\d+)")


def _unmeasured(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines of a run without what differs each time, though the same happens.

    Ids become numbers in the order in which they show. Numbers with a fraction are left out of events
    that are no effects, as durations are such; what else they may be follows from effects.
    """
    numbers: dict[str, str] = {}
    for line in lines:
        of_effect = line[line.index(",") + 1 :].startswith('"effect.')
        kept = (_MOMENTS if of_effect else _FRACTIONS).sub("", line)
        yield _IDS.sub(lambda found: numbers.setdefault(found[0], f"id {len(numbers)}"), kept)


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


def _told(
    events: Iterable[Message], progress: Progress | None, count: Iterator[int], whole: int
) -> Iterator[Message]:
    for number, event in zip(count, events, strict=False):
        if progress is not None and number % _TOLD_EVERY == 0:
            progress(number, whole)
        yield event


def _batches(items: Iterable[Message], size: int) -> Iterator[list[Message]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


@dataclass(frozen=True, slots=True)
class ExportedRun:
    """A run as it was read from an export, checked, and not stored yet.

    Attributes:
        run: Its id.
        events: What happened in it.
        source: The file it was read from, for people.
    """

    run: str
    events: Sequence[Message]
    source: str


def read_export(
    source: str | PathLike[str] | IO[Any], progress: Progress | None = None
) -> ExportedRun:
    """Read what `Run.export` wrote, and check that it is that; arguments and errors as for `Runs.import_`."""
    if not isinstance(source, str | PathLike):
        if not hasattr(source, "read"):
            raise ConfigurationError(
                f"{source!r} is nothing to read from. Give a path or an open file."
            )
        return _read_export(str(getattr(source, "name", "the file")), source, None, 0)
    path = storable_path(source)
    try:
        with path.open("rb") as file:
            return _read_export(str(path), file, progress, path.stat().st_size)
    except OSError as error:
        raise LogUnavailableError(
            f"{str(path)!r} cannot be read: {error.strerror or error}. Check the path; nothing was "
            f"imported."
        ) from error


def _read_export(name: str, file: IO[Any], progress: Progress | None, size: int) -> ExportedRun:
    summed = hashlib.sha256()
    events: list[Message] = []
    lines = (
        line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line for line in file
    )
    first = next(lines, b"")
    header, done = _header(name, first), len(first)
    for number, line in enumerate(lines, 2):
        summed.update(line)
        done += len(line)
        if progress is not None and (number % _TOLD_EVERY == 0 or done == size):
            progress(done, size)
        try:
            events.append(decode(line.rstrip(b"\n"), unknown="keep"))
        except AtlasError as error:
            raise LogFormatError(f"{name}, line {number}: {error}") from error
    if summed.hexdigest() != header["sha256"]:
        raise LogFormatError(
            f"{name} is not what was exported: it was changed or cut off after line "
            f"{len(events) + 1}. Nothing was imported; export it again."
        )
    if not events:
        raise LogFormatError(f"{name} has a header and no events. Export the run again.")
    return ExportedRun(header["run"], events, name)


def _header(name: str, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("atlas") != "run":
        raise LogFormatError(
            f"{name} is no run: its first line is {line[:60].decode(errors='replace')!r}. Give a "
            f"file that `atlas export` wrote."
        )
    if header.get("format") != _FORMAT:
        raise LogFormatError(
            f"{name} has format {header.get('format')!r}; this Atlas reads {_FORMAT}. Use a newer one."
        )
    run, digest = header.get("run"), header.get("sha256")
    if not (isinstance(run, str) and run and is_storable(run) and isinstance(digest, str)):
        raise LogFormatError(
            f"{name} is no run: its first line has no texts `run` and `sha256`, but {run!r} and "
            f"{digest!r}. Export the run again."
        )
    return header
