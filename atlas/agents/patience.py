"""How long an agent may work on a task, and how long it may give no sign of life."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from atlas.agents.agent import Agent
from atlas.agents.desk import Desk
from atlas.core.alarms import Alarm, set_alarm
from atlas.core.effects import current_run
from atlas.errors import LimitReachedError
from atlas.typing import JSON

__all__ = ["Stuck", "in_time", "watched"]


class Stuck(Exception):  # noqa: N818  (the controller makes something of it)
    """An agent gave no sign of life for too long."""


async def watched(work: Callable[[], Awaitable[JSON]], desk: Desk, agent: Agent) -> JSON:
    """Do the work; give it up when there is no sign of life for too long."""
    if agent.stuck_after is None:
        return await work()
    watch = _Watch(desk, agent.stuck_after)
    try:
        return await work()
    except asyncio.CancelledError:
        if watch.is_over and watch.task.uncancel() == 0:
            raise Stuck(
                f"Agent {agent.name!r} gave no sign of life for {agent.stuck_after:g} s at task "
                f"{desk.task}."
            ) from None
        raise
    finally:
        watch.timer.cancel()


async def in_time(seconds: float, work: Awaitable[JSON], agent: Agent) -> JSON:
    """Do the work within the time that the agent may take."""
    try:
        async with asyncio.timeout(seconds) as scope:
            return await work
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise LimitReachedError(
            f"The limit of seconds is reached: agent {agent.name!r} may work for {seconds:g} s. Give it "
            f"Limits(seconds=...) if it needs more.",
            limit="seconds",
            agent=agent.name,
        ) from error


class _Watch:
    """Cancels a task that gives no sign of life for too long; looks seldom, so that life is cheap."""

    __slots__ = ("_call_later", "_desk", "_loop", "_patience", "is_over", "task", "timer")

    def __init__(self, desk: Desk, patience: float) -> None:
        self._desk = desk
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.is_over = False
        desk.touch()
        # In a run the timer is part of it; else it need not be one of the loop's own.
        self._call_later: Callable[[float, Callable[[], object]], Alarm | asyncio.TimerHandle] = (
            set_alarm if current_run() is None else self._loop.call_later
        )
        self.timer = self._call_later(patience, self._look)

    def _look(self) -> None:
        desk = self._desk
        idle = 0.0 if desk.waits else self._loop.time() - desk.alive
        self.is_over = idle >= self._patience
        if self.is_over:
            self.task.cancel()
        else:
            self.timer = self._call_later(self._patience - max(idle, 0.0), self._look)
