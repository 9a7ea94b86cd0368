"""The event bus against a plain loop and other buses: ``python benchmarks/bus.py [section …]``.

Sections: sync, async, observer, handover, threads, flat, memory, message, whole, schema (default:
all). All contestants take turns within one process, and each figure is the median of many short
rounds of processor time, so that a busy machine slows all of them; where several threads work
(handover, threads) it is time on the clock. ``x`` is the ratio to the first line of a table. What the
bus has to reach is listed at the end, as met or missed; beside it stands, where there is one, the same
figure of the ``floor``: a few plain lines that do no more than what is promised needs (see
``_floor.py``). It shows what the promises cost so written, and proves no limit: with many handlers, whose
calls the bus writes out, the bus is below it. ``--quick`` takes a minute or two, on fewer
rounds. Peers that are not installed are named and left out: ``pip install --group peers`` brings them.

A message is made fresh for each publish, outside of the time measured. To let go of one is within, for
all: a bus with a history frees its oldest message in each publish, where the others free the newest.
Handlers do nothing, and each has code of its own, as the subscribers of a program have: what one
``def`` makes shares, from Python 3.12 on, what the interpreter has learnt of it, which is good for a
third of the time of a plain loop and is found in no program.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import json
import logging
import statistics
import sys
import threading
import time
import tracemalloc
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import _floor
import _peers
import messages
from _peers import AsyncPeer

from atlas.core.event_bus import EventBus
from atlas.core.messages import Event, message

logging.disable(logging.CRITICAL)

Contestants = dict[str, Callable[[list[Any]], None]]
AsyncContestants = dict[str, AsyncPeer]
Results = dict[str, dict[str, float]]

F = TypeVar("F", bound=Callable[..., object])

now = time.perf_counter_ns
cpu = time.process_time_ns
FLOOR = "floor (see _floor.py)"
BATCH = 100
ROUND = 20_000_000
"""How long a round of one contestant may take, in ns: slow ones send fewer messages in it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to measure.

    Attributes:
        rounds: Rounds per figure.
        quick: Whether to leave out what takes long.
    """

    rounds: int
    quick: bool


@dataclass(frozen=True, slots=True)
class Target:
    """Something the bus has to reach: a measured figure and its bound, the upper one or the lower.

    Attributes:
        floor: The same figure of what does the least, where that was measured: see ``_floor.py``.
    """

    what: str
    measured: float
    bound: float
    at_least: bool = False
    floor: float | None = None

    @property
    def is_met(self) -> bool:
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


TARGETS: list[Target] = []


@message("bench.tick")
class Tick(Event):
    number: int = 0


def plain_handler() -> Callable[[Any], None]:
    def handle(event: Any) -> None:
        pass

    return with_code_of_its_own(handle)


def async_handler() -> Callable[[Any], Awaitable[None]]:
    async def handle(event: Any) -> None:
        pass

    return with_code_of_its_own(handle)


def with_code_of_its_own(function: F) -> F:
    made = cast("types.FunctionType", function)
    return cast("F", types.FunctionType(made.__code__.replace(), made.__globals__, made.__name__))


def numbered(number: int) -> Tick:
    return Tick(number=number)


def batch(size: int = BATCH) -> list[Tick]:
    return [Tick(number=number) for number in range(size)]


def medians(contestants: Contestants, rounds: int) -> dict[str, float]:
    """Return nanoseconds per event of each."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            events = batch()
            started = cpu()
            run(events)
            events.clear()
            taken[name].append((cpu() - started) / BATCH)
    return {name: statistics.median(values) for name, values in taken.items()}


async def async_medians(contestants: AsyncContestants, rounds: int) -> dict[str, float]:
    """Return nanoseconds per event of each, until all handlers have run."""
    sizes = {name: await fitting(contestant) for name, contestant in contestants.items()}
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, contestant in contestants.items():
            if sizes[name] == 1 and turn >= 5:
                continue  # a fraction of a second each
            events = [(contestant.make or numbered)(number) for number in range(sizes[name])]
            started = cpu()
            await contestant.run(events)
            events.clear()
            taken[name].append((cpu() - started) / sizes[name])
    return {name: statistics.median(values) for name, values in taken.items()}


