"""The other buses that ``benchmarks/bus.py`` measures, each used as its own documentation shows.

``pip install --group peers`` installs them all. Each function takes handlers and returns what sends a
batch of messages to every one of them; where the peer has message classes of its own, the messages
are of that class and are made outside of the time measured.

Annotations are evaluated here: some peers read them, of functions within functions.
"""

import contextlib
import importlib
import importlib.util
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Handler = Callable[[Any], None]
AsyncHandler = Callable[[Any], Awaitable[None]]
Send = Callable[[Any], object]

MODULES = {
    "blinker": "blinker",
    "pyee": "pyee",
    "psygnal": "psygnal",
    "reactivex": "reactivex",
    "bubus": "bubus",
    "autogen-core": "autogen_core",
    "workflows": "workflows",
    "FastStream": "faststream.nats",
    "pydantic": "pydantic",
    "msgspec": "msgspec",
}
"""What a table calls a peer, and what is imported of it."""


def installed(name: str) -> bool:
    """Whether a peer can be imported."""
    root, _, rest = MODULES[name].partition(".")
    if importlib.util.find_spec(root) is None:
        return False
    return not rest or _imports(MODULES[name])


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


# -- plain handlers -------------------------------------------------------------------------------


def blinker_sync(handlers: list[Handler]) -> Send:
    import blinker

    signal = blinker.Signal()
    for handler in handlers:
        signal.connect(handler)
    return signal.send


def pyee_sync(handlers: list[Handler]) -> Send:
    import pyee

    emitter = pyee.EventEmitter()
    for handler in handlers:
        emitter.add_listener("tick", handler)
    return lambda event: emitter.emit("tick", event)


def psygnal_sync(handlers: list[Handler]) -> Send:
    import psygnal

    instance = psygnal.SignalInstance((object,))
    for handler in handlers:
        instance.connect(handler)
    return instance.emit


def reactivex_sync(handlers: list[Handler]) -> Send:
    import reactivex

    subject: Any = reactivex.Subject()
    for handler in handlers:
        subject.subscribe(handler)
    return subject.on_next


def replay_subject(kept: int, handler: Handler) -> Send:
    """Return what sends through a reactivex subject that keeps its last messages."""
    import reactivex.subject

    subject: Any = reactivex.subject.ReplaySubject(buffer_size=kept)
    subject.subscribe(handler)
    return subject.on_next


SYNC: dict[str, Callable[[list[Handler]], Send]] = {
    "blinker": blinker_sync,
    "pyee": pyee_sync,
    "psygnal": psygnal_sync,
    "reactivex": reactivex_sync,
}


# -- async handlers -------------------------------------------------------------------------------


@dataclass
class AsyncPeer:
    """Sends a batch and returns when every handler has seen all of it.

    Attributes:
        run: Sends the batch.
        make: Makes a message, given its number.
    """

    run: Callable[[list[Any]], Awaitable[None]]
    make: Callable[[int], Any] | None = None


Opened = contextlib.AbstractAsyncContextManager[AsyncPeer]


@contextlib.asynccontextmanager
async def blinker_async(handlers: list[AsyncHandler]) -> AsyncIterator[AsyncPeer]:
    import blinker

    signal = blinker.Signal()
    for handler in handlers:
        signal.connect(handler)

    async def run(events: list[Any]) -> None:
        for event in events:
            await signal.send_async(event)

    yield AsyncPeer(run)


@contextlib.asynccontextmanager
async def pyee_async(handlers: list[AsyncHandler]) -> AsyncIterator[AsyncPeer]:
    from pyee.asyncio import AsyncIOEventEmitter

    emitter = AsyncIOEventEmitter()
    for handler in handlers:
        emitter.add_listener("tick", handler)

    async def run(events: list[Any]) -> None:
        for event in events:
            emitter.emit("tick", event)
            await emitter.wait_for_complete()

    yield AsyncPeer(run)


