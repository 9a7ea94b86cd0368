"""Durable, versioned state of any kind: timelines of events in a log.

A `TemporalStore` opens a log; a `Timeline` is the events of one thing in it, and the state after
each of them: now, at any version or time, in any fork::

    store = TemporalStore("orders.db")
    order = store.timeline("order-A1", transition, initial=Order())
    order.append(Shipped(...), expected_version=3).wait()
    order.now(), order.at(2), order.at(time=yesterday), order.diff(2, 3)

Whatever is stored is chained by hashes (`TemporalStore.verify`). Snapshots make reading quick and
are no part of the truth: one that is damaged, or made by other code, is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from types import TracebackType

# Any: events and states are of whatever type the caller's codec makes.
from typing import Any, Self, TextIO, TypeVar, overload

from atlas.core.clock import SystemClock
from atlas.core.log.controller import LOGS
from atlas.core.log.engine import Durability, Engine, Progress, Repair, Verification
from atlas.core.temporal.events import DataclassEvents, Entry, EventCodec, MessageEvents
from atlas.core.temporal.following import Bell, Follower
from atlas.core.temporal.history import History, check_name
from atlas.core.temporal.projection import Projection
from atlas.core.temporal.retention import Erasure, Retention, planned
from atlas.core.temporal.states import DEFAULT_SNAPSHOTS, SnapshotPolicy, StateCodec, View
from atlas.core.temporal.timeline import Appended, Timeline
from atlas.core.temporal.transfer import Transfer, export_log, import_log
from atlas.core.temporal.values import is_storable
from atlas.core.transitions import Transition
from atlas.errors import ConfigurationError
from atlas.typing import Clock

__all__ = [
    "Appended",
    "DataclassEvents",
    "Entry",
    "Erasure",
    "EventCodec",
    "Follower",
    "MessageEvents",
    "Retention",
    "SnapshotPolicy",
    "StateCodec",
    "TemporalStore",
    "Timeline",
    "Transfer",
]

S = TypeVar("S")


class TemporalStore:
    """A log of timelines. Safe for threads; several processes may use one log at once.

    Args:
        address: Where the log is: a file (made when there is none), ``:memory:``, a
            ``postgresql://`` address, or an engine that is open already, which stays the caller's
            to close.
        events: How events are written, for timelines that say nothing else: by default Atlas
            messages and JSON values.
        durability: What an acknowledged append survives: ``"power"`` cuts (the default), the death of
            the ``"process"``, or, ``"lazy"``, neither for sure.
        clock: Where the log, and `keep`, take the time from.
        read_only: Never write, not even snapshots; what is read must exist. Not for memory.

    Raises:
        ConfigurationError: The address makes no sense, or this process has the log open with other
            options.
        LogFormatError: The file is no log, or one of a newer Atlas.
        LogUnavailableError: It cannot be opened.

    Example:
        >>> store = TemporalStore()
        >>> counter = store.timeline("clicks", lambda total, clicks: total + clicks, initial=0)
        >>> counter.append(2, 3).wait()
        2
        >>> counter.now(), counter.at(1)
        (5, 2)
        >>> store.close()
    """

    def __init__(
        self,
        address: str | PathLike[str] | Engine = ":memory:",
        *,
        events: EventCodec | None = None,
        durability: Durability | None = None,
        clock: Clock | None = None,
        read_only: bool | None = None,
    ) -> None:
        self._codec: EventCodec = _checked_codec(events) or MessageEvents()
        self._is_lent = not isinstance(address, (str, PathLike))
        self._engine: Engine = (
            LOGS.open_log(address, durability=durability, clock=clock, read_only=read_only)
            if isinstance(address, (str, PathLike))
            else _checked_engine(address)
        )
        self._clock = clock or SystemClock()
        self._bell = Bell(self._engine)

    def __repr__(self) -> str:
        return f"<TemporalStore {self._engine.address!r}>"

    @property
    def engine(self) -> Engine:
        """The log itself."""
        return self._engine

    # -- timelines --

    @overload
    def timeline(
        self,
        name: str,
        transition: Transition[S, Any],
        *,
        initial: S,
        events: EventCodec | None = None,
        state_codec: StateCodec | None = None,
        snapshot: SnapshotPolicy | None = ...,
        view: str | None = None,
        version: int | str = 1,
    ) -> Timeline[S]: ...
    @overload
    def timeline(self, name: str, *, events: EventCodec | None = None) -> Timeline[None]: ...
    # Any: the overloads say which states the timeline has.
    def timeline(
        self,
        name: str,
        transition: Transition[Any, Any] | None = None,
        *,
        initial: Any = None,
        events: EventCodec | None = None,
        state_codec: StateCodec | None = None,
        snapshot: SnapshotPolicy | None = DEFAULT_SNAPSHOTS,
        view: str | None = None,
        version: int | str = 1,
    ) -> Timeline[Any]:
        """Return a timeline, whether it has events yet or not.

        Keep it: it remembers its last state, and reads only what was appended since.

        Args:
            name: What it is called in the store; any text that does not begin with ``$``.
            transition: Pure function ``(state, event) -> state``, or a `Transitions` object; None for
                events without a state.
            initial: The state of version 0, never changed in place.
            events: How its events are written; None: as the store says.
            state_codec: How states are written, where they are none of JSON values, ``@value``
                classes, frozen dataclasses, ``pmap`` and ``pvector``.
            snapshot: When states are kept to save the time of computing them again; None: never.
            view: What this way to compute a state is called in the log; by default as the transition.
                Name it if the transition may be renamed after something was erased.
            version: Count it up when an upcaster changed, or code that the transition calls, so that
                snapshots made by the code before are not used. A change of the transition itself is noticed.

        Raises:
            ConfigurationError: The name cannot be one, or the transition cannot be called.
            StateError: The initial state cannot be stored, and no codec was given.
        """
        codec = _checked_codec(events) or self._codec
        history = History(self._engine, check_name(name))
        if transition is None:
            if initial is not None:
                raise ConfigurationError(
                    f"The timeline {name!r} was given an initial state and no transition; give both."
                )
            return Timeline(history, codec, self._bell, None)
        made: View[Any] = View(
            transition, initial, name=view, version=version, codec=state_codec, policy=snapshot
        )
        return Timeline(history, codec, self._bell, Projection(history, made, codec))

    def timelines(self, prefix: str = "") -> list[str]:
        """Return the names of the timelines that begin so, in order of their first event.

        Runs recorded into the same log are streams of their own, named ``run/...``; they are listed
        too, and read with `atlas.core.runs`.

        Raises:
            ConfigurationError: The prefix is no text that a name may begin with.
        """
        return [
            name
            for name in self._engine.streams(_checked_prefix(prefix))
            if not name.startswith("$")
        ]

    # -- keeping --

    def erase(
        self, timeline: Timeline[Any] | str, *, until: int | None = None, base: bool = True
    ) -> int:
        """Destroy the events of a timeline up to a version; see `Timeline.erase`.

        Raises:
            ConfigurationError: Only a name is given, so that nobody knows the states to be kept, and
                ``base`` is not False.
        """
        return self._opened(timeline, base=base).erase(until, base=base)

    def keep(
        self,
        *timelines: Timeline[Any] | str,
        days: float | None = None,
        last: int | None = None,
        label: str | None = None,
        base: bool = True,
    ) -> Retention:
        """Plan to erase the events that no rule keeps; nothing is erased before ``.apply()``.

        Args:
            timelines: Which; by name only with ``base=False``, see `erase`.
            days: Keep the events of so many days.
            last: Keep so many events at the end.
            label: Keep the events from the version of this label on; all where there is no such.
            base: Keep the states that later states are computed from.

        Returns:
            The plan, to be looked at, then applied. Events stored as one record go or stay together.

        Raises:
            ConfigurationError: There is no rule, or it makes no sense.
        """
        opened = [self._opened(timeline, base=base) for timeline in timelines]
        return planned(
            opened, days=days, last=last, label=label, base=base, now_ns=self._clock.time_ns()
        )

    def _opened(self, timeline: Timeline[Any] | str, *, base: bool) -> Timeline[Any]:
        if isinstance(timeline, Timeline):
            return timeline
        if base:
            raise ConfigurationError(
                f"To keep the states of {timeline!r} its transition is needed: give the timeline "
                f"itself, `store.timeline({timeline!r}, transition, initial=...)`, or say "
                f"`base=False` if none of its later states is wanted."
            )
        return self.timeline(timeline)

    def verify(self, progress: Progress | None = None) -> Verification:
        """Read the whole log and compare every record with its hashes.

        Args:
            progress: Told (done, all) now and then.

        Returns:
            What was found: ``.ok``, else the first bad position and what is wrong there.
        """
        return self._engine.verify(progress)

    def repair(self, progress: Progress | None = None) -> Repair:
        """Set the records from the first bad one on aside, so that those before can be used.

        Open timelines anew afterwards: those there are remember states of what was set aside.
        """
        return self._engine.repair(progress)

    def export(
        self,
        target: str | PathLike[str] | TextIO,
        *,
        timelines: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Transfer:
        """Write the log to a file of JSON lines, which `import_` reads.

        Args:
            target: A path, which is replaced when the file is whole, or a text file.
            timelines: Those to be written, with the ones they were forked from; None: everything.
            progress: Told (done, all) now and then.

        Raises:
            ConfigurationError: There is no such timeline.
            LogCorruptedError: A record is not what was appended.
        """
        return export_log(self._engine, target, timelines, progress)

    def import_(
        self, source: str | PathLike[str] | TextIO, *, progress: Progress | None = None
    ) -> Transfer:
        """Store what `export` wrote: everything, or nothing.

        The whole file is read and checked first; it must fit into memory. Events keep the times at
        which they were appended to the log they come from, and what was erased stays erased. An
        export of what was imported is the same file.

        Raises:
            LogFormatError: A line is not as it was written; the text says which.
            VersionConflictError: There is something already of one of the timelines.
        """
        return import_log(self._engine, source, progress)

    # -- lifecycle --

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything appended is stored; raise what failed and nobody waited for."""
        self._engine.flush(timeout)

    def close(self) -> None:
        """Store what is on its way, end those who follow, and let go of the log. Idempotent."""
        if self._bell.closed:
            return
        self._bell.close()
        if not self._is_lent:
            LOGS.close_log(self._engine)

    async def aclose(self) -> None:
        """Do as `close`; for ``async with``."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _checked_engine(engine: Engine) -> Engine:
    if not hasattr(engine, "read_all"):
        raise ConfigurationError(
            f"{engine!r} is no address of a log, and no open one. Give a path such as 'runs.db', "
            f"':memory:', 'postgresql://user@host/database', or an engine."
        )
    return engine


def _checked_prefix(prefix: object) -> str:
    if not isinstance(prefix, str) or not is_storable(prefix):
        raise ConfigurationError(
            f"{prefix!r} is no beginning of a name; use a text without NUL and lone surrogates."
        )
    return prefix


def _checked_codec(codec: EventCodec | None) -> EventCodec | None:
    if codec is not None and not (hasattr(codec, "dump") and hasattr(codec, "load")):
        raise ConfigurationError(
            f"`events=` is {codec!r}; give an object with `dump` and `load`, such as "
            f"DataclassEvents(...)."
        )
    return codec