async def fitting(contestant: AsyncPeer) -> int:
    """Return how many messages a contestant can send in a round."""
    for _ in range(2):  # the first one warms up
        events = [(contestant.make or numbered)(number) for number in range(2)]
        started = now()
        await contestant.run(events)
    return max(1, min(BATCH, 2 * ROUND // (now() - started)))


Table = Mapping[int, dict[str, float]]


def show(title: str, table: Table, unit: str = "subscribers") -> Results:
    """Print one table; columns are the numbers of subscribers, or of whatever the unit says."""
    names = list(dict.fromkeys(name for column in table.values() for name in column))
    first = names[0]
    print(f"\n{title}, ns per event (x: ratio to {first!r})")
    if len(table) > 1:
        print(f"  {unit:28}" + "".join(f"{count:>22,}" for count in table))
    results: Results = {}
    for name in names:
        cells = []
        for count, column in table.items():
            if name not in column:
                cells.append(f"{'-':>22}")
                continue
            ratio = column[name] / column[first]
            results.setdefault(name, {})[str(count)] = round(ratio, 2)
            shown = f"{ratio:.2f}" if ratio < 100 else f"{ratio:,.0f}"
            cells.append(f"{column[name]:>13,.0f} {shown:>7}x")
        print(f"  {name:28}" + "".join(cells))
    return results


# -- contestants ----------------------------------------------------------------------------------


def each(send: Callable[[Any], object]) -> Callable[[list[Any]], None]:
    def run(events: list[Any]) -> None:
        for event in events:
            send(event)

    return run


def plain_loop(handlers: list[Callable[[Any], None]]) -> Callable[[Any], None]:
    def emit(event: Any) -> None:
        for handler in handlers:
            handler(event)

    return emit


def sync_contestants(count: int) -> Contestants:
    handlers = [plain_handler() for _ in range(count)]
    bus = EventBus()
    for handler in handlers:
        bus.subscribe(Tick, handler)
    found: Contestants = {
        "plain loop": each(plain_loop(handlers)),
        "Atlas": each(bus.publish),
        FLOOR: each(_floor.floor_sync(handlers)),
    }
    for name, peer in _peers.SYNC.items():
        if _peers.installed(name):
            found[name] = each(peer(handlers))
    return found


@contextlib.asynccontextmanager
async def async_contestants(
    count: int, leave_out: frozenset[str]
) -> AsyncIterator[AsyncContestants]:
    handlers = [async_handler() for _ in range(count)]
    bus = EventBus()
    for handler in handlers:
        bus.subscribe(Tick, handler)

    async def in_turn(events: list[Any]) -> None:
        async def emit(event: Any) -> None:
            for handler in handlers:
                await handler(event)

        for event in events:
            await emit(event)

    async def atlas(events: list[Any]) -> None:
        for event in events:
            await bus.publish(event)

    async def gathered(events: list[Any]) -> None:
        for event in events:
            await asyncio.gather(*(handler(event) for handler in handlers))

    at_least = _floor.floor_async(handlers)

    async def floor(events: list[Any]) -> None:
        for event in events:
            await at_least(event)

    found = {
        "await in turn": AsyncPeer(in_turn),
        "Atlas": AsyncPeer(atlas),
        FLOOR: AsyncPeer(floor),
        "gather": AsyncPeer(gathered),
    }
    async with contextlib.AsyncExitStack() as opened:
        opened.push_async_callback(bus.aclose)
        for name, peer in _peers.ASYNC.items():
            if _peers.installed(name) and name not in leave_out:
                found[name] = await opened.enter_async_context(peer(handlers))
        yield found


# -- sections -------------------------------------------------------------------------------------


def sync_section(budget: Budget) -> Results:
    counts = {1: 4, 10: 2, 100: 1, 1_000: 1}
    rounds = {count: budget.rounds * times // (1 + count // 200) for count, times in counts.items()}
    table = {
        count: medians(sync_contestants(count), max(5, found)) for count, found in rounds.items()
    }
    for count, loops, blinkers in ((1, 5.5, 2.8), (10, 2.3, 9.0), (100, 1.2, 15.0)):
        column = table[count]
        atlas = column["Atlas"]
        named = f"plain handlers, {count}:"
        floor = column[FLOOR]
        plain = column["plain loop"]
        TARGETS.append(Target(f"{named} x plain loop", atlas / plain, loops, False, floor / plain))
        if "blinker" in column:
            faster = column["blinker"] / atlas
            least = column["blinker"] / floor
            text = f"{named} times faster than blinker"
            TARGETS.append(Target(text, faster, blinkers, True, least))
    against_best_peer("plain handlers", table)
    return show("publish to plain handlers", table)


def against_best_peer(what: str, table: dict[int, dict[str, float]]) -> None:
    """Add the target that no peer is faster, at any number of subscribers."""
    for count, column in table.items():
        peers = {name: found for name, found in column.items() if name in _peers.MODULES}
        if peers:
            best = min(peers, key=peers.__getitem__)
            text = f"{what}, {count:,}: x the best peer ({best})"
            TARGETS.append(Target(text, column["Atlas"] / peers[best], 1.0))


def async_section(budget: Budget) -> Results:
    async def main() -> dict[int, dict[str, float]]:
        table = {}
        for count in (1, 10, 100, 1_000):
            # a second and more per message, or an hour to subscribe
            slow = frozenset({"bubus", "workflows", "FastStream"} if count > 100 else ())
            async with async_contestants(count, slow) as found:
                rounds = max(5, budget.rounds // (1 + count // 20))
                table[count] = await async_medians(found, rounds)
        return table

    table = asyncio.run(main())
    for count, bound in ((1, 2.8), (10, 1.5), (100, 1.2)):
        ratio = table[count]["Atlas"] / table[count]["await in turn"]
        least = table[count][FLOOR] / table[count]["await in turn"]
        text = f"async handlers, {count}: x awaiting in turn"
        TARGETS.append(Target(text, ratio, bound, False, least))
    against_best_peer("async handlers", table)
    return show("publish and await async handlers", table)


def observer_section(budget: Budget) -> Results:
    """Observers with lanes of their own against a queue and a task for each."""

    async def one(count: int) -> dict[str, float]:
        bus = EventBus()
        handlers = [async_handler() for _ in range(count)]
        for handler in handlers:
            bus.subscribe(Tick, handler, mode="observer", capacity=10_000)
        queues: list[asyncio.Queue[Any]] = [asyncio.Queue(10_000) for _ in handlers]

        async def work(
            queue: asyncio.Queue[Any], handler: Callable[[Any], Awaitable[None]]
        ) -> None:
            while True:
                await handler(await queue.get())
                queue.task_done()

        tasks = [asyncio.create_task(work(q, h)) for q, h in zip(queues, handlers, strict=True)]

        async def queued(events: list[Any]) -> None:
            for event in events:
                for queue in queues:
                    queue.put_nowait(event)
            for queue in queues:
                await queue.join()

        async def observed(events: list[Any]) -> None:
            for event in events:
                bus.publish(event)
            await bus.drain()

        publish, all_seen = _floor.floor_observed(handlers)

        async def floor(events: list[Any]) -> None:
            for event in events:
                publish(event)
            await all_seen()

        found = {
            "asyncio.Queue + task": AsyncPeer(queued),
            "Atlas": AsyncPeer(observed),
            FLOOR: AsyncPeer(floor),
        }
        result = await async_medians(found, budget.rounds)
        for task in tasks:
            task.cancel()
        await bus.aclose()
        return result

    async def main() -> dict[int, dict[str, float]]:
        return {count: await one(count) for count in (1, 10, 100)}

    table = asyncio.run(main())
    for count, column in table.items():
        ratio = column["Atlas"] / column["asyncio.Queue + task"]
        least = column[FLOOR] / column["asyncio.Queue + task"]
        text = f"observers, {count}: x asyncio.Queue + task"
        TARGETS.append(Target(text, ratio, 0.5, False, least))
    return show("observers, until all have seen it", table)


def handover_section(budget: Budget) -> Results:
    """From four threads to ten async handlers on a loop, per event."""

    async def main() -> dict[str, float]:
        loop = asyncio.get_running_loop()
        bus = EventBus()
        handlers = [async_handler() for _ in range(10)]
        for handler in handlers:
            bus.subscribe(Tick, handler)
        tasks: set[asyncio.Task[None]] = set()
        left = 0
        done = asyncio.Event()

        async def run_all(event: Any) -> None:
            nonlocal left
            for handler in handlers:
                await handler(event)
            left -= 1
            if left == 0:
                done.set()

        def start(event: Any) -> None:
            task = loop.create_task(run_all(event))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        def threadsafe(events: list[Any]) -> None:
            for event in events:
                loop.call_soon_threadsafe(start, event)

        def atlas(events: list[Any]) -> None:
            for event in events:
                bus.publish(event)

        async def in_threads(work: Callable[[list[Any]], None], waits: bool) -> float:
            nonlocal left
            batches = [batch(250) for _ in range(4)]
            left = 1_000
            done.clear()
            started = now()
            threads = [threading.Thread(target=work, args=(events,)) for events in batches]
            for thread in threads:
                thread.start()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            if waits:
                await done.wait()
            else:
                await bus.drain()
            return (now() - started) / 1_000

        taken: dict[str, list[float]] = {"call_soon_threadsafe each": [], "Atlas": []}
        for _ in range(max(5, budget.rounds // 3)):
            taken["call_soon_threadsafe each"].append(await in_threads(threadsafe, True))
            taken["Atlas"].append(await in_threads(atlas, False))
        await bus.aclose()
        return {name: statistics.median(values) for name, values in taken.items()}

    column = asyncio.run(main())
    ratio = column["Atlas"] / column["call_soon_threadsafe each"]
    TARGETS.append(Target("4 threads to a loop: x call_soon_threadsafe each", ratio, 0.4))
    return show("4 threads to 10 async handlers", {10: column})


def threads_section(budget: Budget) -> Results:
    """Publishing from one and from four threads, ten plain handlers."""
    found = sync_contestants(10)

    def send(run: Callable[[list[Any]], None], count: int) -> float:
        events = batch(2_000)
        parts = [events[start::count] for start in range(count)]
        started = now()
        threads = [threading.Thread(target=run, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (now() - started) / len(events)

    taken: dict[int, dict[str, list[float]]] = {1: {}, 4: {}}
    for _ in range(max(5, budget.rounds // 3)):
        for name, run in found.items():
            for count, column in taken.items():
                column.setdefault(name, []).append(send(run, count))
    table = {
        count: {name: statistics.median(values) for name, values in column.items()}
        for count, column in taken.items()
    }
    return show("publish from threads to ten plain handlers", table, "publishing threads")


def flat_section(budget: Budget) -> Results:
    """The same publish in a small bus and in ever bigger ones."""

    def bus_with(*, history: int = 1_000, topics: int = 0, backlog: int = 0) -> EventBus:
        bus = EventBus(history=history)
        bus.subscribe(Tick, plain_handler())
        for number in range(topics):
            bus.subscribe(f"other.topic{number}", plain_handler())
        for _ in range(history):
            bus.publish(Tick())
        if backlog:
            loop = asyncio.new_event_loop()  # never run: what is for it waits
            loop.call_soon_threadsafe = lambda *_, **__: None  # type: ignore[assignment]
            held = bus.subscribe(Tick, async_handler(), loop=loop, capacity=backlog)
            for _ in range(backlog):
                bus.publish(Tick())
            bus.signal(Tick).disconnect(held)
        return bus

    grown = {
        "history of 10^3": bus_with(),
        "history of 10^4": bus_with(history=10_000),
        "history of 10^5": bus_with(history=100_000),
        "10^2 other topics": bus_with(topics=100),
        "10^4 other topics": bus_with(topics=10_000),
        "backlog of 10^3": bus_with(backlog=1_000),
        "backlog of 10^5": bus_with(backlog=100_000),
    }
    if not budget.quick:
        grown["history of 10^6"] = bus_with(history=1_000_000)
    contestants = {name: each(bus.publish) for name, bus in grown.items()}
    gc.freeze()  # a million kept messages make the collector slow, not the bus
    column = medians(contestants, budget.rounds * 2)
    gc.unfreeze()
    small, *_ = column.values()
    worst = max(column, key=column.__getitem__)
    TARGETS.append(Target(f"cost as things grow: x small ({worst})", column[worst] / small, 1.1))
    results = show("cost of publishing as other things grow", {1: column})
    if _peers.installed("reactivex"):
        show("the same of a peer that keeps messages", {1: growing_peer(budget)})
    return results


def growing_peer(budget: Budget) -> dict[str, float]:
    contestants: Contestants = {}
    for size in (1_000, 10_000, 100_000):
        send = _peers.replay_subject(size, plain_handler())
        each(send)(batch(size))
        contestants[f"reactivex, {size:,} kept"] = each(send)
    return medians(contestants, budget.rounds)


def memory_section(budget: Budget) -> Results:
    """What a subscription and a kept event take, in bytes as `tracemalloc` counts them."""
    subscribers = 1_000 if budget.quick else 10_000
    # A function's code is read when it is first subscribed anywhere, and Python keeps a copy with the
    # code. That is a function's, not a subscription's, so it is told apart.
    atlas_with(0)
    read = traced(lambda: atlas_with(subscribers)) / subscribers
    per_subscription = {"Atlas": traced(lambda: atlas_with(subscribers)) / subscribers}
    for name, peer in _peers.SYNC.items():
        if _peers.installed(name):
            handlers = [plain_handler() for _ in range(1_000)]
            peer(handlers[:1])  # imports
            per_subscription[name] = traced(functools.partial(peer, handlers)) / 1_000
    per_subscription |= asyncio.run(async_memory())

    events = 100_000
    bus = EventBus(history=events)
    bus.publish(Tick())

    def publish_all() -> None:
        for _ in range(events):
            bus.publish(Tick())

    tracemalloc.start()
    per_event = {"Atlas": grown_by(publish_all) / events}
    growth = grown_by(publish_all)
    tracemalloc.stop()
    if _peers.installed("reactivex"):
        send = _peers.replay_subject(events, plain_handler())
        tracemalloc.start()
        per_event["reactivex"] = grown_by(lambda: each(send)(batch(events))) / events
        tracemalloc.stop()
    if _peers.installed("bubus"):
        per_event["bubus"] = asyncio.run(bubus_memory())

    print("\nmemory, bytes                     per subscription    per kept event")
    for name in per_subscription | per_event:
        cells = [column.get(name) for column in (per_subscription, per_event)]
        shown = [f"{cell:>18,.0f}" if cell is not None else f"{'-':>18}" for cell in cells]
        print(f"  {name:28}" + "".join(shown))
    copied = read - per_subscription["Atlas"]
    print(f"  Atlas, once for each function subscribed: {copied:.0f} B")
    print(f"  Atlas over the next 100,000 events, its history full: {growth:+,} B")
    TARGETS.append(Target("bytes per subscription", per_subscription["Atlas"], 250))
    TARGETS.append(Target("bytes per kept event", per_event["Atlas"], 450))
    TARGETS.append(Target("bytes of growth per event, history full", growth / events, 0.1))
    return {"per subscription": per_subscription, "per event": per_event}


def atlas_with(count: int) -> object:
    bus = EventBus()
    for handler in HANDLERS[:count]:
        bus.subscribe(Tick, handler)
    return bus


HANDLERS = [plain_handler() for _ in range(10_000)]


def traced(make: Callable[[], object]) -> int:
    """Return how many bytes what a function makes takes."""
    gc.collect()
    tracemalloc.start()
    kept = make()
    gc.collect()
    size, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return size


def grown_by(work: Callable[[], object]) -> int:
    """Return how many bytes more are in use after some work."""
    gc.collect()
    before, _peak = tracemalloc.get_traced_memory()
    work()
    gc.collect()
    after, _peak = tracemalloc.get_traced_memory()
    return after - before


async def async_memory() -> dict[str, float]:
    """Return bytes per async subscriber of the peers that only have those."""
    found = {}
    for name in ("bubus", "autogen-core", "workflows", "FastStream"):
        if not _peers.installed(name):
            continue
        async with contextlib.AsyncExitStack() as opened:
            await opened.enter_async_context(_peers.ASYNC[name]([async_handler()]))  # imports
            handlers = [async_handler() for _ in range(100)]
            gc.collect()
            tracemalloc.start()
            await opened.enter_async_context(_peers.ASYNC[name](handlers))
            gc.collect()
            size, _peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            found[name] = size / len(handlers)
    return found


async def bubus_memory(events: int = 500) -> float:
    """Return bytes per event of a bubus without a limit; each one costs more than the one before."""
    async with _peers.bubus_async([async_handler()], max_history_size=None) as peer:
        assert peer.make is not None
        await peer.run([peer.make(0)])
        gc.collect()
        tracemalloc.start()
        await peer.run([peer.make(number) for number in range(events)])
        gc.collect()
        size, _peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return size / events


# -- from fields to handlers ----------------------------------------------------------------------


def message_section(budget: Budget) -> Results:
    """A message of five fields, checked and immutable, against a dataclass that checks nothing."""
    makers = {
        "frozen slots dataclass": messages.PlainOrder,
        "Atlas": messages.Order,
    }
    if _peers.installed("pydantic"):
        makers["pydantic, frozen"] = pydantic_order()
    runs: Contestants = {name: making(cls) for name, cls in makers.items()}
    column = medians(runs, budget.rounds * 10)
    ratio = column["Atlas"] / column["frozen slots dataclass"]
    TARGETS.append(Target("message of 5 fields: x unchecked dataclass", ratio, 1.0))
    return show("making a message of five fields", {1: column})


def making(cls: Callable[..., object]) -> Callable[[list[Any]], None]:
    def run(events: list[Any]) -> None:
        for _ in events:
            cls(order_id="A1", total=2.5, count=3, paid=True, note="gift")

    return run


def pydantic_order() -> Callable[..., object]:
    import pydantic

    kinds = messages.PlainOrder.__annotations__
    types = {"str": str, "float": float, "int": int, "bool": bool, "str | None": str | None}
    fields: dict[str, Any] = {name: (types[kind], ...) for name, kind in kinds.items()}
    config = pydantic.ConfigDict(frozen=True)
    return pydantic.create_model("PydanticOrder", __config__=config, **fields)


def whole_section(budget: Budget) -> Results:
    """From raw fields to handlers: a dataclass and a loop, Atlas, and marshmallow + PClass + blinker."""
    table = {count: medians(whole(count), budget.rounds) for count in (1, 10, 100)}
    column = table[1]
    ratio = column["Atlas"] / column["dataclass + loop"]
    TARGETS.append(Target("fields to handler: x dataclass + loop", ratio, 1.8))
    if NAIVE in column:
        faster = column[NAIVE] / column["Atlas"]
        TARGETS.append(Target("fields to handler: times faster than naive", faster, 18.0, True))
    return show("raw fields to handlers", table)


NAIVE = "marshmallow, PClass, blinker"


def whole(count: int) -> Contestants:
    import blinker
    import marshmallow
    import pyrsistent

    class OrderSchema(marshmallow.Schema):
        order_id = marshmallow.fields.String(required=True)
        total = marshmallow.fields.Float(required=True)
        count = marshmallow.fields.Integer(required=True)
        paid = marshmallow.fields.Boolean(required=True)
        note = marshmallow.fields.String(allow_none=True)

    class PersistentOrder(pyrsistent.PClass):
        order_id = pyrsistent.field(type=str)
        total = pyrsistent.field(type=float)
        count = pyrsistent.field(type=int)
        paid = pyrsistent.field(type=bool)
        note = pyrsistent.field(type=(str, type(None)))

    handlers = [plain_handler() for _ in range(count)]
    bus = EventBus()
    signal = blinker.Signal()
    for handler in handlers:
        bus.subscribe(messages.Order, handler)
        signal.connect(handler)
    schema = OrderSchema()
    emit, publish, send = plain_loop(handlers), bus.publish, signal.send
    plain, order, fields = messages.PlainOrder, messages.Order, messages.ORDER

    def limit(events: list[Any]) -> None:
        for _ in events:
            emit(plain(**fields))

    def atlas(events: list[Any]) -> None:
        for _ in events:
            publish(order(**fields))

    def naive(events: list[Any]) -> None:
        for _ in events:
            send(PersistentOrder(**schema.load(fields)))

    return {"dataclass + loop": limit, "Atlas": atlas, NAIVE: naive}


def schema_section(budget: Budget) -> Results:
    """Reading and writing plain data, checked."""
    results: Results = {}
    for title, kinds, data in (
        ("flat", messages.FLAT_TYPES, messages.FLAT),
        ("rich", messages.RICH_TYPES, messages.RICH),
    ):
        found = messages.contestants(kinds, data)
        found = {"atlas": found.pop("atlas"), **found}
        for place, way in enumerate(("load", "dump")):
            runs = {who: repeated(pair[place]) for who, pair in found.items()}
            column = medians(runs, budget.rounds)
            shown = show(f"schema: {way} ten {title} fields", {1: column})
            results |= {f"{way} {title} {who}": ratios for who, ratios in shown.items()}
            bound = 12.0 if way == "load" else 5.0
            faster = column["marshmallow"] / column["atlas"]
            text = f"schema, {way} {title}: times faster than marshmallow"
            TARGETS.append(Target(text, faster, bound, True))
            if way == "load" and title == "flat" and "pydantic" in column:
                ratio = column["atlas"] / column["pydantic"]
                TARGETS.append(Target("schema, load flat: x pydantic", ratio, 1.0))
    return results


def repeated(call: Callable[[], object]) -> Callable[[list[Any]], None]:
    def run(events: list[Any]) -> None:
        for _ in events:
            call()

    return run


SECTIONS: dict[str, Callable[[Budget], Results]] = {
    "sync": sync_section,
    "async": async_section,
    "observer": observer_section,
    "handover": handover_section,
    "threads": threads_section,
    "flat": flat_section,
    "memory": memory_section,
    "message": message_section,
    "whole": whole_section,
    "schema": schema_section,
}


def show_targets() -> None:
    print("\ntargets                                                      measured       bound")
    for target in TARGETS:
        sign = ">=" if target.at_least else "<="
        verdict = "met" if target.is_met else "MISSED"
        print(
            f"  {target.what:56}{target.measured:>11,.2f} {sign:>4}{target.bound:>8,.2f}  {verdict}"
            + ("" if target.floor is None else f" (floor {target.floor:.2f})")
        )
    met = sum(target.is_met for target in TARGETS)
    print(f"  {met} met, {len(TARGETS) - met} missed")


def main() -> None:
    parser = argparse.ArgumentParser(description="The event bus in figures.")
    parser.add_argument("sections", nargs="*", metavar="section", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=60, help="rounds per figure (default 60)")
    parser.add_argument("--quick", action="store_true", help="15 rounds, and less of what is slow")
    parser.add_argument("--json", action="store_true", help="print the ratios as JSON at the end")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section is called {unknown.pop()!r}; there are {', '.join(SECTIONS)}")
    budget = Budget(15 if options.quick else options.rounds, options.quick)
    print(f"Python {sys.version.split()[0]}")
    absent = [name for name in _peers.MODULES if not _peers.installed(name)]
    for name in absent:
        print(f"  {name:28}not installed (pip install --group peers)")
    results = {name: SECTIONS[name](budget) for name in options.sections or SECTIONS}
    show_targets()
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
