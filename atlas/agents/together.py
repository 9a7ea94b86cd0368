"""Doing things side by side, to the end: nothing is left running, whatever happens to who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import TypeVar

from atlas.agents.messages import Task
from atlas.errors import ConfigurationError

__all__ = ["gathered", "in_order", "settled"]

T = TypeVar("T")


async def gathered(works: Iterable[Awaitable[T]]) -> list[T]:
    """Do things side by side, to the end; the first error is raised when all have ended."""
    tasks = [asyncio.ensure_future(each) for each in works]
    await settled(tasks)
    return [each.result() for each in tasks]


async def settled(tasks: Sequence[asyncio.Future[T]]) -> None:
    """Wait until all have ended, however they do; cancelled meanwhile, cancel them and wait on.

    Also when it is cancelled again, by somebody without patience: what is under way has an end.
    """
    broken: BaseException | None = None
    while not all(each.done() for each in tasks):
        try:
            await asyncio.wait(tasks)
        except BaseException as error:  # noqa: BLE001  raised below, when all have ended
            broken = broken or error
            for each in tasks:
                each.cancel()
    if broken is not None:
        for each in tasks:
            _ = each.cancelled() or each.exception()  # looked at, so that nobody complains
        raise broken


def in_order(tasks: list[Task]) -> list[Task]:
    """Return tasks in an order in which each comes after those that it waits for."""
    known = {task.id: task for task in tasks}
    if len(known) < len(tasks) or "" in known:
        raise ConfigurationError("Each task of run() needs an id of its own: Task(..., id='...').")
    made: dict[str, Task] = {}
    left = dict(known)
    while left:
        ready = [task for task in left.values() if all(each in made for each in task.after)]
        if not ready:
            missing = {each for task in left.values() for each in task.after} - known.keys()
            why = f"{', '.join(sorted(missing))} is not among them" if missing else "a circle"
            raise ConfigurationError(
                f"Tasks {', '.join(left)} wait for each other, or for what is not there ({why})."
            )
        for task in ready:
            made[task.id] = left.pop(task.id)
    return list(made.values())
