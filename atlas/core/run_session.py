"""A run while it happens: its effects in the log, its messages on the bus, both in one order.

`RunSession` opens a `RunContext` whose journal is the bus: what the run asks of the world, and what it
gets, are messages among its others. The log keeps them all, so that the same messages tell a person
what happened and a replay what to do.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, TypedDict

from atlas.core.causality import CURRENT, caused_by
from atlas.core.effect_layers import Layer
from atlas.core.effects import (
    EffectCancelled,
    EffectDelivered,
    EffectNoted,
    EffectRead,
    EffectStarted,
    Entry,
    InDoubt,
    RunContext,
    RunContinued,
    RunSeeded,
)
from atlas.core.event_bus import EventBus
from atlas.core.inner_loop import HERE, here
from atlas.core.message_log import Fate, MessageLog
from atlas.core.message_pages import OUTSIDE, PageRedactor, logical_lines
from atlas.core.messages import Message
from atlas.core.redaction import REDACTED, Secrets
from atlas.core.runs import ENTRIES, RunEnded, RunStarted, is_doing, is_lifecycle
from atlas.errors import ConfigurationError, ReplayDiverged

__all__ = ["RunSession", "SessionMode", "SessionOptions", "in_words"]

SessionMode: TypeAlias = Literal["record", "replay", "fork", "resume"]


class SessionOptions(TypedDict, total=False):
    """What may be said of a session; see `RunSession`."""

    mode: SessionMode
    recorded: Sequence[Message]
    at: int | None
    layers: Sequence[Layer]
    in_doubt: InDoubt
    strict: bool
    pace: float | None
    is_durable: bool
    instead: tuple[str | None, str | None]
    seen: int | None
    secrets: Secrets


_ITS_OWN: Final = frozenset({*ENTRIES, RunStarted, RunEnded})
"""Messages that belong to a run, whoever publishes them."""


class RunSession:
    """A run that is being recorded, replayed, forked or resumed: an async context manager.

    Its body, and the tasks it makes, are the run; see `RunContext` for what that means. Applications
    make it: `atlas.Atlas.recording` and its like.

    Args:
        bus: Where the run's messages go.
        log: What keeps them.
        started: What is told of the run. Its id is that under which messages are published.
        mode: What becomes of effects.
        recorded: What was recorded of the run to repeat: its events that hold.
        at: For a fork: how many deliveries to repeat.
        layers: Around all effects, the outermost first.
        in_doubt: What to do about external effects of which nobody knows if they happened.
        strict: Whether input that is not recorded ends the run, instead of a warning.
        pace: Replay at the recorded pace times this; None: as fast as possible.
        is_durable: Whether effects wait until what was before them is safely stored.
        instead: Whom, and which model, to ask instead, once effects are performed.
        seen: How many of its messages were stored when ``recorded`` was read; see `MessageLog.watch`.
        secrets: What the run does not write down; see `RunContext`.
        on_begin: Called when it is entered; refuses by an error.
        on_end: Called when it is over.

    Attributes:
        id: The run's id.
        instead: As given.
    """

    def __init__(
        self,
        bus: EventBus,
        log: MessageLog,
        started: RunStarted,
        *,
        mode: SessionMode = "record",
        recorded: Sequence[Message] = (),
        at: int | None = None,
        layers: Sequence[Layer] = (),
        in_doubt: InDoubt = "raise",
        strict: bool = False,
        pace: float | None = None,
        is_durable: bool = True,
        instead: tuple[str | None, str | None] = (None, None),
        seen: int | None = None,
        secrets: Secrets | None = None,
        on_begin: Callable[[RunSession], object] | None = None,
        on_end: Callable[[RunSession], object] | None = None,
    ) -> None:
        self.id: str = started.run
        self._bus = bus
        self._log = log
        self._started = started
        self._mode: SessionMode = mode
        self._is_durable = is_durable
        self._recorded = recorded
        self.instead = instead
        self._seen = seen
        self._happened: list[Message] = []
        self._aliases: dict[str, str] = {}
        self._repeated = iter([each for each in recorded if _is_done_again(each)])
        self._on_begin = on_begin
        self._on_end = on_end
        self._was_entered = False
        self._stack = ExitStack()
        waits = is_durable and log.outlives_the_process
        self._journal = _BusJournal(bus, log, self.id, is_durable=waits)
        entries = [each for each in recorded if isinstance(each, ENTRIES)]
        self._context = RunContext(
            started.parent or self.id if mode == "replay" else self.id,
            # a run that died before it did anything begins, when it is resumed
            mode="record" if mode == "resume" and not entries else mode,
            journal=self._journal,
            recorded=entries,
            at=at,
            layers=layers,
            in_doubt=in_doubt,
            strict=strict,
            pace=pace,
            # What is repeated is told again, so that the bus sees the whole run; see `_fate`.
            rewrite=True,
            secrets=secrets,
        )

    def __repr__(self) -> str:
        return f"<RunSession {self.id} {self._mode}>"

    @property
    def is_exact(self) -> bool:
        """Whether a replay can do exactly the same: all that got in so far was recorded."""
        return self._context.exact

    @property
    def warnings(self) -> tuple[str, ...]:
        """What got in that was not recorded, in words."""
        return tuple(self._context.warnings)

    @property
    def is_live(self) -> bool:
        """Whether effects are performed now; else what was recorded is repeated."""
        return self._context.is_live

    @property
    def lines(self) -> list[str]:
        """What a replay has done so far, line by line; see `atlas.core.runs.Run.lines`."""
        redactor = PageRedactor(self._context.secrets)
        return logical_lines(filter(is_doing, self._happened), redactor)

    async def __aenter__(self) -> Self:
        if self._was_entered:
            raise ConfigurationError(
                f"Run {self.id} was entered before, and happens once. Make another one."
            )
        if here() is not None:
            await self._context.__aenter__()  # refuses, and nobody hears of a run that never was
        if self._on_begin is not None:
            self._on_begin(self)
        self._was_entered = True
        # a run that only records decides nothing else
        gate = _fate_live if self._mode == "record" else self._fate
        self._log.watch(self.id, gate, self._aliases, seen=self._seen)
        try:
            await self._begin()
        except BaseException as error:
            self._finish(error)
            raise
        return self

    async def _begin(self) -> None:
        told = self._bus.publish(self._started, run=self.id).message
        self._journal.begin(told)
        if self._mode == "record" and self._is_durable:
            await self._log.commit(self.id)  # whoever knows of a run finds it, whatever happens
        self._stack.enter_context(caused_by(told))
        await self._context.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended = error
        try:
            await self._context.__aexit__(kind, error, traceback)
            if error is None and self._mode == "replay":
                self._compare()
        except BaseException as raised:
            ended = raised
            raise
        finally:
            self._finish(ended)
            if self._mode != "replay":
                await self._log.commit(self.id)

    def _finish(self, error: BaseException | None) -> None:
        try:
            self._bus.publish(self._ending(error), run=self.id)
        finally:
            self._stack.close()
            self._log.watch(self.id, None)
            if self._on_end is not None:
                self._on_end(self)

    def _ending(self, error: BaseException | None) -> RunEnded:
        exact = self.is_exact
        if error is None:
            return RunEnded(self.id, "completed", None, exact)
        status: Literal["failed", "cancelled"] = (
            "failed" if isinstance(error, Exception) else "cancelled"
        )
        return RunEnded(self.id, status, in_words(error), exact)

    def _fate(self, each: Message) -> Fate:
        """Decide what the log does with a message of this run; see `MessageLog.watch`."""
        if is_lifecycle(each):
            if self._mode == "resume" and isinstance(each, RunStarted):
                self._alias(each, self._recorded[0])
                return "drop"
            return "drop" if self._mode == "replay" else "keep"
        fate = _fate_live(each)
        if self._context.is_live:
            return fate
        if fate == "keep" and self._mode == "replay":
            self._happened.append(each)
        elif fate == "keep" and type(each) is not EffectNoted:
            self._alias(each, next(self._repeated, None))
        return "drop"

    def _alias(self, again: Message, stored: Message | None) -> None:
        """Let what follows from a message that is repeated follow from the one that is stored."""
        if stored is not None and again.meta.id is not None and stored.meta.id is not None:
            self._aliases[again.meta.id] = stored.meta.id

    def _compare(self) -> None:
        recorded = logical_lines(filter(is_doing, self._recorded))
        happened = self.lines
        # What was told before a fork was told by the program that was forked; of it, effects are compared.
        forked = _lines_before_fork(self._recorded)
        for number, (before, now) in enumerate(zip(recorded, happened, strict=False), 1):
            if number > forked and before != now and not _may_be(before, now):
                raise _parted(self._started.parent, number, before, now)
        if len(recorded) != len(happened):
            shorter = min(len(recorded), len(happened))
            rest = [*recorded, ""][shorter], [*happened, ""][shorter]
            raise _parted(self._started.parent, shorter + 1, *rest)


def _lines_before_fork(events: Sequence[Message]) -> int:
    """Return how many of the lines of a run are older than its last fork; 0: it is none."""
    lines = forked = 0
    for each in events:
        if isinstance(each, RunSeeded):
            forked = lines
        elif is_doing(each) and OUTSIDE not in each.meta.headers:
            lines += 1
    return forked


def _may_be(recorded: str, now: str) -> bool:
    """Return whether two lines are the same as far as the recorded one was written down."""
    first, *between = recorded.split(REDACTED)
    if not between:
        return False
    last = between.pop()
    at, end = len(first), len(now) - len(last)
    if at > end or not (now.startswith(first) and now.endswith(last)):
        return False
    # Each as early as it can be, so that the others have all the room there is.
    for part in between:
        found = now.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


class _BusJournal:
    """A journal on the bus: each entry is a message of the run, below the one that led to it."""

    def __init__(self, bus: EventBus, log: MessageLog, run: str, *, is_durable: bool) -> None:
        self._bus = bus
        self._log = log
        self._run = run
        self._is_durable = is_durable
        self._told: Message | None = None
        self._effects: dict[str, Message] = {}

    def begin(self, told: Message) -> None:
        """Take the message that all others of the run follow from."""
        self._told = told

    def write(self, entry: Entry) -> None:
        """Publish an entry."""
        assert self._told is not None
        # Two for each effect: the classes are compared, which takes a fraction of `isinstance`.
        if type(entry) is EffectStarted or type(entry) is EffectRead:
            # In the context of the code that asked for it, which tells the cause.
            cause = CURRENT.get()
            if type(cause) is tuple and len(cause) == 7 and cause[3] == self._run:
                told = self._bus.publish(entry).message  # the same, at half the price
            else:
                told = self._bus.publish(entry, run=self._run).message
            if type(entry) is EffectStarted:
                self._effects[entry.effect] = told
            return
        if type(entry) is EffectDelivered:  # as nearly all are
            effect, is_over = entry.effect, entry.what != "chunk"
        else:
            effect = "" if isinstance(entry, RunSeeded | RunContinued) else entry.effect
            is_over = isinstance(entry, EffectCancelled)
        # These come out of any context; so the cause is said, the same in each execution.
        token = CURRENT.set(self._effects.get(effect, self._told)._stamp)
        try:
            self._bus.publish(entry)
        finally:
            CURRENT.reset(token)
        if is_over:
            self._effects.pop(effect, None)

    def commit(self) -> Awaitable[object] | None:
        """Return what is awaited until all that was published is stored; None: nobody has to wait."""
        return self._log.begin_commit(self._run) if self._is_durable else None


def _is_done_again(event: Message) -> bool:
    # notes are made at a moment of their own: told again, they come sooner than they did
    return not isinstance(event, RunStarted | RunEnded | EffectNoted) and (
        OUTSIDE not in event.meta.headers
    )


def _fate_live(each: Message) -> Fate:
    """Decide what the log does with a message of a run that is not repeated: did the run publish it?"""
    # Asked of each message, while its publisher waits: nothing is called here that need not be.
    if type(each) in _ITS_OWN:
        return "keep"
    place = HERE.get()
    if place is None:
        return "outside"
    inner = place.inner  # of a run that is over nothing is inside any more
    return "keep" if inner.inside and inner.thread == threading.get_ident() else "outside"


def in_words(error: BaseException) -> str:
    """Return an error as the end of a run tells it; see `atlas.core.runs.RunEnded`."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception as broken:  # noqa: BLE001  whatever a foreign class does
        return f"{type(error).__name__}, whose text cannot be made ({type(broken).__name__})"


def _parted(run: str | None, number: int, before: str, now: str) -> ReplayDiverged:
    return ReplayDiverged(
        f"The replay of run {run} made other events than were recorded: event {number} of what it "
        f"does was {before or 'its end'} and is {now or 'its end'}. Every effect was the same, so "
        f"the program, or a plain handler on its bus, was changed.",
        recorded=before,
        actual=now,
    )
