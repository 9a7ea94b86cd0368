"""Approval: a person says yes before a tool runs, now or after a restart.

Waiting is an effect of the run. Its outside part listens on the bus for `ApprovalGiven` and looks,
now and then, for an answer that was stored, also by another process. A run whose process died
meanwhile waits again when it is resumed; what was decided before that is found at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeAlias

from atlas.agents.messages import ApprovalAsked, ApprovalGiven, ToolFinished
from atlas.core.effects import Effect, current_run, perform
from atlas.core.event_bus import EventBus
from atlas.core.log.engine import Engine
from atlas.core.log.records import NewRecord
from atlas.core.messages import Message
from atlas.core.runs import UNREADABLE, Runs
from atlas.core.schema import dump, load
from atlas.errors import (
    AtlasError,
    ErasedError,
    UnknownApprovalError,
    VersionConflictError,
    nearest_name,
)
from atlas.providers.hosting import ModelHost

__all__ = [
    "answer_in",
    "approvals_in",
    "approve",
    "decision_on",
    "keep_answer",
    "pending_approvals",
    "refuse_unasked",
    "wait_for_approval",
]

StoredAnswer: TypeAlias = Callable[[str], Awaitable["str | None"]]

_LOOK_EVERY: Final = 0.5


async def wait_for_approval(bus: EventBus, host: ModelHost, asked: ApprovalAsked) -> ApprovalGiven:
    """Publish that an approval is wanted, and return the decision. In a run, as an effect of it."""
    host.questions[asked.approval] = asked  # before anybody hears of it, who may answer at once
    try:
        bus.publish(asked)
        # Idempotent: whoever is asked twice answers once.
        effect = Effect("approval", dump(asked), "idempotent")
        given = await perform(effect, _told, bus, host.stored_answer, asked.approval)
    finally:
        host.questions.pop(asked.approval, None)
    decision: ApprovalGiven = load(ApprovalGiven, given)
    if current_run() is not None:  # so that it is part of the run, whoever told it outside
        bus.publish(decision)
    return decision


async def _told(bus: EventBus, stored_answer: StoredAnswer, approval: str) -> object:
    return dump(await decision_on(bus, stored_answer, approval))


async def decision_on(bus: EventBus, stored_answer: StoredAnswer, approval: str) -> ApprovalGiven:
    """Wait, outside of every run, until somebody has decided on an approval; maybe long ago.

    Args:
        bus: Where decisions are told.
        stored_answer: Looks for one that was stored; see `ModelHost.stored_answer`.
        approval: Id of the approval.
    """
    decided: asyncio.Event = asyncio.Event()
    found: list[ApprovalGiven] = []
    loop = asyncio.get_running_loop()

    def hear(event: ApprovalGiven) -> None:
        found.append(event)
        loop.call_soon_threadsafe(decided.set)

    with bus.subscribe(ApprovalGiven, hear, where=lambda event: event.approval == approval):
        while not found:
            stored = await stored_answer(approval)
            if stored is not None:
                decision: ApprovalGiven = load(ApprovalGiven, json.loads(stored))
                return decision
            try:
                await asyncio.wait_for(decided.wait(), _LOOK_EVERY)
            except TimeoutError:
                continue
    return found[0]


async def approve(
    bus: EventBus,
    host: ModelHost,
    approval: str,
    *,
    approved: bool = True,
    by: str = "",
    reason: str = "",
) -> ApprovalGiven:
    """Decide on an approval, for the run that waits for it, here, elsewhere or when it is resumed.

    The first decision that is stored holds.

    Args:
        bus: The bus of the application.
        host: What keeps the decision.
        approval: Id of the approval; see `ApprovalAsked`.
        approved: Whether the tool may run.
        by: Who decided.
        reason: Why; a model whose call is refused is told.

    Returns:
        The decision that holds.
    """
    given = ApprovalGiven(approval, approved, by, reason)
    await host.store_answer(approval, json.dumps(dump(given)))
    stored = await host.stored_answer(approval)
    holds: ApprovalGiven = given if stored is None else load(ApprovalGiven, json.loads(stored))
    bus.publish(holds)
    return holds


# -- where applications keep decisions: a stream of the log for each approval -------------------


def answer_in(engine: Engine, approval: str) -> str | None:
    """Return the decision on an approval that a log keeps, as JSON text, or None. Blocks."""
    found = engine.read(_PREFIX + approval, limit=1)
    return None if not found or found[0].payload is None else found[0].payload.decode()


def keep_answer(engine: Engine, approval: str, answer: str) -> None:
    """Keep a decision in a log, if none is kept of this approval. Blocks until it is safe."""
    stream = _PREFIX + approval
    record = NewRecord(stream, ApprovalGiven.message_name, answer.encode(), 1)
    with contextlib.suppress(VersionConflictError):
        engine.append([record], expect={stream: 0}).wait()


_PREFIX: Final = "approval-"


def pending_approvals(events: Iterable[Message]) -> list[ApprovalAsked]:
    """Return the approvals that are asked for in the events of a run and not decided, oldest first."""
    asked: dict[str, ApprovalAsked] = {}  # by call: a run that is resumed may ask anew
    for event in events:
        if isinstance(event, ApprovalAsked):
            asked[event.call or event.approval] = event
        elif isinstance(event, ApprovalGiven):
            answered = event.approval
            asked = {key: each for key, each in asked.items() if each.approval != answered}
        elif isinstance(event, ToolFinished):
            asked.pop(event.call, None)
    return list(asked.values())


def approvals_in(
    runs: Runs[Any],
) -> tuple[list[tuple[str, ApprovalAsked]], dict[str, AtlasError]]:
    """Return what was asked in each run that has not ended, and what is wrong with those that cannot be read.

    Decisions that the log keeps and no run has heard yet are not looked at. Blocks.
    """
    asked_for: list[tuple[str, ApprovalAsked]] = []
    damaged: dict[str, AtlasError] = {}
    for name in runs:
        try:
            if runs[name].status != "completed":
                asked_for += ((name, asked) for asked in pending_approvals(runs[name].read()))
        except ErasedError:
            continue  # nothing waits in what is gone on purpose
        except UNREADABLE as error:
            damaged[name] = error
    return asked_for, damaged


def refuse_unasked(approval: str, waiting: Iterable[str], mend: str) -> None:
    """Refuse to decide what nobody asked: it is a slip of the pen, and the decision would be lost.

    Args:
        approval: Id of the approval.
        waiting: The ids of those that wait.
        mend: What to do, in words.

    Raises:
        UnknownApprovalError: The id is not among them.
    """
    known = list(waiting)
    if approval not in known:
        raise UnknownApprovalError(
            f"Nothing waits for {approval!r}{nearest_name(approval, known)}. {mend}",
            approval=approval,
        )
