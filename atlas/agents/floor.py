"""What goes on in one run of a team: who is busy, who waits for whom, and the tasks."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

from atlas.agents.agent import Agent
from atlas.agents.messages import Health, Task

__all__ = ["Floor", "Seat", "Waiting"]


@dataclass(slots=True, eq=False)
class Seat:
    """How an agent is doing, in one run.

    Attributes:
        agent: The agent.
        load: How many tasks it has.
        resting: How many of these do nothing but wait for what they delegated. They take no place:
            else two agents that delegate to each other could wait for each other's for ever.
        failures: How many it failed at in a row.
        health: How it is.
    """

    agent: Agent
    load: int = 0
    resting: int = 0
    failures: int = 0
    health: Health = "ready"

    @property
    def has_place(self) -> bool:
        """Whether one more of its tasks may go on."""
        return self.agent.capacity is None or self.load - self.resting < self.agent.capacity

    @property
    def has_room(self) -> bool:
        """Whether the agent can do one more task."""
        return self.health != "away" and self.has_place


@dataclass(slots=True, eq=False, order=False)
class Waiting:
    """A task that waits for a free agent; or for its old place, which is ``back``, to go on."""

    task: Task
    tried: frozenset[str]
    to: str | None
    chosen: asyncio.Future[Seat]
    back: Seat | None = None


@dataclass(slots=True, eq=False)
class Floor:
    """What goes on in one run: seats, who waits for one, and the tasks."""

    seats: dict[str, Seat] = field(default_factory=dict)
    queue: list[tuple[float, int, Waiting]] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    count: itertools.count[int] = field(default_factory=itertools.count)
    cancelled: set[str] = field(default_factory=set)
