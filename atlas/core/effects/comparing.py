"""A recording that is being repeated: what comes next in it, and in which words a run parts from it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from atlas.core.effects.entries import (
    SILENT,
    EffectCancelled,
    EffectDelivered,
    EffectRead,
    EffectStarted,
    Entry,
    RunContinued,
    RunSeeded,
    cut_at,
    effective,
    is_dropped,
    left_by,
    rebuild_requests,
    resume_point,
    tells_drop,
)
from atlas.errors import ReplayDiverged

__all__ = ["Alike", "Asked", "Recording"]

Alike: TypeAlias = "Callable[[Any, Any], bool]"
"""Whether a request that was recorded may stand for the one that is asked for, in JSON values."""

Asked: TypeAlias = EffectStarted | EffectRead | EffectCancelled
"""What a run does itself, so that it is compared."""


class Recording:
    """The entries of a run that is repeated, and how far that has come.

    Args:
        run: The run's id, for people.
        mode: What is done with it: ``"replay"``, ``"fork"`` or ``"resume"``.
        recorded: The entries.
        at: For a fork: how many deliveries to repeat; None: all that is recorded.

    Attributes:
        whole: All entries.
        entries: Those that hold.
        cursor: The place of the one that comes next.
        end: How many are repeated.
    """

    __slots__ = ("_forked", "cursor", "end", "entries", "run", "whole")

    def __init__(self, run: str, mode: str, recorded: Iterable[Entry], at: int | None) -> None:
        self.run: str = run
        self.whole: tuple[Entry, ...] = tuple(recorded)
        self.entries: list[Entry] = effective(self.whole)
        self.cursor: int = 0
        if mode == "fork" and at is not None:
            self.end: int = cut_at(self.entries, at)
        elif mode in ("fork", "resume"):
            self.end = resume_point(self.entries)
        else:
            self.end = len(self.entries)
        self._forked: int = self.end if mode == "fork" else _last_seed(self.entries)

    @property
    def next(self) -> Entry | None:
        """What comes next; None at the end."""
        return self.entries[self.cursor] if self.cursor < self.end else None

    def begins_with_a_seed(self) -> bool:
        """Return whether there is anything to repeat."""
        return bool(self.entries) and isinstance(self.entries[0], RunSeeded)

    def next_is_silent(self) -> bool:
        """Return whether what comes next means nothing to a replay, so that it is passed over."""
        entry = self.entries[self.cursor]
        return type(entry) in SILENT and not tells_drop(entry)

    def next_is_dropped(self) -> bool:
        """Return whether the delivery that comes next came too late when it was recorded."""
        return is_dropped(self.entries, self.cursor)

    def has_next(self, cls: type[Entry], effect: str, kind: str, digest: str | None = None) -> bool:
        """Return whether this very effect comes next; any request will do if no digest is given."""
        entry = self.next
        return (
            type(entry) is cls
            and isinstance(entry, EffectStarted | EffectRead)
            and entry.effect == effect
            and entry.kind == kind
            and (digest is None or entry.digest == digest)
        )

    def repeats(self, asked: EffectStarted | EffectRead, request: str, alike: Alike | None) -> bool:
        """Return whether what a run asks for is what comes next.

        Before a fork the record may have another request, if it is ``alike``: the program that goes
        on from there may be another one.
        """
        if self.has_next(type(asked), asked.effect, asked.kind, asked.digest):
            return True
        if alike is None or self.cursor >= self._forked:
            return False
        if not self.has_next(type(asked), asked.effect, asked.kind):
            return False
        recorded = self._request_of(self.entries[self.cursor])
        return alike(json.loads(recorded or "null"), json.loads(request or "null"))

    def left(self) -> frozenset[str]:
        """Return the streams that nobody could read any more where the repeating ends."""
        return frozenset(filter(None, map(left_by, self.entries[: self.end])))

    # -- how it differs ---------------------------------------------------------------------------

    def diverged(self, asked: Asked, request: str) -> ReplayDiverged:
        """Return the error that the run did something else than what comes next."""
        actual = _in_words(asked, request)
        recorded = self.next
        same = self._counterpart(asked)
        if same is None:
            end = "" if recorded is not None else ", which ends here"
            return ReplayDiverged(
                f"Effect {asked.effect!r} is not in the recording of run {self.run!r}{end}: the "
                f"program asked for {actual}. It was not performed.",
                effect=asked.effect,
                actual=actual,
            )
        if _alike(same, asked):
            return ReplayDiverged(
                f"Effect {asked.effect!r} ({actual}) comes at another time than in the recording of "
                f"run {self.run!r}, which has {self._words_of(recorded)} there.",
                effect=asked.effect,
                recorded=self._words_of(recorded),
                actual=actual,
            )
        before = self._request_of(same)
        return ReplayDiverged(
            f"Effect {asked.effect!r} is another than in the recording of run {self.run!r}: "
            f"recorded is {_in_words(same, before)}, the program asked for {actual}."
            f"{_difference(before, request)}",
            effect=asked.effect,
            recorded=_in_words(same, before),
            actual=actual,
        )

    def _counterpart(self, asked: Asked) -> Entry | None:
        for entry in ([] if self.next is None else [self.next]) + self.entries:
            if type(entry) is type(asked) and _effect_of(entry) == asked.effect:
                return entry
        return None

    def missing(self, entry: Entry, instead: str = "") -> ReplayDiverged:
        """Return the error that the run did not do what comes next."""
        words = self._words_of(entry)
        effect = _effect_of(entry)
        return ReplayDiverged(
            f"The program did not do what was recorded next in run {self.run!r}: effect "
            f"{effect!r}, {words}.{f' It set {instead}.' if instead else ''}",
            effect=effect,
            recorded=words,
            actual=instead,
        )

    def ends_here(self, waiting: str, effect: str) -> ReplayDiverged:
        """Return the error that the run goes on where the recording ends."""
        return ReplayDiverged(
            f"The recording of run {self.run!r} ends here, but the program goes on: it waits for "
            f"{waiting}.",
            effect=effect,
            actual=waiting,
        )

    def _words_of(self, entry: Entry | None) -> str:
        return "its end" if entry is None else _in_words(entry, self._request_of(entry))

    def _request_of(self, entry: Entry) -> str:
        if isinstance(entry, EffectStarted):
            return rebuild_requests(self.entries, entry.effect)
        return entry.request if isinstance(entry, EffectRead) else ""


def _last_seed(entries: list[Entry]) -> int:
    """Return where a recording was forked from another the last time; 0: it never was."""
    return max((at for at, each in enumerate(entries) if type(each) is RunSeeded), default=0)


def _effect_of(entry: Entry) -> str:
    return "" if isinstance(entry, RunSeeded | RunContinued) else entry.effect


def _alike(recorded: Entry, asked: Asked) -> bool:
    if isinstance(recorded, EffectStarted | EffectRead):
        return (
            isinstance(asked, EffectStarted | EffectRead)
            and recorded.digest == asked.digest
            and recorded.effect == asked.effect
            and recorded.kind == asked.kind
        )
    return _effect_of(recorded) == asked.effect


def _in_words(entry: Entry, request: str) -> str:
    if isinstance(entry, EffectStarted | EffectRead):
        shown = request if len(request) <= 200 else request[:197] + "..."
        return f"{entry.kind} {shown}".rstrip()
    if isinstance(entry, EffectCancelled):
        return "that it is wanted no more"
    if isinstance(entry, EffectDelivered):
        if entry.what == "timer":
            return f"a timer of {entry.value} seconds that went off"
        return f"its {entry.what}"
    return type(entry).message_name


def _difference(before: str, after: str) -> str:
    lines = difflib.unified_diff(
        _pretty(before), _pretty(after), "recorded", "program", lineterm="", n=1
    )
    shown = [line if len(line) <= 200 else line[:197] + "..." for line in lines][:40]
    return "\n" + "\n".join(shown) if shown else ""


def _pretty(text: str) -> list[str]:
    if not text:
        return []
    return json.dumps(json.loads(text), indent=1, ensure_ascii=False).splitlines()
