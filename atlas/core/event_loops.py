"""The event loops of one bus: a port for each loop it has met, and a loop of its own if need be."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from atlas.core.answers import Answer
from atlas.core.lanes import AsyncHandler, Lane, ObserverLane
from atlas.core.messages import Message, Origin
from atlas.core.ports import Failed, Group, Port, Waits
from atlas.core.subscriptions import Subscription, check_returned
from atlas.errors import BusError

__all__ = ["OBSERVER_CAPACITY", "RELIABLE_CAPACITY", "Ports"]

RELIABLE_CAPACITY = 65_536
OBSERVER_CAPACITY = 1_024

_GRACE = 0.1  # seconds in which a loop that does not run yet may be started


class Ports:
    """The ports of one bus.

    Attributes:
        lock: The lock of the bus, under which ports and lanes are made.
    """

    def __init__(
        self,
        name: str,
        failed: Failed,
        lock: threading.RLock,
        *,
        strict: bool,
    ) -> None:
        self.lock = lock
        self._name = name
        self._failed = failed
        self._strict = strict
        self._ports: dict[AbstractEventLoop, Port] = {}
        self._own: Port | None = None
        self._own_thread: threading.Thread | None = None
        self._awaited: dict[Origin, Waits] = {}

    def of(self, loop: AbstractEventLoop | None) -> Port:
        """Return the port of a loop; for None, of the bus's own loop."""
        if loop is None:
            return self._of_own_loop()
        port = self._ports.get(loop)
        if port is None:
            for old in [old for old in self._ports if old.is_closed()]:
                del self._ports[old]
            port = self._ports[loop] = self._made(loop)
        return port

    def _made(self, loop: AbstractEventLoop) -> Port:
        return Port(loop, self._failed, self._awaited, RELIABLE_CAPACITY, strict=self._strict)

    def _of_own_loop(self) -> Port:
        if self._own is None:
            loop = asyncio.new_event_loop()
            self._own = self._ports[loop] = self._made(loop)
            self._own_thread = threading.Thread(
                target=_run_loop, args=(loop,), name=f"atlas-{self._name}", daemon=True
            )
            self._own_thread.start()
            weakref.finalize(self, _stop_loop, loop)
        return self._own

    # -- lanes ------------------------------------------------------------------------------------

    def groups(
        self, subscriptions: Iterable[Subscription[Any]], running: AbstractEventLoop | None
    ) -> tuple[Group, ...]:
        """Return the lanes of async subscriptions for a publisher on this loop, port by port."""
        by_port: dict[Port, list[Lane]] = {}
        for subscription in subscriptions:
            port = self.of(subscription.options.loop or running)
            by_port.setdefault(port, []).append(self._lane(subscription, port))
        return tuple(Group(port, tuple(lanes)) for port, lanes in by_port.items())

    def _lane(self, subscription: Subscription[Any], port: Port) -> Lane:
        lanes = subscription._lanes
        if isinstance(lanes, Lane):
            if lanes.port is port:
                return lanes
            subscription._lanes = lanes = {lanes.port: lanes}
        if lanes is not None and port in lanes:
            return lanes[port]
        capacity = subscription.options.capacity or RELIABLE_CAPACITY
        port.limit = max(port.limit, capacity)
        lane = Lane(subscription, port, subscription.call, capacity)
        if lanes is None:
            subscription._lanes = lane
        else:
            for old in [old for old in lanes if old.loop.is_closed()]:
                del lanes[old]
            lanes[port] = lane
        return lane

    def observer_lane(self, subscription: Subscription[Any]) -> ObserverLane:
        """Return the lane of a new observer; a plain one runs on the bus's own loop."""
        options = subscription.options
        is_async = subscription.is_async
        return ObserverLane(
            subscription,
            self.of(options.loop),
            subscription.call if is_async else _in_a_coroutine(subscription.call),
            options.capacity or OBSERVER_CAPACITY,
            limit=RELIABLE_CAPACITY,
            drops=options.overflow != "merge" or options.droppable is not None,
            newest_goes=options.overflow == "drop_newest",
            droppable=options.droppable,
            merge=options.merge,
        )

    def awaiting(self, origin: Origin | None) -> int:
        """Return how many handlers wait for each other, from that of a message to the outermost."""
        causes = {known: waits.causation for known, waits in self._awaited.copy().items()}
        for port in list(self._ports.values()):
            causes |= port.awaiting_in_one_go()
        count = 0
        while origin is not None and origin in causes:
            count += 1
            origin = causes[origin]
        return count

    # -- ending -----------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Return when nothing waits and nothing runs on any of the loops.

        Raises:
            BusError: Something waits for a loop that does not run.
        """
        while busy := [port for port in list(self._ports.values()) if not port.is_idle]:
            for port in busy:
                await _idle(port)

    def tasks_here(self) -> list[Awaitable[None]]:
        """Return the tasks that run handlers on the running loop."""
        port = self._ports.get(asyncio.get_running_loop())
        return [] if port is None else list(port.tasks)

    def close(self) -> None:
        """Cancel what runs, fail what waits, and end the bus's own loop."""
        for port in list(self._ports.values()):
            port.in_loop(port.cancel)
        if self._own is not None and self._own_thread is not None:
            _stop_loop(self._own.loop)
            if self._own_thread is not threading.current_thread():
                self._own_thread.join()


def _in_a_coroutine(call: Callable[[Any], object]) -> AsyncHandler:
    async def handle(message: Message) -> None:
        check_returned(call(message))

    return handle


def _run_loop(loop: AbstractEventLoop) -> None:
    """The thread of a bus's own loop. Knows nothing of the bus, which may be forgotten unclosed."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _stop_loop(loop: AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):  # it may be closed already
        loop.call_soon_threadsafe(loop.stop)


async def _idle(port: Port) -> None:
    here = asyncio.get_running_loop()
    waiting: Answer[None] = Answer(here)
    port.in_loop(lambda: port.when_idle(lambda: waiting.give(None)))
    if port.loop is not here:
        await _unless_stopped(port.loop, waiting)
    await waiting


async def _unless_stopped(loop: AbstractEventLoop, waiting: Answer[None]) -> None:
    """Wait for an answer that comes from a loop, for as long as that loop runs."""
    while not waiting.is_over:
        ran = loop.is_running()
        await waiting.wait(_GRACE)
        if not (ran or loop.is_running() or waiting.is_over):
            raise BusError(
                f"Messages wait for {loop!r}, which does not run, so nobody will handle them. Run "
                f"it until the bus is drained, or close the bus, which fails what waits."
            )
