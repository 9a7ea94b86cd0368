"""How an application's parts are put together: the one place that names concrete classes.

`atlas.Atlas` takes its parts from here. Override one to run an application with another part::

    container = Container()
    container.clock.override(ManualClock())
    app = Atlas(container=container)
"""

from __future__ import annotations

from typing import cast

from dependency_injector import containers, providers

from atlas.core.clock import SystemClock
from atlas.core.effects import uuid
from atlas.core.event_bus import EventBus
from atlas.core.registry import Registry
from atlas.errors import ConfigurationError
from atlas.providers.base import Provider
from atlas.providers.selection import provider_registry
from atlas.typing import Clock

__all__ = ["Container", "check", "check_parts", "new_id"]


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


def check_parts(given: object) -> None:
    """Check that what was overridden can take its part, before an application uses it.

    Raises:
        ConfigurationError: It is no container, or one of its parts is something else.
    """
    is_container = isinstance(given, containers.DynamicContainer) and hasattr(given, "identify")
    if not is_container and given is not Container:
        raise ConfigurationError(
            f"container is {given!r}. Give Container(), with parts of it overridden."
        )
    container = cast("Container", given)
    clock, identify = container.clock(), container.identify.last_overriding
    for what, part, holds, wanted in (
        ("clock", clock, _is_clock(clock), "an object with a method `time_ns()`"),
        ("bus", bus := container.bus(), isinstance(bus, EventBus), "an EventBus"),
        (
            "model_providers",
            registry := container.model_providers(),
            isinstance(registry, Registry),
            "a Registry of providers",
        ),
        (
            "identify",
            identify() if isinstance(identify, providers.Object) else None,
            not isinstance(identify, providers.Object),  # which would be one id for all
            "a factory of texts: providers.Factory(function), of dependency_injector",
        ),
    ):
        if not holds:
            raise ConfigurationError(
                f"The container's {what} is {part!r}. Override it with {wanted}."
            )


def _is_clock(given: object) -> bool:
    return callable(getattr(given, "time_ns", None)) and not isinstance(given, type)


def check(container: Container) -> None:
    """Check that every provider could be built, before anything is; nothing is imported.

    Raises:
        RegistrationError: Two distributions claim one name, a dependency is not registered,
            dependencies form a circle, or entries that need each other exclude each other.
    """
    container.model_providers().check()
