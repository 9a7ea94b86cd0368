"""The event bus against a plain loop and other buses: ``python benchmarks/bus.py [section …]``.

Sections: sync, async, observer, handover, threads, flat, memory (default: all). All contestants take
turns within one process, and each figure is the median of many short rounds, so that a busy machine
slows all of them. ``x`` is the ratio to the first line of a table. Peers that are not installed are
left out (``pip install blinker pyee psygnal reactivex bubus``).

A message is made fresh for each publish, outside of the time measured. To let go of one is within, for
all: a bus with a history frees its oldest message in each publish, where the others free the newest.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import logging
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from atlas.core.event_bus import EventBus
from atlas.core.messages import Event, message

logging.disable(logging.CRITICAL)

Contestants = dict[str, Callable[[list[Any]], None]]
AsyncContestants = dict[str, Callable[[list[Any]], Awaitable[None]]]
Results = dict[str, dict[str, float]]

now = time.perf_counter_ns
BATCH = 100


@message("bench.tick")
class Tick(Event):
    number: int = 0


def plain_handler() -> Callable[[Any], None]:
    def handle(event: Any) -> None:
        pass

    return handle


def async_handler() -> Callable[[Any], Awaitable[None]]:
    async def handle(event: Any) -> None:
        pass

    return handle


def batch(size: int = BATCH) -> list[Tick]:
    return [Tick(number=number) for number in range(size)]


def medians(contestants: Contestants, rounds: int) -> dict[str, float]:
    """Return nanoseconds per event of each."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            events = batch()
            started = now()
            run(events)
            events.clear()
            taken[name].append((now() - started) / BATCH)
    return {name: statistics.median(values) for name, values in taken.items()}


