"""Where those who have only a bus find who answers for models on it.

An application offers itself on its bus when it starts; `atlas.agents` looks it up there. So a team is
given ``app.bus`` and nothing else, and never knows the application.
"""

from __future__ import annotations

import weakref
from collections.abc import MutableMapping
from typing import Protocol, runtime_checkable

from atlas.core.event_bus import EventBus
from atlas.core.messages import Message
from atlas.providers.base import Provider
from atlas.providers.reply import StreamOptions

__all__ = ["ModelHost", "host_of", "offer_host", "withdraw_host"]


@runtime_checkable
class ModelHost(Protocol):
    """Who answers for models on a bus: chooses them, and keeps what people decide."""

    @property
    def stream_options(self) -> StreamOptions:
        """How answers are streamed: deadlines and retries."""
        ...

    @property
    def questions(self) -> MutableMapping[str, Message]:
        """What people are asked at this moment, by the id of the approval; kept by who asks."""
        ...

    def choose_model(
        self, provider: str | Provider | None = None, model: str | None = None
    ) -> tuple[Provider, str]:
        """Return whom to ask and for which model; inside a run, as was recorded.

        Args:
            provider: A registered name or an object; None: the default one.
            model: The provider's name of the model; None: the default one.
        """
        ...

    async def stored_answer(self, approval: str) -> str | None:
        """Return the JSON text that was kept for an approval, or None.

        Called outside of every run, any number of times.
        """
        ...

    async def store_answer(self, approval: str, answer: str) -> None:
        """Keep the JSON text of the decision on an approval, where other processes find it.

        The first answer holds: one that comes after it changes nothing.
        """
        ...


_hosts: weakref.WeakKeyDictionary[EventBus, ModelHost] = weakref.WeakKeyDictionary()


def offer_host(bus: EventBus, host: ModelHost) -> None:
    """Let those who have ``bus`` find ``host``. Any thread; the latest offer holds."""
    _hosts[bus] = host


def withdraw_host(bus: EventBus, host: ModelHost) -> None:
    """Take an offer back, if it is still the one that holds."""
    if _hosts.get(bus) is host:
        del _hosts[bus]


def host_of(bus: EventBus) -> ModelHost | None:
    """Return who answers for models on a bus, or None."""
    return _hosts.get(bus)
