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
    """How an agent is doing, in one run."""

    agent: Agent
    load: int = 0
    failures: int = 0
    health: Health = "ready"

    @property
    def has_room(self) -> bool:
        """Whether the agent can do one more task."""
        if self.health == "away":
            return False
        return self.agent.capacity is None or self.load < self.agent.capacity


@dataclass(slots=True, eq=False, order=False)
class Waiting:
    """A task that waits for a free agent."""

    task: Task
    tried: frozenset[str]
    to: str | None
    chosen: asyncio.Future[Seat]


@dataclass(slots=True, eq=False)
class Floor:
    """What goes on in one run: seats, who waits for one, and the tasks."""

    seats: dict[str, Seat] = field(default_factory=dict)
    queue: list[tuple[int, int, Waiting]] = field(default_factory=list)
    tasks: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    count: itertools.count[int] = field(default_factory=itertools.count)
    cancelled: set[str] = field(default_factory=set)