async def async_medians(contestants: AsyncContestants, rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            events = batch()
            started = now()
            await run(events)
            events.clear()
            taken[name].append((now() - started) / BATCH)
    return {name: statistics.median(values) for name, values in taken.items()}


def show(title: str, table: dict[int, dict[str, float]], unit: str = "subscribers") -> Results:
    """Print one table; columns are the numbers of subscribers."""
    names = list(dict.fromkeys(name for column in table.values() for name in column))
    first = names[0]
    print(f"\n{title}, ns per event (x: ratio to {first!r})")
    print(f"  {unit:28}" + "".join(f"{count:>18,}" for count in table))
    results: Results = {}
    for name in names:
        cells = []
        for count, column in table.items():
            if name not in column:
                cells.append(f"{'-':>18}")
                continue
            ratio = column[name] / column[first]
            results.setdefault(name, {})[str(count)] = round(ratio, 2)
            cells.append(f"{column[name]:>10,.0f} {ratio:>6.2f}x")
        print(f"  {name:28}" + "".join(cells))
    return results


# -- contestants ----------------------------------------------------------------------------------


def peer(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


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
    found: Contestants = {"plain loop": each(plain_loop(handlers)), "Atlas": each(bus.publish)}
    if blinker := peer("blinker"):
        signal = blinker.Signal()
        for handler in handlers:
            signal.connect(handler)
        found["blinker"] = each(signal.send)
    if pyee := peer("pyee"):
        emitter = pyee.EventEmitter()
        for handler in handlers:
            emitter.add_listener("tick", handler)
        found["pyee"] = each(lambda event: emitter.emit("tick", event))
    if psygnal := peer("psygnal"):
        instance = psygnal.SignalInstance((object,))
        for handler in handlers:
            instance.connect(handler)
        found["psygnal"] = each(instance.emit)
    if reactivex := peer("reactivex"):
        subject: Any = reactivex.Subject()
        for handler in handlers:
            subject.subscribe(handler)
        found["reactivex"] = each(subject.on_next)
    return found


def async_contestants(count: int) -> tuple[AsyncContestants, EventBus]:
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

    found: AsyncContestants = {"await in turn": in_turn, "Atlas": atlas, "gather": gathered}
    if blinker := peer("blinker"):
        signal = blinker.Signal()
        for handler in handlers:
            signal.connect(handler)

        async def blink(events: list[Any]) -> None:
            for event in events:
                await signal.send_async(event)

        found["blinker send_async"] = blink
    return found, bus


# -- sections -------------------------------------------------------------------------------------


def sync_section(rounds: int) -> Results:
    counts = {1: 4, 10: 2, 100: 1, 1_000: 1}
    return show(
        "publish to plain handlers",
        {
            count: medians(sync_contestants(count), max(5, rounds * times // (1 + count // 200)))
            for count, times in counts.items()
        },
    )


def async_section(rounds: int) -> Results:
    async def main() -> dict[int, dict[str, float]]:
        table = {}
        for count in (1, 10, 100):
            found, bus = async_contestants(count)
            table[count] = await async_medians(found, max(5, rounds // (1 + count // 20)))
            await bus.aclose()
        return table

    return show("publish and await async handlers", asyncio.run(main()))


def observer_section(rounds: int) -> Results:
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

        result = await async_medians({"asyncio.Queue + task": queued, "Atlas": observed}, rounds)
        for task in tasks:
            task.cancel()
        await bus.aclose()
        return result

    async def main() -> dict[int, dict[str, float]]:
        return {count: await one(count) for count in (1, 10, 100)}

    return show("observers, until all have seen it", asyncio.run(main()))


def handover_section(rounds: int) -> Results:
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
        for _ in range(max(5, rounds // 3)):
            taken["call_soon_threadsafe each"].append(await in_threads(threadsafe, True))
            taken["Atlas"].append(await in_threads(atlas, False))
        await bus.aclose()
        return {name: statistics.median(values) for name, values in taken.items()}

    return show("4 threads to 10 async handlers", {10: asyncio.run(main())})


def threads_section(rounds: int) -> Results:
    """Publishing from one and from four threads, ten plain handlers."""
    bus = EventBus()
    for _ in range(10):
        bus.subscribe(Tick, plain_handler())

    def publish(count: int) -> Callable[[list[Any]], None]:
        def run(events: list[Any]) -> None:
            parts = [events[start::count] for start in range(count)]
            threads = [threading.Thread(target=each(bus.publish), args=(part,)) for part in parts]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return run

    taken: dict[str, list[float]] = {"1 thread": [], "4 threads": []}
    for _ in range(max(5, rounds // 3)):
        for name, count in (("1 thread", 1), ("4 threads", 4)):
            events = batch(2_000)
            started = now()
            publish(count)(events)
            taken[name].append((now() - started) / len(events))
    return show(
        "publishing threads",
        {10: {name: statistics.median(values) for name, values in taken.items()}},
    )


def flat_section(rounds: int) -> Results:
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
            bus.subscribe(Tick, async_handler(), loop=loop, capacity=backlog)
            for _ in range(backlog):
                bus.publish(Tick())
            bus.signal(Tick).disconnect(bus._receivers(Tick)[-1])
        return bus

    grown = {
        "small bus": bus_with(),
        "history of 10^5": bus_with(history=100_000),
        "history of 10^6": bus_with(history=1_000_000),
        "10^4 other topics": bus_with(topics=10_000),
        "backlog of 10^5": bus_with(backlog=100_000),
    }
    contestants = {name: each(bus.publish) for name, bus in grown.items()}
    gc.freeze()  # a million kept messages make the collector slow, not the bus
    result = show("cost as other things grow", {1: medians(contestants, rounds * 2)})
    gc.unfreeze()
    return result


def memory_section(_: int) -> Results:
    tracemalloc.start()
    handlers = [plain_handler() for _ in range(10_000)]
    bus = EventBus()
    before, _peak = tracemalloc.get_traced_memory()
    kept = [bus.subscribe(Tick, handler) for handler in handlers]
    after, _peak = tracemalloc.get_traced_memory()
    per_subscription = (after - before - sys.getsizeof(kept)) / len(handlers)

    bus = EventBus(history=100_000)
    before, _peak = tracemalloc.get_traced_memory()
    for _ in range(100_000):
        bus.publish(Tick())
    after, _peak = tracemalloc.get_traced_memory()
    per_event = (after - before) / 100_000
    before = after
    for _ in range(100_000):
        bus.publish(Tick())
    after, _peak = tracemalloc.get_traced_memory()
    growth = after - before
    tracemalloc.stop()
    print(
        f"\nmemory: {per_subscription:.0f} B per subscription, {per_event:.0f} B per kept event, "
        f"{growth:+,} B over the next 100,000 events"
    )
    return {"memory": {"subscription": per_subscription, "event": per_event, "growth": growth}}


SECTIONS: dict[str, Callable[[int], Results]] = {
    "sync": sync_section,
    "async": async_section,
    "observer": observer_section,
    "handover": handover_section,
    "threads": threads_section,
    "flat": flat_section,
    "memory": memory_section,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The event bus in figures.")
    parser.add_argument("sections", nargs="*", metavar="section", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=60, help="rounds per figure (default 60)")
    parser.add_argument("--json", action="store_true", help="print the ratios as JSON at the end")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section is called {unknown.pop()!r}; there are {', '.join(SECTIONS)}")
    print(f"Python {sys.version.split()[0]}")
    results = {name: SECTIONS[name](options.rounds) for name in options.sections or SECTIONS}
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
