"""What a crashed run leaves behind: effects that ended unseen, and effects that nobody knows about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from atlas.core.effect_layers import EffectCall
from atlas.core.effects.comparing import Recording
from atlas.core.effects.entries import (
    EffectCancelled,
    EffectDelivered,
    EffectStarted,
    digest_of,
    is_dropped,
)
from atlas.core.effects.pending import Pending, PendingStream
from atlas.errors import InDoubtError

__all__ = ["Decision", "InDoubt", "Leftovers", "Skip", "settle"]


@dataclass(frozen=True, slots=True)
class Skip:
    """The decision not to perform an effect that is in doubt, and what it is to have given."""

    value: object = None


Decision: TypeAlias = "Literal['raise', 'retry'] | Skip"

InDoubt: TypeAlias = "Decision | Callable[[EffectCall], Awaitable[Decision]]"
"""What to do about an external effect that was started before a crash and has no recorded end."""


class Leftovers:
    """What was recorded of effects beyond the point from which a resumed run goes on.

    Args:
        recording: The recording, of this and of earlier tries.
        known: Ids of the effects that are under way at that point.
    """

    def __init__(self, recording: Recording, known: Collection[str]) -> None:
        self._run = recording.run
        self._started: dict[str, EffectStarted] = {}
        self._ended: dict[str, list[EffectDelivered]] = {}
        for entry in recording.whole:
            if isinstance(entry, EffectStarted):
                self._started[entry.effect] = entry
                self._ended[entry.effect] = []
            elif isinstance(entry, EffectDelivered) and entry.effect in self._ended:
                self._ended[entry.effect].append(entry)
        for at, repeated in enumerate(recording.entries[: recording.end]):
            if isinstance(repeated, EffectDelivered | EffectCancelled) and not is_dropped(
                recording.entries, at
            ):
                self._forget(repeated.effect)
        for effect in [one for one, ended in self._ended.items() if not ended and one in known]:
            self._forget(effect)

    def _forget(self, effect: str) -> None:
        self._started.pop(effect, None)
        self._ended.pop(effect, None)

    def hand_over(self, pending: Pending) -> bool:
        """Give an effect what is left of it; return whether that was its end.

        If only its start is left, it counts as started. If what is left is of another effect that
        had the same id, nothing is used.
        """
        call = pending.call
        begun = self._started.pop(call.id, None)
        ended = self._ended.pop(call.id, [])
        if begun is None or (begun.kind, begun.digest) != (call.kind, digest_of(call.request)):
            return False
        if ended and ended[-1].what in ("value", "error", "end"):
            for entry in ended:
                pending.give(entry.what, entry.value)
            return True
        pending.was_started = True
        return False

    def unused(self) -> Iterator[str]:
        """Tell, in words, of external effects that the resumed run did not ask for again."""
        for effect, started in self._started.items():
            if started.declared == "external":
                yield (
                    f"Effect {effect!r} ({started.kind}) of run {self._run!r} was started before "
                    f"the run broke off, but going on it was not asked for again."
                )


async def settle(pending: Pending, in_doubt: InDoubt) -> bool:
    """Decide about an effect of which nobody knows whether it happened; outside of the run.

    Returns:
        Whether to perform it. Otherwise it has been given its end.
    """
    call = pending.call
    decision: object = in_doubt
    if callable(decision):
        decision = await decision(call)
    call.note("decision", f"in doubt: {decision!r}")
    if decision == "retry":
        return True
    if not isinstance(decision, Skip):
        raise InDoubtError(
            f"Effect {call.id!r} ({call.kind}) of run {call.run!r} was started before the "
            f"run broke off, and nobody knows whether it happened. Find out, then resume with "
            f"in_doubt='retry' to perform it again or Skip(value) to go on without.",
            effect=call.id,
        )
    if isinstance(pending, PendingStream):
        pending.give("end")
    else:
        pending.give_result(decision.value)
    return False
