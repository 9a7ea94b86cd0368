"""The event bus under several threads and loops, and under hosts that are not asyncio."""

from __future__ import annotations

import ast
import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections import defaultdict

import pytest

from atlas.core.event_bus import EventBus, HandlerFailed
from atlas.core.messages import Event, message

PUBLISHES = int(os.environ.get("ATLAS_PUBLISHES", "20000"))
"""How many messages four threads publish while subscriptions change; ``make soak``: a million."""


@message("threads.happened")
class Happened(Event):
    publisher: int = 0
    number: int = 0


def in_threads(count, work):
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_four_threads_lose_and_double_nothing_while_subscriptions_change():
    bus = EventBus()
    plain, lanes = defaultdict(list), defaultdict(list)
    stop = threading.Event()

    async def handle(event: Happened) -> None:
        lanes[event.publisher].append(event.number)

    def churn() -> None:
        while not stop.is_set():
            with (
                bus.subscribe(Happened, lambda _: None),
                bus.subscribe("threads.*", lambda _: None),
            ):
                pass

    bus.subscribe(Happened, lambda event: plain[event.publisher].append(event.number))
    bus.subscribe(Happened, handle)
    churning = threading.Thread(target=churn)
    churning.start()
    each = PUBLISHES // 4

    def publish(me: int) -> None:
        for number in range(each):
            receipt = bus.publish(Happened(publisher=me, number=number))
            if number % 5_000 == 4_999:  # who never waits outruns any loop
                assert receipt.wait(60)

    in_threads(4, publish)
    stop.set()
    churning.join()
    asyncio.run(bus.drain(30))
    bus.close()

    for publisher in range(4):
        assert plain[publisher] == list(range(each))
        assert lanes[publisher] == list(range(each))


def test_sequence_numbers_are_unique_and_history_reads_in_their_order():
    bus = EventBus(history=4_000)
    in_threads(4, lambda me: [bus.publish(Happened(publisher=me)) for _ in range(1_000)])

    assert [item.meta.sequence for item in bus.history] == list(range(1, 4_001))


def test_once_is_once_among_threads():
    for _ in range(20):
        bus = EventBus()
        seen = []
        start = threading.Barrier(4)

        def publish(_: int, bus=bus, start=start) -> None:
            start.wait(5)
            bus.publish(Happened())

        bus.subscribe(Happened, seen.append, once=True)
        in_threads(4, publish)

        assert len(seen) == 1


