"""What users of other buses hit, one test each: it does not happen here."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import tracemalloc
import types
import weakref

import pytest

from atlas.core.event_bus import EventBus, HandlerFailed
from atlas.core.messages import Event, message
from atlas.errors import BufferOverflowError, RecursionLimitError, SubscriptionError


@message("trouble.happened")
class Happened(Event):
    number: int = 0
    tags: list[str] = ()  # type: ignore[assignment]


@message("trouble.token")
class Token(Event):
    text: str = ""


@message("trouble.finished")
class Finished(Event):
    pass


@pytest.fixture
async def bus():
    made = EventBus()
    yield made
    await made.aclose(timeout=1)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_wait_on_one_bus_does_not_starve_another(bus):
    other = EventBus()
    gate = asyncio.Event()
    seen = []

    async def slow(_: Happened) -> None:
        await gate.wait()

    async def quick(event: Happened) -> None:
        seen.append(event)

    bus.subscribe(Happened, slow)
    other.subscribe(Happened, quick)
    waiting = asyncio.ensure_future(bus.publish(Happened()))
    await turns()
    await asyncio.wait_for(other.publish(Happened()), 5)

    assert len(seen) == 1
    gate.set()
    await waiting
    await other.aclose()


async def test_a_capacity_error_tells_the_true_limit(bus):
    async def slow(_: Happened) -> None:
        await asyncio.Event().wait()

    bus.subscribe(HandlerFailed, lambda _: None)
    bus.subscribe(Happened, slow, capacity=7)
    bus.publish(Happened())
    await turns()
    receipts = [bus.publish(Happened(number=number)) for number in range(10)]
    await turns()
    refused = [receipt for receipt in receipts if receipt.errors]

    assert len(receipts) - len(refused) == 7
    assert isinstance(refused[0].errors[0], BufferOverflowError)
    assert refused[0].errors[0].capacity == 7


async def test_a_re_entrant_chain_never_leaves_the_awaiter_hanging(bus):
    async def again(event: Happened) -> None:
        await bus.publish(Happened(number=event.number + 1))

    bus.subscribe(HandlerFailed, lambda _: None)
    bus.subscribe(Happened, again)

    with pytest.raises(RecursionLimitError, match="trouble.happened -> trouble.happened"):
        await asyncio.wait_for(bus.publish(Happened()), 60)


def test_plain_handlers_start_no_threads_that_could_be_left_behind():
    before = threading.active_count()
    bus = EventBus()
    bus.subscribe(Happened, lambda _: None)
    for _ in range(100):
        bus.publish(Happened())

    assert threading.active_count() == before


def test_two_classes_of_one_name_in_two_modules_do_not_collide(monkeypatch):
    source = (
        "from atlas.core.messages import Event, message\n"
        "@message('{name}.same')\n"
        "class Same(Event):\n"
        "    number: int = 0\n"
    )
    modules = []
    for name in ("one", "two"):
        module = types.ModuleType(f"trouble_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(source.format(name=name), module.__dict__)
        modules.append(module)
    seen = []
    bus = EventBus()
    bus.subscribe(modules[0].Same, seen.append)
    bus.publish(modules[1].Same())
    bus.publish(modules[0].Same())

    assert [type(item) for item in seen] == [modules[0].Same]


async def test_an_error_is_never_swallowed(bus, caplog):
    def fail(_: Happened) -> None:
        raise ValueError("lost?")

    subscription = bus.subscribe(Happened, fail)
    receipt = bus.publish(Happened())

    assert str(receipt.errors[0]) == "lost?"
    assert subscription.metrics.failed == 1
    assert "lost?" in caplog.text
    assert [item.message_name for item in bus.history][-1] == "bus.handler_failed"


async def test_a_dropped_message_does_not_keep_waiters_for_ever():
    bus = EventBus(middleware=[lambda _: None])
    receipt = bus.publish(Happened())
    await asyncio.wait_for(receipt, 5)
    await bus.drain(5)

    assert receipt.done
    assert receipt.dropped


async def test_one_failing_subscriber_does_not_stop_the_others(bus):
    seen = []

    async def fail(_: Happened) -> None:
        raise ValueError

    bus.subscribe(HandlerFailed, lambda _: None)
    bus.subscribe(Happened, fail)
    bus.subscribe(Happened, seen.append)
    await bus.publish(Happened())

    assert len(seen) == 1


async def test_no_queue_grows_without_bound(bus):
    gate = threading.Event()
    bus.subscribe(
        Happened, lambda _: gate.wait(10), mode="observer", capacity=10, overflow="drop_oldest"
    )
    for number in range(1000):
        bus.publish(Happened(number=number))

    (metrics,) = bus.metrics
    gate.set()
    assert metrics.waiting <= 10
    assert metrics.dropped >= 989


async def test_a_slow_screen_does_not_slow_the_stream_and_loses_no_text(bus):
    gate = threading.Event()
    shown = []

    def show(event: Event) -> None:
        gate.wait(10)
        shown.append(event)

    bus.subscribe(
        "trouble.*",
        show,
        mode="observer",
        capacity=4,
        merge=lambda a, b: (
            Token(text=a.text + b.text) if isinstance(a, Token) and isinstance(b, Token) else None
        ),
    )
    for letter in "abcdefghijklmnopqrstuvwxyz":
        await bus.publish(Token(text=letter))
    await bus.publish(Finished())
    assert shown == []  # all is published, nothing shown yet
    gate.set()
    await bus.drain(10)

    texts = [event.text for event in shown if isinstance(event, Token)]
    assert "".join(texts) == "abcdefghijklmnopqrstuvwxyz"
    assert isinstance(shown[-1], Finished)


async def test_streams_of_two_sessions_do_not_mix():
    one, two = EventBus(), EventBus()
    async with one.stream(Token) as first, two.stream(Token) as second:
        one.publish(Token(text="one"))
        two.publish(Token(text="two"))

        assert (await anext(first)).text == "one"
        assert (await anext(second)).text == "two"
    async with one.stream(Token, where=lambda event: event.meta.run == "b") as only_b:
        one.publish(Token(text="a"), run="a")
        one.publish(Token(text="b"), run="b")
        assert (await anext(only_b)).text == "b"
    await one.aclose()
    await two.aclose()


async def test_chunks_keep_their_order_through_threads(bus):
    seen = []

    async def handle(event: Happened) -> None:
        await asyncio.sleep(0)
        seen.append(event.number)

    bus.subscribe(Happened, handle)
    await asyncio.to_thread(lambda: [bus.publish(Happened(number=n)) for n in range(200)])
    await bus.drain(10)

    assert seen == list(range(200))


def test_a_lambda_does_not_vanish_and_is_refused_weakly():
    seen = []
    bus = EventBus()
    bus.subscribe(Happened, lambda event: seen.append(event))  # noqa: PLW0108
    gc.collect()
    bus.publish(Happened())

    assert len(seen) == 1
    with pytest.raises(SubscriptionError, match="would vanish at once"):
        bus.subscribe(Happened, lambda event: None, weak=True)


async def test_plain_and_async_handlers_mix_and_no_coroutine_is_left_unawaited(bus):
    seen = []

    class Handler:
        async def __call__(self, event: Happened) -> None:
            seen.append("async object")

    bus.subscribe(Happened, Handler())
    bus.subscribe(Happened, lambda _: seen.append("plain"))
    await bus.publish(Happened())  # warnings are errors: an unawaited coroutine would fail this

    assert seen == ["plain", "async object"]


@pytest.mark.parametrize("others", [0, 2, 200])
async def test_a_coroutine_that_a_plain_handler_returns_is_told_as_its_failure(bus, others):
    seen = []

    async def work(event: Happened) -> None:
        raise AssertionError("nobody awaits it")

    def forgets_to_await(event: Happened) -> object:
        return work(event)

    bus.subscribe(HandlerFailed, lambda failed: seen.append(failed.handler))
    for _ in range(others):
        bus.subscribe(Happened, lambda event: seen.append(event.number) or event)
    bus.subscribe(Happened, forgets_to_await, name="forgetful")
    bus.subscribe(Happened, lambda event: work(event) or None, name="shortened")
    bus.subscribe(Happened, forgets_to_await, name="filtered", where=lambda _: True)
    bus.subscribe(Happened, forgets_to_await, name="aside", mode="observer")
    receipt = bus.publish(Happened(number=3))
    await bus.drain()

    assert sorted(set(seen) - {3}) == ["aside", "filtered", "forgetful", "shortened"]
    assert seen.count(3) == others
    assert [type(error) for error in receipt.errors] == [SubscriptionError] * 3
    assert "work" in str(receipt.errors[0])


def test_publishing_from_a_thread_without_a_loop_reaches_async_handlers():
    seen = []
    with EventBus() as bus:

        async def handle(event: Happened) -> None:
            await asyncio.sleep(0)
            seen.append(event.number)

        bus.subscribe(Happened, handle)
        thread = threading.Thread(target=lambda: bus.publish(Happened(number=5)).wait(5))
        thread.start()
        thread.join()

    assert seen == [5]


async def test_tasks_are_not_garbage_collected_mid_flight(bus):
    done = []

    async def handle(event: Happened) -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(
            lambda: asyncio.get_running_loop().call_soon(future.set_result, None)
        )
        await future
        done.append(event)

    bus.subscribe(Happened, handle)
    bus.publish(Happened())
    await asyncio.sleep(0)
    gc.collect()
    await bus.drain(5)

    assert len(done) == 1


def test_memory_does_not_grow_with_messages_subscriptions_or_sessions():
    bus = EventBus(history=100)

    class Screen:
        def show(self, event: Happened) -> None: ...

    def session(number: int) -> None:
        with bus.subscribe(Happened, Screen().show), bus.scope(run=f"session {number}"):
            bus.publish(Happened(number=number))

    for number in range(200):
        session(number)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(200):
            session(number)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1000):
            session(number)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert after - before < 20_000


def test_a_closed_bus_and_its_handlers_are_garbage():
    bus = EventBus()

    async def handle(event: Happened) -> None: ...

    bus.subscribe(Happened, handle)
    bus.publish(Happened()).wait(5)
    bus.close()
    gone = weakref.ref(bus)
    del bus
    gc.collect()

    assert gone() is None


def test_a_payload_cannot_be_changed_under_the_next_subscriber():
    failures = []
    seen = []

    def change(event: Happened) -> None:
        event.tags.append("changed")

    bus = EventBus()
    bus.subscribe(HandlerFailed, failures.append)
    bus.subscribe(Happened, change)
    bus.subscribe(Happened, seen.append)
    bus.publish(Happened(tags=["a"]))

    assert list(seen[0].tags) == ["a"]
    assert failures[0].error_type == "builtins.AttributeError"


def test_the_history_is_a_ring_that_counts_what_it_evicts():
    bus = EventBus(history=10)
    for number in range(25):
        bus.publish(Happened(number=number))

    assert (len(bus.history), bus.history.evicted) == (10, 15)


async def test_a_stream_never_hangs_after_failure_second_read_or_break(bus):
    async with bus.stream(Happened) as events:
        bus.publish(Happened(number=1))
        bus.publish(Happened(number=2))
        async for event in events:
            assert event.number == 1
            break
        async for event in events:
            assert event.number == 2
            break
        waiting = asyncio.ensure_future(anext(events))
        await turns()
        bus.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, 5)
        assert [event async for event in events] == []


def test_publishing_does_not_look_at_other_topics_the_backlog_or_the_history():
    """By construction, so by count: what one publish calls is the same in a big bus."""
    small, big = EventBus(), EventBus(history=10_000)
    for number in range(500):
        big.subscribe(f"other.topic{number}", lambda _: None)
        big.publish(Finished())
    calls = []
    for bus in (small, big):
        bus.subscribe(Happened, lambda _: None)
        bus.publish(Happened())  # makes the route
        counted = []
        event = Happened()
        sys.setprofile(lambda *what, counted=counted: counted.append(what[1]))
        try:
            bus.publish(event)
        finally:
            sys.setprofile(None)
        calls.append(len(counted))

    assert calls[0] == calls[1] < 40


def test_nothing_is_serialised_or_described_unless_somebody_looks(monkeypatch):
    def refuse(self: object) -> str:
        raise AssertionError("nobody asked for this")

    bus = EventBus()
    bus.subscribe(Happened, lambda _: None)
    monkeypatch.setattr(Happened, "__repr__", refuse)

    assert bus.publish(Happened()).done


async def test_messages_of_one_subscription_stay_in_order_while_others_run_beside(bus):
    """The order per entity: one subscription with a predicate per entity is one lane."""
    seen = []
    gates = {0: asyncio.Event(), 1: asyncio.Event()}

    def of(entity: int):
        async def handle(event: Happened) -> None:
            await gates[entity].wait()
            seen.append(event.number)

        return handle

    for entity in (0, 1):
        bus.subscribe(
            Happened, of(entity), where=lambda event, entity=entity: event.number % 2 == entity
        )
    for number in range(6):
        bus.publish(Happened(number=number))
    gates[1].set()
    await turns(20)
    assert seen == [1, 3, 5]  # entity 0 does not hold up entity 1
    gates[0].set()
    await bus.drain(5)

    assert seen == [1, 3, 5, 0, 2, 4]
