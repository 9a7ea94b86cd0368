"""The bus for a long time, with everything at once: nothing lost, order kept, memory flat.

A second by default; ``make soak`` takes ten minutes (``ATLAS_SOAK_SECONDS``) and prints the figures.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import threading
import time
import tracemalloc
from dataclasses import dataclass, field

import psutil

from atlas.core.event_bus import EventBus, HandlerFailed
from atlas.core.messages import Command, Event, message

SECONDS = float(os.environ.get("ATLAS_SOAK_SECONDS", "1"))
PUBLISHERS = 4
EACH = 250
"""How many messages each publisher publishes in a round."""
AT_LEAST = 8
"""Rounds, on however slow a machine."""


@message("soak.beat")
class Beat(Event):
    publisher: int
    number: int
    text: str = ""


@message("soak.ask")
class Ask(Command[int]):
    number: int


@dataclass
class InOrder:
    """Counts what one handler gets and what of it is out of order, and keeps nothing."""

    count: int = 0
    wrong: int = 0
    last: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(PUBLISHERS), -1))

    def take(self, beat: Beat) -> None:
        self.count += 1
        self.wrong += beat.number != self.last[beat.publisher] + 1
        self.last[beat.publisher] = beat.number


@dataclass
class Memory:
    """What is in use after each round, when nothing is on its way."""

    traced: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    def measure(self) -> None:
        gc.collect()
        self.traced.append(tracemalloc.get_traced_memory()[0])
        self.resident.append(psutil.Process().memory_info().rss)

    @staticmethod
    def growth(found: list[int]) -> float:
        """Return by how many bytes the last quarter lies over the second, the first one warms up."""
        quarter = len(found) // 4
        return statistics.median(found[-quarter:]) - statistics.median(found[quarter : 2 * quarter])


def fill_caches() -> None:
    """Fill what is bounded but would fill up slowly, and look like growth: the ids remembered.

    4,096 are; but their table is made anew, and larger, when some 5,500 have come and gone.
    """
    with EventBus(name="warm") as bus:
        for number in range(10_000):
            assert bus.publish(Ask(number)).message.meta.id


def publish(bus: EventBus, publisher: int, first: int) -> None:
    with bus.scope(run=f"run-{publisher}-{first}", headers={"by": str(publisher)}):
        for number in range(first, first + EACH):
            receipt = bus.publish(Beat(publisher, number, "x" * (number % 50)))
            if number % 100 == 0:  # who never waits outruns any loop
                assert receipt.wait(60)


def change_subscriptions(bus: EventBus, stop: threading.Event) -> None:
    while not stop.is_set():
        with (
            bus.subscribe(Beat, lambda _: None, once=True),
            bus.subscribe("soak.*", lambda _: None, where=lambda it: it.message_name == "soak.ask"),
            bus.subscribe(Event, lambda _: None, priority=3),
        ):
            stop.wait(0.001)


async def read(bus: EventBus, overflow: str, opened: asyncio.Event) -> int:
    """Read a stream until its publishers say that it is over."""
    count = 0
    async with bus.stream(Beat, capacity=64, overflow=overflow) as stream:  # type: ignore[arg-type]
        opened.set()
        async for beat in stream:
            if beat.publisher < 0:
                break
            count += 1
    return count


async def one_round(bus: EventBus, first: int) -> tuple[int, int]:
    stop, opened = threading.Event(), [asyncio.Event(), asyncio.Event()]
    changing = threading.Thread(target=change_subscriptions, args=(bus, stop))
    changing.start()
    readers = [
        asyncio.create_task(read(bus, overflow, one))
        for overflow, one in zip(("block", "drop_oldest"), opened, strict=True)
    ]
    for one in opened:
        await one.wait()
    asked = asyncio.create_task(bus.request(Ask(first), timeout=60))
    waited = asyncio.create_task(bus.wait_for(Beat, where=lambda it: it.number == first + EACH - 1))
    await asyncio.sleep(0)  # both are waiting
    await asyncio.gather(
        *(asyncio.to_thread(publish, bus, publisher, first) for publisher in range(PUBLISHERS))
    )
    await waited
    assert await asked == first
    await bus.publish(Beat(-1, 0))
    read_all, read_some = await asyncio.gather(*readers)
    stop.set()
    await asyncio.to_thread(changing.join)
    await bus.drain(60)
    return read_all, read_some


async def test_a_soak_loses_nothing_keeps_order_and_leaves_memory_flat():
    bus = EventBus(name="soak", history=1_000, measure=True)
    plain, awaited = InOrder(), InOrder()
    observed = failures = 0

    def from_publisher(beat: Beat) -> bool:
        return beat.publisher >= 0

    async def suspend(beat: Beat) -> None:
        if beat.number % 10 == 0:
            await asyncio.sleep(0)
        awaited.take(beat)

    async def observe(_: Beat) -> None:
        nonlocal observed
        observed += 1

    def fail(beat: Beat) -> None:
        if beat.number % 250 == 0:
            raise ValueError(f"number {beat.number} fails")

    def note(_: HandlerFailed) -> None:
        nonlocal failures
        failures += 1

    bus.subscribe(Beat, plain.take, where=from_publisher)
    bus.subscribe(Beat, suspend, where=from_publisher)
    bus.subscribe(
        Beat, observe, mode="observer", capacity=100, overflow="drop_oldest", where=from_publisher
    )
    bus.subscribe(Beat, fail, where=from_publisher)
    bus.subscribe(HandlerFailed, note)
    bus.subscribe(Ask, lambda ask: bus.reply(ask, ask.number))

    memory, rounds = Memory(), 0
    tracemalloc.start()
    fill_caches()
    started = time.monotonic()
    while rounds < AT_LEAST or time.monotonic() - started < SECONDS:
        read_all, read_some = await one_round(bus, rounds * EACH)
        rounds += 1
        memory.measure()
        assert read_all == PUBLISHERS * EACH
        assert 0 < read_some <= PUBLISHERS * EACH
    tracemalloc.stop()
    taken = time.monotonic() - started
    await bus.aclose()

    sent = rounds * PUBLISHERS * EACH
    traced, resident = memory.growth(memory.traced), memory.growth(memory.resident)
    print(
        f"\n{sent:,} messages in {taken:.0f} s and {rounds:,} rounds; {observed:,} observed, "
        f"{failures:,} failures told; {memory.traced[-1]:,} B traced ({traced:+,.0f} B), "
        f"{memory.resident[-1] / 2**20:.0f} MiB resident ({resident / 2**20:+.1f} MiB)"
    )
    assert (plain.count, plain.wrong) == (sent, 0)
    assert (awaited.count, awaited.wrong) == (sent, 0)
    assert failures == sent // 250
    assert traced < 100_000
    assert resident < 16 * 2**20