def test_handlers_run_on_the_loops_they_were_subscribed_on():
    bus = EventBus()
    seen = []
    ready = threading.Barrier(3)
    done = threading.Event()

    async def handle(_: Happened) -> None:
        await asyncio.sleep(0)
        seen.append(threading.current_thread().name)

    def loop_thread(_: int) -> None:
        async def main() -> None:
            with bus.subscribe(Happened, handle):
                await asyncio.to_thread(ready.wait, 5)
                await asyncio.to_thread(done.wait, 5)

        asyncio.run(main())

    threads = [
        threading.Thread(target=loop_thread, args=(number,), name=f"loop {number}")
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    ready.wait(5)
    receipt = bus.publish(Happened()).wait(5)
    done.set()
    for thread in threads:
        thread.join()

    assert receipt.done
    assert sorted(seen) == ["loop 0", "loop 1"]


async def test_a_receipt_is_awaited_from_another_loop_than_the_handlers():
    bus = EventBus()
    seen = []

    async def handle(event: Happened) -> None:
        await asyncio.sleep(0)
        seen.append(threading.current_thread().name)

    def without_loop() -> None:
        bus.subscribe(Happened, handle)
        receipts.append(bus.publish(Happened()))

    receipts = []
    await asyncio.to_thread(without_loop)
    await asyncio.wait_for(receipts[0], 5)
    await bus.aclose()

    assert seen == ["atlas-bus"]


def test_a_burst_from_a_thread_wakes_the_loop_once():
    bus = EventBus()
    wakes = []
    seen = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        original = loop.call_soon_threadsafe

        async def handle(event: Happened) -> None:
            seen.append(event.number)

        bus.subscribe(Happened, handle)
        bus.publish(Happened())
        await bus.drain(5)
        loop.call_soon_threadsafe = lambda *a, **k: (wakes.append(1), original(*a, **k))[1]
        thread = threading.Thread(
            target=lambda: [bus.publish(Happened(number=n)) for n in range(1, 501)]
        )
        thread.start()
        thread.join()  # the loop is held up meanwhile: all of it is one burst
        del loop.call_soon_threadsafe
        await bus.drain(5)

    asyncio.run(main())

    assert seen == list(range(501))
    assert len(wakes) == 1


def test_a_bus_that_is_forgotten_unclosed_does_not_keep_its_thread():
    bus = EventBus(name="forgotten")

    async def handle(_: Happened) -> None: ...

    bus.subscribe(Happened, handle)
    bus.publish(Happened()).wait(5)
    (thread,) = [one for one in threading.enumerate() if one.name == "atlas-forgotten"]
    del bus
    for _ in range(100):  # the thread itself may hold it for a moment
        gc.collect()
        thread.join(0.05)
        if not thread.is_alive():
            break

    assert not thread.is_alive()


def test_publishing_from_a_trio_host():
    trio = pytest.importorskip("trio")
    bus = EventBus()
    seen = []

    async def handle(event: Happened) -> None:
        await asyncio.sleep(0)  # this is asyncio: the bus's own loop
        seen.append(event.number)

    async def main() -> None:
        bus.subscribe(Happened, handle)
        bus.subscribe(Happened, lambda event: seen.append(-event.number))
        receipt = bus.publish(Happened(number=3))
        await trio.to_thread.run_sync(receipt.wait)

    trio.run(main)
    bus.close()

    assert sorted(seen) == [-3, 3]  # the bus's own loop runs beside this thread


async def test_a_notebook_whose_loop_is_already_running():
    """Cells run one after another on a running loop; handlers of one cell serve the next."""
    namespace = {"EventBus": EventBus, "Happened": Happened, "seen": []}
    cells = [
        "bus = EventBus()\nasync def handle(event): seen.append(event.number)\n",
        "subscription = bus.subscribe(Happened, handle)",
        "receipt = await bus.publish(Happened(number=1))",
        "await bus.aclose()",
    ]
    for cell in cells:
        code = compile(cell, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, namespace)
        if asyncio.iscoroutine(result):
            await result

    assert namespace["seen"] == [1]


def test_a_program_that_ends_without_closing_the_bus_ends():
    program = (
        "from atlas.core.event_bus import EventBus\n"
        "from atlas.core.messages import Event, message\n"
        "@message('ends.happened')\n"
        "class Happened(Event):\n    pass\n"
        "async def handle(event): print('handled')\n"
        "bus = EventBus()\n"
        "bus.subscribe(Happened, handle)\n"
        "bus.publish(Happened()).wait(5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "handled\n", "")


def test_publish_takes_no_lock_and_never_blocks():
    bus = EventBus()
    seen = []
    bus.subscribe(Happened, seen.append)
    bus.publish(Happened())  # makes the route
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with bus._lock:
            held.set()
            released.wait(30)

    holding = threading.Thread(target=hold)
    holding.start()
    held.wait(30)
    publishing = threading.Thread(target=bus.publish, args=(Happened(number=1),))
    publishing.start()
    publishing.join(10)
    was_through = not publishing.is_alive()
    released.set()
    holding.join()
    publishing.join()

    assert was_through
    assert [item.number for item in seen] == [0, 1]


def test_a_bus_may_be_closed_from_any_thread():
    bus = EventBus()
    begun = threading.Event()
    cancelled = threading.Event()

    async def wait(_: Happened) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    bus.subscribe(Happened, wait)
    receipt = bus.publish(Happened())  # no loop here: it runs on the bus's own
    begun.wait(30)
    in_threads(1, lambda _: bus.close())

    assert cancelled.wait(30)
    assert receipt.wait(30)
    assert bus.is_closed


def test_sequence_tells_the_order_of_publication_though_delivery_is_depth_first():
    bus = EventBus()
    delivered = []

    def first(event: Happened) -> None:
        if event.number == 0:
            bus.publish(Happened(number=1))
        delivered.append(("first", event.meta.sequence))

    bus.subscribe(Happened, first)
    bus.subscribe(Happened, lambda event: delivered.append(("second", event.meta.sequence)))
    bus.publish(Happened(number=0))

    assert delivered == [("first", 2), ("second", 2), ("first", 1), ("second", 1)]
    assert [item.number for item in bus.history] == [0, 1]


async def test_a_reliable_lane_holds_65536_messages_by_default():
    bus = EventBus()

    gate = asyncio.Event()

    async def wait(_: Happened) -> None:
        await gate.wait()

    bus.subscribe(Happened, wait)
    bus.subscribe(HandlerFailed, lambda _: None)
    bus.publish(Happened())
    for _ in range(5):
        await asyncio.sleep(0)  # the first one is being handled
    receipts = [bus.publish(Happened()) for _ in range(65_536 + 3)]
    for _ in range(5):
        await asyncio.sleep(0)
    refused = [place for place, receipt in enumerate(receipts) if receipt.errors]
    gate.set()
    await bus.aclose()

    assert refused == [65_536, 65_537, 65_538]


def test_a_message_keeps_no_other_one_alive_through_its_causes():
    bus = EventBus(history=0)
    kept = []

    def follow(event: Happened) -> None:
        if event.number < 50:
            kept[:] = [bus.publish(Happened(number=event.number + 1)).message]

    bus.subscribe(Happened, follow)
    bus.publish(Happened(publisher=77))
    gc.collect()
    alive = [item for item in gc.get_objects() if isinstance(item, Happened) and item in kept]
    others = [item for item in gc.get_objects() if type(item) is Happened and item not in kept]

    assert alive == kept
    assert kept[0].meta.causation is not None
    assert not others
