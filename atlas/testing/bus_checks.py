"""The conformance suite of buses: what any bus, or bridge between buses, promises.

Run it against whatever offers the interface of `EventBus`::

    @pytest.mark.parametrize("check", BUS_CHECKS, ids=lambda check: check.__name__)
    async def test_my_bridge(check):
        await check(MyBridge())

Each check gets a fresh, open bus and closes it. It raises ``AssertionError`` where a promise is
broken, and its name is that promise.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

from atlas.core.event_bus import EventBus, HandlerFailed
from atlas.core.messages import Command, Event, message
from atlas.errors import BusClosedError, NoResponderError, WaitTimeoutError

__all__ = ["BUS_CHECKS", "check_bus"]

_SECONDS = 5.0  # far more than any check needs; only a broken bus waits this long


@message("atlas.testing.happened")
class Happened(Event):
    """Something happened, the ``number``-th time."""

    number: int = 0


@message("atlas.testing.followed")
class Followed(Event):
    """Something followed from something else."""

    number: int = 0


@message("atlas.testing.asked")
class Asked(Command[int]):
    """Somebody wants to know the double of a number."""

    number: int


async def plain_handlers_have_run_when_publish_returns(bus: EventBus) -> None:
    """Publish to a plain handler."""
    seen: list[int] = []
    async with bus:
        bus.subscribe(Happened, lambda event: seen.append(event.number))
        bus.publish(Happened(number=1))
        assert seen == [1], f"the handler had seen {seen} when publish returned"


async def async_handlers_have_run_when_the_receipt_is_awaited(bus: EventBus) -> None:
    """Publish to an async handler."""
    seen: list[int] = []

    async def handle(event: Happened) -> None:
        await asyncio.sleep(0)
        seen.append(event.number)

    async with bus:
        bus.subscribe(Happened, handle)
        receipt = await bus.publish(Happened(number=1))
        assert seen == [1], f"the handler had seen {seen} when the receipt was done"
        assert receipt.done, "the receipt awaited was not done"


async def higher_priority_comes_first_then_the_order_subscribed(bus: EventBus) -> None:
    """Subscribe in another order than by priority."""
    seen: list[str] = []
    async with bus:
        bus.subscribe(Happened, lambda _: seen.append("first"))
        bus.subscribe(Happened, lambda _: seen.append("second"))
        bus.subscribe(Happened, lambda _: seen.append("urgent"), priority=1)
        bus.publish(Happened())
        assert seen == ["urgent", "first", "second"], f"the order was {seen}"


async def a_failing_handler_stops_nobody_and_is_told(bus: EventBus) -> None:
    """Fail between two handlers."""
    seen: list[str] = []
    failures: list[HandlerFailed] = []

    def fail(_: Happened) -> None:
        raise ValueError("on purpose")

    async with bus:
        bus.subscribe(HandlerFailed, failures.append)
        bus.subscribe(Happened, lambda _: seen.append("before"))
        bus.subscribe(Happened, fail)
        bus.subscribe(Happened, lambda _: seen.append("after"))
        receipt = bus.publish(Happened())
        assert seen == ["before", "after"], f"only {seen} ran"
        assert [str(error) for error in receipt.errors] == ["on purpose"]
        assert [failure.error for failure in failures] == ["on purpose"]
        assert failures[0].meta.causation == receipt.message.meta.id


async def messages_published_in_handlers_are_linked_to_their_cause(bus: EventBus) -> None:
    """Publish in a plain and in an async handler."""
    followed: list[Followed] = []

    async def handle(event: Happened) -> None:
        await asyncio.sleep(0)
        bus.publish(Followed(number=2))

    async with bus:
        bus.subscribe(Followed, followed.append)
        bus.subscribe(Happened, lambda _: bus.publish(Followed(number=1)))
        bus.subscribe(Happened, handle)
        cause = (await bus.publish(Happened(), run="run-1")).message
        assert [event.number for event in followed] == [1, 2]
        for event in followed:
            assert event.meta.causation == cause.meta.id
            assert event.meta.correlation == cause.meta.correlation
            assert event.meta.run == "run-1"


async def each_subscription_sees_the_order_of_each_publisher(bus: EventBus) -> None:
    """Publish from two threads to a handler that waits in between."""
    seen: list[tuple[int, int]] = []

    async def handle(event: Happened) -> None:
        await asyncio.sleep(0)
        seen.append(divmod(event.number, 1000))

    def publish(publisher: int) -> None:
        for number in range(50):
            bus.publish(Happened(number=publisher * 1000 + number))

    async with bus:
        bus.subscribe(Happened, handle)
        threads = [threading.Thread(target=publish, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
        await bus.drain(_SECONDS)
        for publisher in (1, 2):
            order = [number for by, number in seen if by == publisher]
            assert order == list(range(50)), f"publisher {publisher} was seen as {order}"


async def messages_may_be_published_without_a_loop(bus: EventBus) -> None:
    """Publish from a thread to an async handler that was subscribed there too."""
    seen: list[int] = []

    async def handle(event: Happened) -> None:
        seen.append(event.number)

    def thread() -> None:
        bus.subscribe(Happened, handle)
        bus.publish(Happened(number=1)).wait(_SECONDS)

    async with bus:
        await asyncio.to_thread(thread)
        assert seen == [1], f"the handler had seen {seen} when the wait was over"


async def a_closed_subscription_receives_nothing_more(bus: EventBus) -> None:
    """Close a subscription between two messages."""
    seen: list[int] = []
    async with bus:
        with bus.subscribe(Happened, lambda event: seen.append(event.number)):
            bus.publish(Happened(number=1))
        bus.publish(Happened(number=2))
        assert seen == [1], f"the handler had seen {seen}"


async def patterns_select_by_name(bus: EventBus) -> None:
    """Subscribe by one segment and by any number of them."""
    seen: list[str] = []
    async with bus:
        bus.subscribe("atlas.testing.*", lambda _: seen.append("*"))
        bus.subscribe("atlas.**", lambda _: seen.append("**"))
        bus.subscribe("atlas.*", lambda _: seen.append("too short"))
        bus.publish(Happened())
        assert seen == ["*", "**"], f"{seen} received it"


async def a_request_is_answered_or_refused_or_times_out(bus: EventBus) -> None:
    """Ask nobody, somebody silent, and somebody who answers."""
    async with bus:
        try:
            await bus.request(Asked(number=1), timeout=_SECONDS)
        except NoResponderError:
            pass
        else:
            raise AssertionError("a request that nobody can answer was not refused")

        with bus.subscribe(Asked, lambda _: None):
            try:
                await bus.request(Asked(number=1), timeout=0)
            except WaitTimeoutError:
                pass
            else:
                raise AssertionError("a request that nobody answered did not time out")

        bus.subscribe(Asked, lambda asked: bus.reply(asked, asked.number * 2))
        answer = await bus.request(Asked(number=21), timeout=_SECONDS)
        assert answer == 42, f"the answer was {answer}"


async def a_subscription_for_once_receives_one_message(bus: EventBus) -> None:
    """Publish twice to a handler that wants one, and to one that wants one that fits."""
    seen: list[int] = []
    fitting: list[int] = []
    async with bus:
        bus.subscribe(Happened, lambda event: seen.append(event.number), once=True)
        bus.subscribe(
            Happened,
            lambda event: fitting.append(event.number),
            once=True,
            where=lambda event: event.number > 1,
        )
        for number in (1, 2, 3):
            bus.publish(Happened(number=number))
        assert seen == [1], f"the handler of the first saw {seen}"
        assert fitting == [2], f"the handler of the first that fits saw {fitting}"


async def a_stream_yields_in_order_and_ends_with_the_bus(bus: EventBus) -> None:
    """Read a stream while messages are published, then close the bus."""
    seen: list[int] = []
    async with bus.stream(Happened) as stream:
        for number in range(3):
            bus.publish(Happened(number=number))
        async with asyncio.timeout(_SECONDS):
            while len(seen) < 3:
                seen.append((await anext(stream)).number)
            await bus.aclose(_SECONDS)
            left = [event async for event in stream]
        assert seen == [0, 1, 2], f"the stream yielded {seen}"
        assert left == [], f"the stream of a closed bus yielded {left}"


async def closing_gently_lets_handlers_end(bus: EventBus) -> None:
    """Close a bus whose handler is suspended."""
    seen: list[int] = []

    async def handle(event: Happened) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        seen.append(event.number)

    bus.subscribe(Happened, handle)
    bus.publish(Happened(number=1))
    bus.publish(Happened(number=2))
    await bus.aclose(_SECONDS)
    assert seen == [1, 2], f"the handler had ended for {seen} when the bus was closed"


async def a_closed_bus_takes_no_messages(bus: EventBus) -> None:
    """Publish after the end."""
    await bus.aclose()
    try:
        bus.publish(Happened())
    except BusClosedError:
        return
    raise AssertionError("a closed bus accepted a message")


BUS_CHECKS: tuple[Callable[[EventBus], Awaitable[None]], ...] = (
    plain_handlers_have_run_when_publish_returns,
    async_handlers_have_run_when_the_receipt_is_awaited,
    higher_priority_comes_first_then_the_order_subscribed,
    a_failing_handler_stops_nobody_and_is_told,
    messages_published_in_handlers_are_linked_to_their_cause,
    each_subscription_sees_the_order_of_each_publisher,
    messages_may_be_published_without_a_loop,
    a_closed_subscription_receives_nothing_more,
    patterns_select_by_name,
    a_request_is_answered_or_refused_or_times_out,
    a_subscription_for_once_receives_one_message,
    a_stream_yields_in_order_and_ends_with_the_bus,
    closing_gently_lets_handlers_end,
    a_closed_bus_takes_no_messages,
)
"""All checks; each takes a fresh bus."""


async def check_bus(make_bus: Callable[[], EventBus]) -> None:
    """Run all checks, each on a bus of its own.

    Args:
        make_bus: Returns a fresh, open bus.

    Raises:
        AssertionError: A promise is broken; the text names it.
    """
    for check in BUS_CHECKS:
        try:
            await asyncio.wait_for(check(make_bus()), 4 * _SECONDS)
        except (AssertionError, TimeoutError) as error:
            promise = getattr(check, "__name__", repr(check)).replace("_", " ")
            raise AssertionError(f"Broken promise: {promise}. {error}") from error
