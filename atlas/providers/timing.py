"""What each call of a provider costs, measured from outside while somebody wants to know.

`ProviderTimer` weaves itself around the ``stream`` of the providers it is given and publishes a
`ProviderTimed` after each call, also after one that failed and was retried. Closing it puts the very
providers back that there were; what is not timed pays nothing. The time that the reader of a whole
reply saw is in `Timing`, without any of this.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Literal, Self

from atlas.core.aspect_weaver import AspectWeaver, Call
from atlas.core.event_bus import EventBus
from atlas.providers.base import ChatRequest, Delta, ModelCatalogue, Provider
from atlas.providers.messages import ProviderTimed
from atlas.providers.resilience import closing

__all__ = ["ProviderTimer"]


class ProviderTimer:
    """Publishes a `ProviderTimed` after each call of the providers it times, until it is closed.

    A context manager. `time` and `close` may be called from any thread.

    Args:
        bus: Where to publish; the event is caused by whatever caused the call.
        clock: Seconds from any start, never going back; default: ``time.perf_counter``.

    Attributes:
        is_open: Whether it still times.

    Example::

        with ProviderTimer(bus) as timer:
            timer.time(provider)
            ...
    """

    def __init__(self, bus: EventBus, *, clock: Callable[[], float] | None = None) -> None:
        self.is_open: bool = True
        self._bus = bus
        self._clock = clock or time.perf_counter
        self._lock = threading.Lock()
        self._weaver = AspectWeaver()
        # By id: a provider need not be hashable. Held, so that an id is not given to another one.
        self._timed: dict[int, Provider] = {}

    def time(self, provider: Provider) -> None:
        """Time the calls of a provider that begin from now on.

        Doing it again changes nothing, and neither does doing it once the timer is closed.

        Raises:
            ConfigurationError: The provider does not let its attributes be set.
        """
        with self._lock:
            if not self.is_open or id(provider) in self._timed:
                return
            # Advice is of the same kind as what it is put around.
            is_generator = inspect.isasyncgenfunction(provider.stream)
            around = partial(self._measured if is_generator else self._begun, provider)
            self._weaver.weave(provider, "stream", around=around)
            self._timed[id(provider)] = provider

    def close(self) -> None:
        """Leave the providers as they were; calls under way are not reported. Idempotent."""
        with self._lock:
            self.is_open = False
            self._weaver.close()
            self._timed.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _begun(
        self, provider: Provider, call: Call, proceed: Callable[[Call], AsyncIterator[Delta]]
    ) -> AsyncIterator[Delta]:
        return self._measured(provider, call, proceed)

    async def _measured(
        self, provider: Provider, call: Call, proceed: Callable[[Call], AsyncIterator[Delta]]
    ) -> AsyncGenerator[Delta, None]:
        clock = self._clock
        began, first, waited, deltas = clock(), None, 0.0, 0
        outcome: Literal["ended", "failed", "closed"] = "failed"
        try:
            async with closing(proceed(call)) as stream:
                receive = stream.__anext__
                while True:
                    asked = clock()
                    try:
                        delta = await receive()
                    except StopAsyncIteration:
                        break
                    finally:
                        waited += clock() - asked
                    deltas += 1
                    first = clock() - began if first is None else first
                    yield delta
            outcome = "ended"
        except (GeneratorExit, asyncio.CancelledError):
            outcome = "closed"
            raise
        finally:
            if self.is_open:
                model = _model(provider, call)
                total = clock() - began
                self._bus.publish(
                    ProviderTimed(provider.name, model, outcome, total, waited, deltas, first)
                )


def _model(provider: Provider, call: Call) -> str:
    request: ChatRequest = call.args[0] if call.args else call.kwargs["request"]
    default = provider.default_model if isinstance(provider, ModelCatalogue) else ""
    return request.model or default
