"""How an application's parts are put together: the one place that names concrete classes.

`atlas.Atlas` takes its parts from here. Override one to run an application with another part::

    container = Container()
    container.clock.override(ManualClock())
    app = Atlas(container=container)
"""

from __future__ import annotations

from dependency_injector import containers, providers

from atlas.core.clock import SystemClock
from atlas.core.effects import uuid
from atlas.core.event_bus import EventBus
from atlas.core.registry import Registry
from atlas.providers.base import Provider
from atlas.providers.selection import provider_registry
from atlas.typing import Clock

__all__ = ["Container", "check", "new_id"]


def new_id() -> str:
    """Return a short id for a conversation or a reply, unique for all practical purposes.

    Inside a recorded run it follows from the run's seed.
    """
    return uuid().hex[:12]


class Container(containers.DeclarativeContainer):
    """The parts of one application; each is made when it is first asked for, and only once.

    Attributes:
        clock: Where the bus reads the time.
        bus: The event bus. It is closed with the application unless it was overridden.
        model_providers: The registry of model providers, by name.
        identify: Makes the ids of conversations and replies.
    """

    clock: providers.Provider[Clock] = providers.Singleton(SystemClock)
    bus: providers.Provider[EventBus] = providers.Singleton(EventBus, clock=clock)
    model_providers: providers.Provider[Registry[Provider]] = providers.Singleton(provider_registry)
    identify: providers.Provider[str] = providers.Factory(new_id)


def check(container: Container) -> None:
    """Check that every provider could be built, before anything is; nothing is imported.

    Raises:
        RegistrationError: Two distributions claim one name, a dependency is not registered,
            dependencies form a circle, or entries that need each other exclude each other.
    """
    container.model_providers().check()
