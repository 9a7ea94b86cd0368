"""Where a task is worked on: its place in the tree, its account, who answers for models."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from atlas.agents.account import Account
from atlas.agents.floor import Seat
from atlas.agents.messages import Task
from atlas.agents.outcome import Outcome
from atlas.core.alarms import clock_of
from atlas.core.event_bus import EventBus
from atlas.providers.hosting import ModelHost

__all__ = ["AT_DESK", "Desk", "Team", "current_desk"]


class Team(Protocol):
    """What a desk knows of the team it belongs to."""

    @property
    def agents(self) -> Mapping[str, object]:
        """The agents, by name."""
        ...

    async def delegate(self, task: Task, *, to: str | None = None) -> Outcome:
        """Have a task done; see `Controller.delegate`."""
        ...

    def rest(self, desk: Desk) -> None:
        """Give the place of a desk to others while it waits for what it delegated."""
        ...

    def return_to(self, desk: Desk, *, waits: bool = True) -> Awaitable[None]:
        """Take the place of a desk again, when what it delegated has ended; wait for it, if it may."""
        ...


@dataclass(slots=True, eq=False)
class Desk:
    """What is around a task while an agent works on it.

    Attributes:
        bus: Where it is told what happens.
        host: Who answers for models.
        account: What the task and all below it may use.
        task: The task's id.
        agent: Who works on it.
        depth: How deep in the tree it is; 1 for a task that belongs to none.
        attempt: Which attempt this is, from 1.
        alive: The loop's time of the last sign of life.
        waits: For how many others it waits, who may take their time: people who decide, and agents to
            whom it delegated, who are watched themselves.
        delegated: How many tasks it waits for, of these.
        seat: The place of the agent that works here.
        work: The task itself.
        team: Who delegates further.
        handed_over: To whom, and why, when the agent gave the task away.
    """

    bus: EventBus
    host: ModelHost
    account: Account
    task: str
    agent: str
    depth: int = 1
    attempt: int = 1
    alive: float = 0.0
    waits: int = 0
    delegated: int = 0
    seat: Seat | None = None
    work: Task | None = None
    team: Team | None = None
    handed_over: tuple[str, str] | None = None
    clock: Callable[[], float] = field(default_factory=lambda: clock_of(asyncio.get_running_loop()))

    def touch(self) -> None:
        """Give a sign of life."""
        self.alive = self.clock()

    def wait(self) -> None:
        """Begin to wait for somebody who may take their time; see `waited`."""
        self.waits += 1

    def waited(self) -> None:
        """Wait for one less."""
        self.waits -= 1
        self.touch()


AT_DESK: ContextVar[Desk | None] = ContextVar("atlas_desk", default=None)


def current_desk() -> Desk | None:
    """Return the desk at which the caller works: inside a task of an agent, or None."""
    return AT_DESK.get()
