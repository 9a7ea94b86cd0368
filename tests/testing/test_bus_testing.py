"""`atlas.testing`: watching a bus, the manual clock, and the conformance suite of buses."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest

from atlas.core.event_bus import EventBus, HandlerFailed, Receipt
from atlas.core.messages import Event, Message, message
from atlas.errors import ValidationError, WaitTimeoutError
from atlas.testing import BUS_CHECKS, ManualClock, capture, check_bus, until_idle


@message("testing.begun")
class Begun(Event):
    number: int = 0


@message("testing.done")
class Done(Event):
    number: int = 0


@pytest.fixture
def bus():
    with EventBus() as made:
        made.subscribe(Begun, lambda event: made.publish(Done(number=event.number)))
        yield made


def test_capture_records_in_published_order_and_only_inside_the_block(bus):
    with capture(bus) as seen:
        bus.publish(Begun(number=1))
    bus.publish(Begun(number=2))

    assert seen.names == ["testing.begun", "testing.done"]
    assert len(seen) == 2
    assert seen.of(Done) == [Done(number=1)]
    assert seen.only(Begun) == Begun(number=1)


def test_capture_orders_what_several_threads_published(bus):
    with capture(bus, Begun) as seen:
        threads = [
            threading.Thread(target=lambda: [bus.publish(Begun()) for _ in range(100)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    sequences = [item.meta.sequence for item in seen]
    assert len(sequences) == 400
    assert sequences == sorted(sequences)


def test_assert_sequence_takes_classes_names_and_messages(bus):
    with capture(bus) as seen:
        bus.publish(Begun(number=1))

    seen.assert_sequence(Begun, "testing.done")
    seen.assert_sequence(Begun(number=1), Done(number=1))
    seen.assert_sequence(Done, exact=False)
    with pytest.raises(AssertionError, match=r"Expected exactly: Done\npublished: Begun\(number=1"):
        seen.assert_sequence(Done)
    with pytest.raises(AssertionError, match="Expected in this order: Done, Begun"):
        seen.assert_sequence(Done, Begun, exact=False)


def test_assert_caused_and_the_tree_of_causes(bus):
    bus.subscribe(Done, lambda event: bus.publish(Begun(number=5)), where=lambda e: e.number == 1)
    with capture(bus) as seen:
        first = bus.publish(Begun(number=1)).message

    seen.assert_caused(first, Done(number=1))
    seen.assert_tree(
        """
        testing.begun
          testing.done
            testing.begun
              testing.done
        """
    )
    with pytest.raises(AssertionError, match="it caused: Done"):
        seen.assert_caused(first)
    with pytest.raises(AssertionError, match="Expected the tree"):
        seen.assert_tree("testing.begun")


def test_only_refuses_none_and_several(bus):
    with capture(bus) as seen:
        with pytest.raises(AssertionError, match="0 messages of Begun"):
            seen.only(Begun)
        bus.publish(Begun())
        bus.publish(Begun())
    with pytest.raises(AssertionError, match="2 messages of Begun"):
        seen.only(Begun)
    seen.clear()
    assert seen.messages == []


def test_the_manual_clock_stands_still_until_moved():
    clock = ManualClock(start=100.0)
    bus = EventBus(clock=clock)
    first = bus.publish(Begun()).message
    clock.advance(2.5)
    second = bus.publish(Begun()).message

    assert first.meta.time_ns == 100_000_000_000
    assert second.meta.time_ns == 102_500_000_000
    assert clock.monotonic() == 2.5


@pytest.mark.parametrize("seconds", [-1, "1", math.nan, math.inf, True, None])
def test_the_manual_clock_refuses_what_is_no_time_to_pass(seconds):
    with pytest.raises(ValidationError, match=r"ManualClock\.seconds"):
        ManualClock().advance(seconds)


def test_the_manual_clock_refuses_what_is_no_time_to_start_at():
    with pytest.raises(ValidationError, match=r"ManualClock\.start: 'now'"):
        ManualClock(start="now")


def test_assert_caused_refuses_a_cause_that_was_never_published(bus):
    with capture(bus) as record:
        bus.publish(Begun())

    with pytest.raises(ValidationError, match=r"assert_caused\.cause: .*a published message"):
        record.assert_caused(Begun(), Begun)


async def test_until_idle_waits_for_handlers_and_says_when_they_do_not_end(bus):
    gate = asyncio.Event()
    bus.subscribe(Done, lambda _: None)

    async def slow(_: Begun) -> None:
        await gate.wait()

    bus.subscribe(Begun, slow)
    bus.publish(Begun())
    with pytest.raises(WaitTimeoutError, match="still had handlers running"):
        await until_idle(bus, timeout=0.01)
    gate.set()

    await until_idle(bus)


@pytest.mark.parametrize("check", BUS_CHECKS, ids=lambda check: check.__name__)
async def test_the_event_bus_keeps_the_promises_of_a_bus(check):
    await check(EventBus())


async def test_the_suite_names_the_promise_that_a_broken_bus_breaks():
    class Forgetful(EventBus):
        def publish(self, message: Message, **links: object) -> Receipt[Message]:
            receipt: Receipt[Message] = Receipt()
            receipt.message = message
            return receipt

    with pytest.raises(AssertionError, match="Broken promise: plain handlers have run"):
        await check_bus(Forgetful)


async def test_the_suite_passes_as_a_whole():
    await check_bus(EventBus)


def test_failures_are_recorded_too(bus):
    def fail(_: Begun) -> None:
        raise ValueError("broken")

    bus.subscribe(Begun, fail)
    with capture(bus) as seen:
        bus.publish(Begun())

    assert seen.only(HandlerFailed).error == "broken"