@contextlib.asynccontextmanager
async def bubus_async(
    handlers: list[AsyncHandler], max_history_size: int | None = 50
) -> AsyncIterator[AsyncPeer]:
    import bubus

    class BubusTick(bubus.BaseEvent[None]):
        number: int = 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # handlers of one name
        bus = bubus.EventBus(max_history_size=max_history_size)
        for handler in handlers:
            bus.on(BubusTick, handler)

    async def run(events: list[Any]) -> None:
        for event in events:
            await bus.dispatch(event)

    yield AsyncPeer(run, lambda number: BubusTick(number=number))
    await bus.stop(clear=True)


@dataclass
class AutogenTick:
    number: int


@contextlib.asynccontextmanager
async def autogen_async(handlers: list[AsyncHandler]) -> AsyncIterator[AsyncPeer]:
    from autogen_core import (
        AgentId,
        MessageContext,
        RoutedAgent,
        SingleThreadedAgentRuntime,
        TopicId,
        TypeSubscription,
        event,
    )

    class Listener(RoutedAgent):
        def __init__(self, handler: AsyncHandler) -> None:
            super().__init__("listens")
            self.handler = handler

        @event
        async def on_tick(self, message: AutogenTick, ctx: MessageContext) -> None:
            await self.handler(message)

    runtime = SingleThreadedAgentRuntime()
    topic = TopicId("tick", "default")
    for number, handler in enumerate(handlers):
        kind = f"listener{number}"
        await Listener.register(runtime, kind, lambda handler=handler: Listener(handler))
        await runtime.add_subscription(TypeSubscription("tick", kind))
        await runtime.try_get_underlying_agent_instance(AgentId(kind, "default"))

    async def run(events: list[Any]) -> None:
        runtime.start()
        for tick in events:
            await runtime.publish_message(tick, topic)
        await runtime.stop_when_idle()

    yield AsyncPeer(run, AutogenTick)
    await runtime.close()


@contextlib.asynccontextmanager
async def workflows_async(handlers: list[AsyncHandler]) -> AsyncIterator[AsyncPeer]:
    import workflows
    from workflows.events import Event, StartEvent, StopEvent

    class Begin(StartEvent):
        events: list[Any]

    class WorkflowTick(Event):
        number: int = 0

    left = 0

    class Flow(workflows.Workflow):
        @workflows.step(num_workers=1)
        async def begin(self, ctx: workflows.Context, ev: Begin) -> WorkflowTick | None:
            for event in ev.events:
                ctx.send_event(event)
            return None

    def add(number: int, handler: AsyncHandler) -> None:
        async def listen(ev: WorkflowTick) -> StopEvent | None:
            nonlocal left
            await handler(ev)
            left -= 1
            return None if left else StopEvent()

        listen.__name__ = listen.__qualname__ = f"listen{number}"
        workflows.step(workflow=Flow, num_workers=1)(listen)

    for number, handler in enumerate(handlers):
        add(number, handler)
    flow = Flow(timeout=None)

    async def run(events: list[Any]) -> None:
        nonlocal left
        left = len(events) * len(handlers)
        await flow.run(start_event=Begin(events=events))

    yield AsyncPeer(run, lambda number: WorkflowTick(number=number))


@contextlib.asynccontextmanager
async def faststream_async(handlers: list[AsyncHandler]) -> AsyncIterator[AsyncPeer]:
    from faststream.nats import NatsBroker, TestNatsBroker

    broker = NatsBroker(logger=None)

    def add(handler: AsyncHandler) -> None:
        async def listen(number: int) -> None:
            await handler(number)

        broker.subscriber("tick")(listen)

    for handler in handlers:
        add(handler)
    async with TestNatsBroker(broker) as memory:

        async def run(events: list[Any]) -> None:
            for event in events:
                await memory.publish(event, "tick")

        yield AsyncPeer(run, int)


ASYNC: dict[str, Callable[[list[AsyncHandler]], Opened]] = {
    "blinker": blinker_async,
    "pyee": pyee_async,
    "bubus": bubus_async,
    "autogen-core": autogen_async,
    "workflows": workflows_async,
    "FastStream": faststream_async,
}
