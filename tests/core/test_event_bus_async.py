"""The event bus with loops: lanes, receipts, streams, waiting, asking, cancelling, ending."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import functools
import random
import threading
from unittest.mock import AsyncMock

import pytest

from atlas.core.event_bus import EventBus, HandlerFailed
from atlas.core.messages import Command, Event, message
from atlas.errors import (
    BufferOverflowError,
    BusClosedError,
    BusError,
    HandlersFailedError,
    NoResponderError,
    RecursionLimitError,
    SubscriptionError,
    WaitTimeoutError,
)
from atlas.testing import capture


@message("job.begun")
class Begun(Event):
    number: int = 0


@message("job.done")
class Done(Event):
    number: int = 0


@message("job.token")
class Token(Event):
    text: str = ""


@message("price.asked")
class PriceAsked(Command[float]):
    item: str = "tea"


@message("price.told")
class PriceTold(Event):
    price: float


@message("price.quoted")
class QuoteAsked(Command[PriceTold]):
    item: str = "tea"


@pytest.fixture
async def bus():
    made = EventBus()
    yield made
    await made.aclose(timeout=1)


@pytest.fixture
def seen():
    return []


async def turns(count: int = 5) -> None:
    """Let whatever is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- awaiting -------------------------------------------------------------------------------------


async def test_awaiting_the_receipt_means_every_handler_is_through(bus, seen):
    async def quick(event: Begun) -> None:
        seen.append("quick")

    async def slow(event: Begun) -> None:
        await turns()
        seen.append("slow")

    bus.subscribe(Begun, slow)
    bus.subscribe(Begun, quick)
    bus.subscribe(Begun, lambda _: seen.append("plain"))
    receipt = bus.publish(Begun())
    assert seen == ["plain"]
    assert not receipt.done
    assert await receipt is receipt

    assert receipt.done
    assert sorted(seen) == ["plain", "quick", "slow"]


async def test_awaited_handlers_start_by_priority_in_the_awaiting_task(bus, seen):
    def handler(name):
        async def handle(event: Begun) -> None:
            seen.append((name, asyncio.current_task()))

        return handle

    bus.subscribe(Begun, handler("2nd"))
    bus.subscribe(Begun, handler("1st"), priority=1)
    bus.subscribe(Begun, handler("3rd"))
    await bus.publish(Begun())

    me = asyncio.current_task()
    assert seen == [("1st", me), ("2nd", me), ("3rd", me)]


async def test_a_handler_that_suspends_does_not_hold_up_the_next_subscription(bus, seen):
    gate = asyncio.Event()

    async def first(event: Begun) -> None:
        await gate.wait()
        seen.append("first")

    async def second(event: Begun) -> None:
        seen.append("second")
        gate.set()  # were the second to wait for the first, neither would ever end

    bus.subscribe(Begun, first)
    bus.subscribe(Begun, second)
    await asyncio.wait_for(bus.publish(Begun()), 5)

    assert seen == ["second", "first"]


async def test_a_subscription_handles_one_message_at_a_time_in_order(bus, seen):
    async def handle(event: Begun) -> None:
        seen.append(("in", event.number))
        await turns(3 - event.number)
        seen.append(("out", event.number))

    bus.subscribe(Begun, handle)
    for number in range(3):
        bus.publish(Begun(number=number))
    await bus.drain(5)

    assert seen == [(step, number) for number in range(3) for step in ("in", "out")]


async def test_awaiting_the_last_receipt_runs_what_was_published_before_it_first(bus, seen):
    async def handle(event: Begun) -> None:
        seen.append(event.number)

    bus.subscribe(Begun, handle)
    for number in range(3):
        bus.publish(Begun(number=number))
    await bus.publish(Begun(number=3))

    assert seen == [0, 1, 2, 3]


async def test_a_receipt_can_be_awaited_by_many_and_again(bus, seen):
    async def handle(event: Begun) -> None:
        await turns()
        seen.append(event.number)

    bus.subscribe(Begun, handle)
    receipt = bus.publish(Begun())

    async def wait() -> bool:
        return (await receipt).done

    assert await asyncio.gather(wait(), wait(), wait()) == [True, True, True]
    await receipt
    assert seen == [0]


async def test_a_failing_async_handler_does_not_stop_the_others(bus, seen):
    failures = []

    async def fail(event: Begun) -> None:
        raise ValueError("at once")

    async def fail_later(event: Begun) -> None:
        await turns()
        raise ValueError("later")

    async def fine(event: Begun) -> None:
        seen.append(event.number)

    bus.subscribe(HandlerFailed, failures.append)
    for handler in (fail, fine, fail_later, fine, fail):
        bus.subscribe(Begun, handler)
    receipt = await bus.publish(Begun())

    assert seen == [0, 0]
    assert sorted(str(error) for error in receipt.errors) == ["at once", "at once", "later"]
    assert len(failures) == 3
    assert {failure.meta.causation for failure in failures} == {receipt.message.meta.id}
    with pytest.raises(HandlersFailedError, match="3 handler"):
        receipt.raise_for_errors()


async def test_plain_and_async_failures_show_in_one_receipt(bus, seen):
    async def fail(event: Begun) -> None:
        raise ValueError("async")

    def fail_plainly(event: Begun) -> None:
        raise ValueError("plain")

    bus.subscribe(HandlerFailed, seen.append)
    bus.subscribe(Begun, fail)
    bus.subscribe(Begun, fail_plainly)
    receipt = await bus.publish(Begun())

    assert [str(error) for error in receipt.errors] == ["plain", "async"]


async def test_a_strict_bus_raises_where_the_receipt_is_awaited():
    async def fail(event: Begun) -> None:
        raise ValueError("on purpose")

    async with EventBus(strict=True) as bus:
        bus.subscribe(Begun, fail)
        with pytest.raises(HandlersFailedError, match="on purpose"):
            await bus.publish(Begun())


async def test_async_callables_of_all_kinds_are_handlers(bus, seen):
    class Handler:
        async def __call__(self, event: Begun) -> None:
            seen.append("object")

        async def method(self, event: Begun) -> None:
            seen.append("method")

    async def two(name: str, event: Begun) -> None:
        seen.append(name)

    bus.subscribe(Begun, Handler())
    bus.subscribe(Begun, Handler().method)
    bus.subscribe(Begun, functools.partial(two, "partial"))
    await bus.publish(Begun())

    assert seen == ["object", "method", "partial"]


@pytest.mark.parametrize("subscribers", [1, 3])
async def test_what_is_only_marked_as_asynchronous_is_awaited(bus, seen, subscribers):
    class Later:
        """Something to await that is no coroutine, as compiled code returns."""

        def __init__(self, event: Begun) -> None:
            self.event = event

        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            seen.append(self.event.number)

    def compiled(event: Begun) -> Later:
        return Later(event)

    compiled._is_coroutine = asyncio.coroutines._is_coroutine
    mocked = AsyncMock(side_effect=lambda event: seen.append(event.number))
    for _ in range(subscribers):
        bus.subscribe(Begun, compiled)
        bus.subscribe(Begun, mocked)
    receipt = await bus.publish(Begun(number=7))

    assert receipt.errors == ()
    assert seen == [7, 7] * subscribers


async def test_async_handlers_take_predicates_and_once(bus, seen):
    async def handle(event: Begun) -> None:
        seen.append(event.number)

    bus.subscribe(Begun, handle, where=lambda event: event.number > 1, once=True)
    for number in range(5):
        bus.publish(Begun(number=number))
    await bus.drain(5)
    await bus.publish(Begun(number=9))

    assert seen == [2]


# -- causes and contexts --------------------------------------------------------------------------


async def test_what_async_handlers_and_their_tasks_publish_is_linked(bus):
    async def handle(event: Begun) -> None:
        await turns()
        bus.publish(Done(number=1))
        await asyncio.create_task(later())

    async def later() -> None:
        bus.publish(Done(number=2))

    bus.subscribe(Begun, handle)
    with capture(bus) as record:
        cause = (await bus.publish(Begun(), run="r1")).message
        bus.publish(Done(number=3))

    record.assert_caused(cause, Done(number=1), Done(number=2))
    assert [one.meta.run for one in record] == ["r1", "r1", "r1", None]


async def test_tasks_started_by_plain_handlers_are_linked(bus):
    tasks = []

    async def later() -> None:
        bus.publish(Done())

    bus.subscribe(Begun, lambda _: tasks.append(asyncio.create_task(later())))
    with capture(bus) as record:
        cause = bus.publish(Begun()).message
        await tasks[0]

    record.assert_caused(cause, Done)


async def test_async_handlers_see_the_publishers_context_variables(bus, seen):
    request = contextvars.ContextVar("request", default="none")

    async def handle(event: Begun) -> None:
        await turns()
        seen.append(request.get())
        request.set("changed by the handler")

    async def publish(name: str) -> None:
        request.set(name)
        bus.publish(Begun())
        await turns()

    bus.subscribe(Begun, handle)
    await asyncio.gather(publish("one"), publish("two"))
    await bus.drain(5)

    assert seen == ["one", "two"]
    assert request.get() == "none"


async def test_an_endless_chain_of_async_handlers_is_no_recursion(bus, seen):
    async def handle(event: Begun) -> None:
        seen.append(event.number)
        if event.number < 500:
            bus.publish(Begun(number=event.number + 1))

    bus.subscribe(Begun, handle)
    receipt = bus.publish(Begun())
    await bus.drain(5)

    assert receipt.errors == ()
    assert len(seen) == 501


async def test_tasks_that_start_tasks_are_no_recursion(bus, seen):
    done = asyncio.Event()
    tasks = set()

    async def again(number: int) -> None:
        seen.extend(bus.publish(Begun(number=number)).errors)

    def handle(event: Begun) -> None:
        if event.number == 300:
            done.set()
            return
        task = asyncio.create_task(again(event.number + 1))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    bus.subscribe(Begun, handle)
    bus.publish(Begun())
    await asyncio.wait_for(done.wait(), 5)

    assert seen == []


async def test_async_handlers_that_await_each_other_without_end_are_failed(seen):
    bus = EventBus(max_depth=10)

    async def handle(event: Begun) -> None:
        await bus.publish(Begun(number=event.number + 1))

    bus.subscribe(HandlerFailed, seen.append)
    bus.subscribe(Begun, handle)
    with pytest.raises(RecursionLimitError, match="job.begun -> job.begun"):
        await asyncio.wait_for(bus.publish(Begun()), 5)
    await bus.aclose()


# -- awaiting inside handlers ---------------------------------------------------------------------


async def test_a_handler_may_await_the_same_message_class_without_deadlock(bus, seen):
    async def handle(event: Begun) -> None:
        if event.number < 3:
            await bus.publish(Begun(number=event.number + 1))
        seen.append(event.number)

    bus.subscribe(Begun, handle)
    await asyncio.wait_for(bus.publish(Begun()), 5)

    assert seen == [3, 2, 1, 0]


@pytest.mark.parametrize("in_a_task", [False, True])
async def test_handlers_that_await_each_other_in_a_circle_do_not_deadlock(bus, seen, in_a_task):
    async def publish() -> None:
        await bus.publish(Done())

    async def begun(event: Begun) -> None:
        if event.number == 0:
            await (asyncio.create_task(publish()) if in_a_task else publish())
        seen.append(("begun", event.number))

    async def done(event: Done) -> None:
        await turns()
        await bus.publish(Begun(number=1))
        seen.append(("done", event.number))

    bus.subscribe(Begun, begun)
    bus.subscribe(Done, done)
    await asyncio.wait_for(bus.publish(Begun()), 5)

    assert seen == [("begun", 1), ("done", 0), ("begun", 0)]


async def test_a_circle_closed_by_a_late_await_does_not_deadlock(bus, seen):
    waiting = asyncio.Event()

    async def begun(event: Begun) -> None:
        if event.number == 0:
            receipt = bus.publish(Done())
            await waiting.wait()
            await turns()
            await receipt
        seen.append(("begun", event.number))

    async def done(event: Done) -> None:
        receipt = bus.publish(Begun(number=1))
        waiting.set()
        await receipt
        seen.append(("done", event.number))

    bus.subscribe(Begun, begun)
    bus.subscribe(Done, done)
    await asyncio.wait_for(bus.publish(Begun()), 5)

    assert seen == [("begun", 1), ("done", 0), ("begun", 0)]


async def test_a_circle_across_two_loops_does_not_deadlock(seen):
    bus = EventBus()

    async def begun(event: Begun) -> None:
        if event.number == 0:
            await bus.publish(Done())
        seen.append(("begun", event.number))

    async def done(event: Done) -> None:
        await bus.publish(Begun(number=1))
        seen.append(("done", event.number))

    def elsewhere() -> None:
        bus.subscribe(Begun, begun)  # without a loop: on the publisher's, or the bus's own

    await asyncio.to_thread(elsewhere)
    bus.subscribe(Done, done)
    await asyncio.wait_for(asyncio.to_thread(lambda: bus.publish(Begun()).wait(5)), 5)
    await bus.aclose(5)

    assert ("done", 0) in seen
    assert seen[-1] == ("begun", 0)


async def test_what_a_handler_awaits_runs_in_its_task_and_before_it_goes_on(bus, seen):
    async def begun(event: Begun) -> None:
        for number in range(2):
            receipt = bus.publish(Done(number=number))
            assert not receipt.done
            await receipt
            seen.append(("after", number, receipt.done))
        assert bus.publish(Token()).message.meta.causation == event.meta.id

    async def done(event: Done) -> None:
        seen.append(("done", event.number, asyncio.current_task() is awaiting))
        inner = await bus.publish(Token())
        assert inner.message.meta.causation == event.meta.id

    async def token(event: Token) -> None:
        seen.append(("token", asyncio.current_task() is awaiting))

    bus.subscribe(Begun, begun)
    bus.subscribe(Done, done)
    subscribed = bus.subscribe(Token, token)
    awaiting = asyncio.current_task()
    await bus.publish(Begun())
    subscribed.close()

    assert seen == [
        step
        for number in range(2)
        for step in [("done", number, True), ("token", True), ("after", number, True)]
    ]


async def test_one_that_suspends_inside_an_awaited_message_holds_up_only_those_who_wait(bus, seen):
    go_on = asyncio.Event()

    async def begun(event: Begun) -> None:
        await bus.publish(Done())
        seen.append("begun")

    async def suspended(event: Done) -> None:
        await go_on.wait()
        seen.append("suspended")

    async def beside(event: Begun | Done) -> None:
        seen.append(f"beside on {type(event).__name__}")

    async def other_beside(event: Done) -> None:
        seen.append("other beside")

    bus.subscribe(Begun, begun)
    bus.subscribe(Begun, beside)
    bus.subscribe(Done, suspended)
    bus.subscribe(Done, other_beside)
    receipt = bus.publish(Begun())
    waiting = asyncio.ensure_future(receipt)
    await turns()

    assert sorted(seen) == ["beside on Begun", "other beside"]
    assert not receipt.done

    go_on.set()
    await waiting

    assert seen[2:] == ["suspended", "begun"]


async def test_a_handler_of_two_messages_gets_the_outer_one_before_what_was_awaited_inside(
    bus, seen
):
    async def first(event: Begun) -> None:
        await bus.publish(Done())

    async def of_both(event: Begun | Done) -> None:
        seen.append(type(event).__name__)

    bus.subscribe(Begun, first)
    bus.subscribe((Begun, Done), of_both)
    await bus.publish(Begun())

    assert seen == ["Begun", "Done"]


async def test_a_handler_that_was_suspended_awaits_what_idle_handlers_do_at_once(bus, seen):
    async def begun(event: Begun) -> None:
        await turns()
        await bus.publish(Done())
        seen.append("begun")

    async def done(event: Done) -> None:
        seen.append(asyncio.current_task() is awaiting)

    bus.subscribe(Begun, begun)
    bus.subscribe(Done, done)
    awaiting = asyncio.current_task()
    await bus.publish(Begun())

    assert seen == [True, "begun"]


async def test_cancelling_who_awaits_inside_a_handler_cancels_what_runs_there_and_no_other(
    bus, seen
):
    async def begun(event: Begun) -> None:
        try:
            await bus.publish(Done())
        except asyncio.CancelledError:
            seen.append("begun cancelled")
            raise

    async def suspended(event: Done) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("suspended cancelled")
            raise

    async def beside(event: Begun | Done) -> None:
        await turns()
        seen.append(f"beside on {type(event).__name__}")

    bus.subscribe(Begun, begun)
    bus.subscribe(Done, suspended)
    bus.subscribe(Done, beside)
    task = asyncio.ensure_future(bus.publish(Begun()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await bus.drain(5)

    assert seen == ["suspended cancelled", "begun cancelled", "beside on Done"]


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="they came with 3.12")
async def test_an_eager_task_may_outlast_the_handler_that_started_it(bus, seen):
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
    go_on = asyncio.Event()
    tasks = []

    async def publish() -> None:
        await bus.publish(Done())

    async def begun(event: Begun) -> None:
        tasks.append(asyncio.get_running_loop().create_task(publish()))
        seen.append("begun")

    async def done(event: Done) -> None:
        await go_on.wait()
        seen.append("done")

    async def last(event: Begun | Done) -> None:
        seen.append(f"last on {type(event).__name__}")

    bus.subscribe(Begun, begun)
    bus.subscribe(Done, done)
    bus.subscribe(Done, last)
    await bus.publish(Begun())

    assert "begun" in seen
    assert "done" not in seen

    go_on.set()
    await asyncio.gather(*tasks)
    await bus.drain(5)

    assert sorted(seen) == ["begun", "done", "last on Done"]


async def test_the_limit_counts_handlers_that_await_each_other_suspended_or_not():
    bus = EventBus(max_depth=10)
    deepest = 0

    async def handle(event: Begun) -> None:
        nonlocal deepest
        deepest = max(deepest, event.number)
        if event.number % 3 == 0:
            await asyncio.sleep(0)
        await bus.publish(other(event)(number=event.number + 1))

    def other(event: Begun | Done) -> type[Begun | Done]:
        return Done if isinstance(event, Begun) else Begun

    bus.subscribe(Begun, handle)
    bus.subscribe(Done, handle)
    with pytest.raises(RecursionLimitError):
        await asyncio.wait_for(bus.publish(Begun()), 5)
    await bus.aclose()

    assert deepest == 10


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_handlers_publish_await_and_start_each_message_arrives_once(seed):
    """Handlers with random scripts: every publication reaches each of its subscribers, once."""
    rnd = random.Random(seed)
    bus = EventBus(history=0)
    classes = [Begun, Done, Token]
    subscribers = dict.fromkeys(classes, 0)
    expected: collections.Counter[str] = collections.Counter()
    handled: collections.Counter[str] = collections.Counter()
    tasks = []

    def publish(cls: type[Event], cause: Event | None):
        receipt = bus.publish(cls())
        meta = receipt.message.meta
        assert meta.causation == (None if cause is None else cause.meta.id)
        expected[meta.id] = subscribers[cls]
        return receipt

    async def awaited(cls: type[Event], cause: Event | None) -> None:
        await publish(cls, cause)

    async def act(action: str, cls: type[Event], event: Event) -> None:
        match action:
            case "suspend":
                await turns()
            case _ if len(expected) > 40:
                return
            case "publish":
                publish(cls, event)
            case "await":
                assert (await publish(cls, event)).done
            case "await later":
                receipt = publish(cls, event)
                await asyncio.sleep(0)
                await receipt
            case "gather":
                await asyncio.gather(awaited(cls, event), awaited(rnd.choice(classes), event))
            case _:
                tasks.append(asyncio.create_task(awaited(cls, event)))

    def handler(script):
        async def handle(event: Event) -> None:
            handled[event.meta.id] += 1
            for action, cls in script:
                await act(action, cls, event)

        return handle

    actions = ["suspend", "publish", "await", "await", "await later", "gather", "task"]
    for _ in range(rnd.randrange(2, 6)):
        script = [(rnd.choice(actions), rnd.choice(classes)) for _ in range(rnd.randrange(3))]
        selected = tuple(rnd.sample(classes, rnd.randrange(1, 3)))
        bus.subscribe(selected, handler(script), priority=rnd.randrange(3))
        for cls in selected:
            subscribers[cls] += 1
    async with asyncio.timeout(20):
        await asyncio.gather(*(awaited(rnd.choice(classes), None) for _ in range(3)))
        await bus.drain()
        while tasks:
            await tasks.pop()
            await bus.drain()
    await bus.aclose(5)

    assert handled == +expected


async def test_wait_on_the_loop_that_must_run_the_handlers_is_refused(bus, seen):
    async def handle(event: Begun) -> None:
        seen.append(event)

    bus.subscribe(Begun, handle)
    receipt = bus.publish(Begun())
    with pytest.raises(BusError, match="Use `await receipt` there"):
        receipt.wait(1)
    await receipt

    assert len(seen) == 1


# -- cancelling -----------------------------------------------------------------------------------


async def test_cancelling_the_awaiter_cancels_the_handler_it_runs_and_no_other(bus, seen):
    entered = asyncio.Event()

    async def first(event: Begun) -> None:
        entered.set()
        await asyncio.Event().wait()

    async def second(event: Begun) -> None:
        seen.append(event.number)

    bus.subscribe(HandlerFailed, lambda failure: seen.append(failure.error_type))
    bus.subscribe(Begun, first)
    bus.subscribe(Begun, second)
    receipt = bus.publish(Begun())
    task = asyncio.ensure_future(receipt)
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await bus.drain(5)

    assert receipt.done
    assert set(seen) == {0, "asyncio.exceptions.CancelledError"}
    assert [type(error) for error in receipt.errors] == [asyncio.CancelledError]


async def test_cancelling_the_awaiter_loses_nothing_of_what_others_published(bus, seen):
    entered = asyncio.Event()

    async def handle(event: Begun) -> None:
        if event.number == 0:
            entered.set()
            await asyncio.Event().wait()
        seen.append(event.number)

    bus.subscribe(HandlerFailed, lambda _: None)
    bus.subscribe(Begun, handle)
    task = asyncio.ensure_future(bus.publish(Begun(number=0)))
    await entered.wait()
    others = [bus.publish(Begun(number=number)) for number in (1, 2, 3)]
    task.cancel()
    for receipt in others:
        await asyncio.wait_for(receipt, 5)

    assert seen == [1, 2, 3]


async def test_cancelling_an_awaiter_that_only_waits_cancels_no_handler(bus, seen):
    gate = asyncio.Event()

    async def handle(event: Begun) -> None:
        await gate.wait()
        seen.append(event.number)

    bus.subscribe(Begun, handle)
    receipt = bus.publish(Begun())
    await turns()  # the handler has begun on its lane
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(receipt, 0.01)
    gate.set()
    await receipt

    assert seen == [0]
    assert receipt.errors == ()


async def test_the_cause_is_taken_back_when_the_awaiter_is_cancelled(bus):
    async def handle(event: Begun) -> None:
        await asyncio.Event().wait()

    bus.subscribe(HandlerFailed, lambda _: None)
    bus.subscribe(Begun, handle)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bus.publish(Begun())

    assert bus.publish(Done()).message.meta.causation is None


async def test_a_handler_that_awaits_a_cancelled_future_fails_alone(bus, seen):
    async def handle(event: Begun) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def fine(event: Begun) -> None:
        seen.append(event.number)

    bus.subscribe(HandlerFailed, lambda _: None)
    bus.subscribe(Begun, handle)
    bus.subscribe(Begun, fine)
    receipt = await bus.publish(Begun())
    unawaited = bus.publish(Begun(number=1))
    await bus.drain(5)

    assert seen == [0, 1]
    assert [type(error) for error in receipt.errors] == [asyncio.CancelledError]
    assert [type(error) for error in unawaited.errors] == [asyncio.CancelledError]


async def test_a_timeout_inside_a_handler_is_its_own(bus, seen):
    async def handle(event: Begun) -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append("timed out")

    bus.subscribe(Begun, handle)
    bus.subscribe(Begun, handle)
    receipt = await bus.publish(Begun())

    assert seen == ["timed out", "timed out"]
    assert receipt.errors == ()


# -- bounds ---------------------------------------------------------------------------------------


async def test_a_full_reliable_lane_fails_what_nobody_awaits_and_takes_what_is_awaited(bus, seen):
    gate = asyncio.Event()
    failures = []

    async def handle(event: Begun) -> None:
        await gate.wait()
        seen.append(event.number)

    bus.subscribe(HandlerFailed, failures.append)
    bus.subscribe(Begun, handle, capacity=3)
    first = bus.publish(Begun(number=0))
    await turns()  # it is being handled: the lane is empty again
    receipts = [bus.publish(Begun(number=number)) for number in range(1, 6)]

    async def publish_and_await() -> None:
        await bus.publish(Begun(number=6))

    awaited = asyncio.create_task(publish_and_await())
    await turns()

    assert [len(receipt.errors) for receipt in receipts] == [0, 0, 0, 1, 1]
    assert isinstance(receipts[-1].errors[0], BufferOverflowError)
    assert "has 3 messages waiting, its capacity" in str(receipts[-1].errors[0])
    assert receipts[-1].done
    assert len(failures) == 2
    gate.set()
    await awaited
    assert first.done
    assert seen == [0, 1, 2, 3, 6]


# -- observers ------------------------------------------------------------------------------------


async def test_an_observer_never_slows_the_publisher(bus, seen):
    gate = asyncio.Event()

    async def screen(event: Begun) -> None:
        await gate.wait()
        seen.append(event.number)

    subscription = bus.subscribe(Begun, screen, mode="observer")
    for number in range(3):
        await bus.publish(Begun(number=number))
    await turns()

    assert seen == []
    assert subscription.metrics.waiting == 2
    gate.set()
    await bus.drain(5)
    assert seen == [0, 1, 2]


def merge_tokens(older, newer):
    if isinstance(older, Token) and isinstance(newer, Token):
        return Token(text=older.text + newer.text)
    return None


async def test_an_observer_closed_while_a_message_is_published_keeps_nothing_busy(seen):
    def close_it(event: Event) -> Event:
        subscription.close()
        return event

    async def observe(event: Begun) -> None:
        seen.append(event)

    async with EventBus(middleware=[close_it]) as bus:
        subscription = bus.subscribe(Begun, observe, mode="observer")
        bus.publish(Begun())
        await bus.drain(2)

        assert (seen, subscription.metrics.waiting) == ([], 0)


async def test_a_full_observer_merges_what_merges_and_never_drops_the_rest(bus, seen):
    gate = asyncio.Event()

    async def screen(event: Event) -> None:
        await gate.wait()
        seen.append(event)

    subscription = bus.subscribe(
        (Begun, Token, Done), screen, mode="observer", capacity=2, merge=merge_tokens
    )
    bus.publish(Begun())
    await turns()
    for letter in "abcdef":
        bus.publish(Token(text=letter))
    bus.publish(Done())
    bus.publish(Done(number=1))
    gate.set()
    await bus.drain(5)

    assert seen == [Begun(), Token(text="a"), Token(text="bcdef"), Done(), Done(number=1)]
    assert (subscription.metrics.merged, subscription.metrics.dropped) == (4, 0)


@pytest.mark.parametrize(
    ("overflow", "kept"), [("drop_oldest", [0, 4, 5]), ("drop_newest", [0, 1, 2])]
)
async def test_a_full_observer_drops_by_its_policy(bus, seen, overflow, kept):
    gate = asyncio.Event()

    async def screen(event: Begun) -> None:
        await gate.wait()
        seen.append(event.number)

    subscription = bus.subscribe(Begun, screen, mode="observer", capacity=2, overflow=overflow)
    bus.publish(Begun())
    await turns()
    for number in range(1, 6):
        bus.publish(Begun(number=number))
    gate.set()
    await bus.drain(5)

    assert seen == kept
    assert subscription.metrics.dropped == 3


async def test_an_observers_merge_may_publish_to_the_same_observer(bus, seen):
    gate = threading.Event()

    def merge(older, newer):
        if newer.text == "c":
            bus.publish(Token(text="from merge"))

    def show(event: Token) -> None:
        gate.wait(5)
        seen.append(event.text)

    bus.subscribe(Token, show, mode="observer", capacity=1, merge=merge)
    for letter in "abcd":
        bus.publish(Token(text=letter))
    gate.set()
    await bus.drain(5)

    assert sorted(seen) == ["a", "b", "c", "d", "from merge"]


async def test_only_what_is_droppable_is_dropped(bus, seen):
    gate = asyncio.Event()

    async def screen(event: Event) -> None:
        await gate.wait()
        seen.append(event)

    bus.subscribe(
        Event,
        screen,
        mode="observer",
        capacity=2,
        overflow="drop_oldest",
        droppable=lambda event: isinstance(event, Token),
    )
    bus.publish(Begun())
    await turns()
    for event in (Token(text="a"), Done(number=1), Token(text="b"), Done(number=2), Done(number=3)):
        bus.publish(event)
    gate.set()
    await bus.drain(5)

    assert seen == [Begun(), Done(number=1), Done(number=2), Done(number=3)]


async def test_what_a_closing_bus_no_longer_shows_an_observer_counts_as_dropped(seen):
    begun = asyncio.Event()

    async def show(event: Event) -> None:
        begun.set()
        await asyncio.sleep(60)

    bus = EventBus()
    busy = bus.subscribe(Begun, show, mode="observer")
    idle = bus.subscribe(Done, show, mode="observer")
    for number in range(5):
        bus.publish(Begun(number=number))
    await asyncio.wait_for(begun.wait(), 5)
    bus.publish(Done())
    bus.publish(Done())
    bus.close()
    await turns()

    assert busy.metrics.dropped == 4  # the one it was at was cancelled, which is told as a failure
    assert busy.metrics.failed == 1
    assert idle.metrics.dropped == 2


async def test_a_plain_observer_runs_on_the_buss_own_loop(bus, seen):
    bus.subscribe(Begun, lambda _: seen.append(threading.current_thread().name), mode="observer")
    bus.publish(Begun())
    await bus.drain(5)

    assert seen == ["atlas-bus"]


async def test_a_failing_observer_is_told_like_any_handler(bus, seen):
    async def screen(event: Begun) -> None:
        raise ValueError("no screen")

    bus.subscribe(HandlerFailed, seen.append)
    bus.subscribe(Begun, screen, mode="observer")
    receipt = bus.publish(Begun())
    await bus.drain(5)

    assert [failure.error for failure in seen] == ["no screen"]
    assert seen[0].meta.causation == receipt.message.meta.id
    assert receipt.errors == ()


# -- streams --------------------------------------------------------------------------------------


async def test_a_stream_yields_what_is_published_while_it_is_open(bus, seen):
    bus.publish(Begun(number=-1))
    async with bus.stream("job.*", where=lambda event: event.number != 1) as events:
        for number in range(3):
            bus.publish(Begun(number=number))
        bus.publish(Done(number=3))
        async for event in events:
            seen.append(event)
            if isinstance(event, Done):
                break

    assert seen == [Begun(number=0), Begun(number=2), Done(number=3)]


async def test_several_tasks_may_read_one_stream_and_none_is_left_hanging(bus):
    read: list[int] = []

    async def reader(events) -> None:
        async for event in events:
            read.append(event.number)

    async with bus.stream(Begun) as events:
        readers = [asyncio.ensure_future(reader(events)) for _ in range(3)]
        await asyncio.sleep(0)
        for number in range(9):
            await bus.publish(Begun(number=number))
            await asyncio.sleep(0)
    await asyncio.wait_for(asyncio.gather(*readers), 5)

    assert sorted(read) == list(range(9))


async def test_a_stream_that_was_not_entered_says_so(bus):
    with pytest.raises(BusError, match="async with"):
        await anext(bus.stream(Begun))


@pytest.mark.parametrize("wrong", [{"capacity": 0}, {"capacity": "many"}, {"overflow": "forget"}])
async def test_a_stream_that_makes_no_sense_is_refused_by_the_value(bus, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(SubscriptionError, match=f"{name}={value!r}"):
        bus.stream(Begun, **wrong)


async def test_a_blocking_stream_holds_up_publishers_who_await(bus):
    async with bus.stream(Begun, capacity=2) as events:
        receipts = [asyncio.ensure_future(bus.publish(Begun(number=n))) for n in range(4)]
        await turns(20)
        assert [receipt.done() for receipt in receipts] == [True, True, False, False]
        got = [(await anext(events)).number for _ in range(4)]
        await asyncio.gather(*receipts)

    assert got == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("overflow", "capacity", "kept", "dropped"),
    [
        ("drop_oldest", 2, [3, 4], 3),
        ("drop_newest", 2, [0, 1], 3),
        ("latest", 10, [4], 4),
    ],
)
async def test_a_full_stream_drops_by_its_policy(bus, overflow, capacity, kept, dropped):
    async with bus.stream(Begun, capacity=capacity, overflow=overflow) as events:
        for number in range(5):
            bus.publish(Begun(number=number))
        got = [(await anext(events)).number for _ in kept]

        assert got == kept
        assert events.dropped == dropped


async def test_a_full_stream_with_policy_error_ends_with_the_error_after_what_it_held(bus):
    got = []
    async with bus.stream(Begun, capacity=2, overflow="error") as events:
        for number in range(5):
            bus.publish(Begun(number=number))
        with pytest.raises(BufferOverflowError, match="held 2 messages, its capacity"):
            async for event in events:
                got.append(event.number)
        assert [event async for event in events] == []

    assert got == [0, 1]


async def test_a_stream_ends_when_the_bus_closes_and_after_what_it_held(seen):
    bus = EventBus()
    async with bus.stream(Begun) as events:
        reader = asyncio.ensure_future(read_all(events))
        await bus.publish(Begun(number=1))
        await bus.aclose()

        assert [event.number for event in await asyncio.wait_for(reader, 5)] == [1]


async def read_all(events):
    return [event async for event in events]


async def test_leaving_a_stream_lets_publishers_go_on(bus):
    async with bus.stream(Begun, capacity=1):
        receipts = [asyncio.ensure_future(bus.publish(Begun())) for _ in range(3)]
        await turns()

    await asyncio.wait_for(asyncio.gather(*receipts), 5)


async def test_a_stream_is_fed_from_other_threads(bus):
    async with bus.stream(Begun) as events:
        thread = threading.Thread(target=lambda: [bus.publish(Begun(number=n)) for n in range(100)])
        thread.start()
        got = [(await asyncio.wait_for(anext(events), 5)).number for _ in range(100)]
        thread.join()

    assert got == list(range(100))


# -- wait_for, request, reply ---------------------------------------------------------------------


async def test_wait_for_returns_the_next_that_fits(bus):
    loop = asyncio.get_running_loop()
    for number in range(3):
        loop.call_soon(bus.publish, Begun(number=number))
    event = await bus.wait_for(Begun, where=lambda event: event.number == 2, timeout=5)

    assert event == Begun(number=2)


async def test_wait_for_hears_other_threads(bus):
    task = asyncio.ensure_future(bus.wait_for(Begun, timeout=5))
    await turns()
    await asyncio.to_thread(bus.publish, Begun(number=7))

    assert (await task).number == 7


async def test_wait_for_times_out_and_leaves_nothing_subscribed(bus):
    with pytest.raises(WaitTimeoutError, match=r"came within 0\.01 seconds") as raised:
        await bus.wait_for(Begun, timeout=0.01)

    assert raised.value.timeout == 0.01
    assert bus.metrics == ()


async def test_wait_for_and_requests_end_when_the_bus_closes():
    bus = EventBus()
    bus.subscribe(PriceAsked, lambda _: None)
    waiting = asyncio.ensure_future(bus.wait_for(Begun))
    asking = asyncio.ensure_future(bus.request(PriceAsked()))
    await turns()
    bus.close()

    for task in (waiting, asking):
        with pytest.raises(BusClosedError):
            await asyncio.wait_for(task, 5)


async def test_a_request_is_answered_by_plain_async_and_foreign_threads(bus):
    plain = bus.subscribe(PriceAsked, lambda asked: bus.reply(asked, 1.0))
    assert await bus.request(PriceAsked(), timeout=5) == 1.0
    plain.close()

    async def answer(asked: PriceAsked) -> None:
        await turns()
        bus.reply(asked, 2.0)

    later = bus.subscribe(PriceAsked, answer)
    assert await bus.request(PriceAsked(), timeout=5) == 2.0
    later.close()

    async def elsewhere(asked: PriceAsked) -> None:
        await asyncio.to_thread(bus.reply, asked, 3.0)

    bus.subscribe(PriceAsked, elsewhere)
    assert await bus.request(PriceAsked(), timeout=5) == 3.0


async def test_an_answer_that_is_a_message_is_published_and_caused_by_the_request(bus):
    bus.subscribe(QuoteAsked, lambda asked: bus.reply(asked, PriceTold(price=2.5)))
    with capture(bus) as record:
        answer = await bus.request(QuoteAsked(), timeout=5)

    assert answer == PriceTold(price=2.5)
    record.assert_caused(record.only(QuoteAsked), PriceTold)


async def test_requests_at_once_get_each_its_own_answer(bus):
    async def answer(asked: PriceAsked) -> None:
        await turns(5 - int(asked.item))
        bus.reply(asked, float(asked.item))

    bus.subscribe(PriceAsked, answer)
    asked = [bus.request(PriceAsked(item=str(number)), timeout=5) for number in range(5)]

    assert await asyncio.gather(*asked) == [0.0, 1.0, 2.0, 3.0, 4.0]


async def test_only_the_first_answer_counts_and_late_ones_are_told_so(bus):
    told = []
    requests = []

    def answer(asked: PriceAsked) -> None:
        requests.append(asked)
        told.append(bus.reply(asked, 1.0))
        told.append(bus.reply(asked, 2.0))

    bus.subscribe(PriceAsked, answer)

    assert await bus.request(PriceAsked(), timeout=5) == 1.0
    assert told == [True, False]
    assert bus.reply(requests[0], 3.0) is False


async def test_a_request_fails_at_once_when_nobody_is_there_or_the_handler_fails(bus):
    with pytest.raises(NoResponderError, match=r"'price\.asked'"):
        await bus.request(PriceAsked())

    async def fail(asked: PriceAsked) -> None:
        await turns()
        raise ValueError("no price")

    bus.subscribe(HandlerFailed, lambda _: None)
    bus.subscribe(PriceAsked, fail)
    with pytest.raises(HandlersFailedError, match="no price"):
        await bus.request(PriceAsked(), timeout=5)


async def test_a_request_that_middleware_drops_or_refuses_fails_at_once_and_leaves_nothing():
    def drop(_: object) -> None:
        return None

    def refuse(_: object) -> None:
        raise ValueError("not today")

    for step, expected in ((drop, NoResponderError), (refuse, ValueError)):
        bus = EventBus(middleware=[step])
        bus.subscribe(PriceAsked, lambda asked, bus=bus: bus.reply(asked, 1.0))
        with pytest.raises(expected):
            await bus.request(PriceAsked())

        assert not bus._answers
        assert not bus._closers


async def test_a_request_times_out(bus):
    bus.subscribe(PriceAsked, lambda _: None)
    with pytest.raises(WaitTimeoutError, match="Nobody answered PriceAsked"):
        await bus.request(PriceAsked(), timeout=0.01)


# -- ending ---------------------------------------------------------------------------------------


async def test_closing_a_subscription_gives_up_what_waits_and_ends_its_receipts(bus, seen):
    gate = asyncio.Event()

    async def handle(event: Begun) -> None:
        await gate.wait()
        seen.append(event.number)

    subscription = bus.subscribe(Begun, handle)
    receipts = [bus.publish(Begun(number=number)) for number in range(3)]
    await turns()
    subscription.close()
    await asyncio.wait_for(receipts[2], 5)
    assert [receipt.done for receipt in receipts] == [False, True, True]
    gate.set()
    await asyncio.wait_for(receipts[0], 5)

    assert seen == [0]


async def test_closing_a_subscription_reaches_messages_on_their_way(bus, seen):
    async def handle(event: Begun) -> None:
        seen.append(event.number)

    subscription = bus.subscribe(Begun, handle)
    receipt = bus.publish(Begun())
    subscription.close()
    await receipt

    assert seen == []


async def test_closing_one_subscription_after_another_reaches_messages_on_their_way(bus, seen):
    async def handle(event: Begun) -> None:
        seen.append(event.number)

    first, second = bus.subscribe(Begun, handle), bus.subscribe(Begun, handle)
    receipt = bus.publish(Begun())
    first.close()  # with which the way of the message is forgotten
    second.close()
    await receipt

    assert seen == []


async def test_aclose_lets_handlers_end_and_deliver_what_they_publish(seen):
    bus = EventBus()

    async def handle(event: Begun) -> None:
        await turns()
        await bus.publish(Done())

    bus.subscribe(Begun, handle)
    bus.subscribe(Done, seen.append)
    bus.publish(Begun())
    closing = asyncio.ensure_future(bus.aclose())
    await asyncio.sleep(0)
    with pytest.raises(BusClosedError):
        bus.publish(Begun())
    await closing

    assert seen == [Done()]


async def test_aclose_cancels_after_its_timeout_and_every_message_ends(seen, caplog):
    bus = EventBus()

    async def handle(event: Begun) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    bus.subscribe(Begun, handle)
    receipts = [bus.publish(Begun(number=number)) for number in range(3)]
    await turns()
    await bus.aclose(timeout=0.01)

    assert seen == ["cancelled"]
    assert [receipt.done for receipt in receipts] == [True, True, True]
    assert [len(receipt.errors) for receipt in receipts] == [1, 1, 1]
    assert "the bus is closed" in str(receipts[2].errors[0])


def test_the_end_of_a_loop_ends_every_message(caplog):
    bus = EventBus()
    receipts = []

    async def handle(event: Begun) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        bus.subscribe(Begun, handle)
        receipts.extend(bus.publish(Begun(number=number)) for number in range(3))
        await turns()

    asyncio.run(main())
    receipts.append(bus.publish(Begun(number=3)))

    assert [receipt.wait(5).done for receipt in receipts] == [True] * 4
    assert all(len(receipt.errors) == 1 for receipt in receipts)
    assert "its event loop is closed" in str(receipts[3].errors[0])


def test_a_handler_without_a_loop_follows_the_publisher_through_several_loops(seen):
    bus = EventBus()

    async def handle(event: Begun) -> None:
        await asyncio.sleep(0)
        seen.append(threading.current_thread().name)

    async def main() -> None:
        await bus.publish(Begun())

    bus.subscribe(Begun, handle)
    asyncio.run(main())
    asyncio.run(main())
    bus.publish(Begun()).wait(5)
    bus.close()

    assert seen == ["MainThread", "MainThread", "atlas-bus"]


async def test_drain_says_when_time_is_up(bus):
    gate = asyncio.Event()

    async def handle(event: Begun) -> None:
        await gate.wait()

    bus.subscribe(Begun, handle)
    bus.publish(Begun())
    with pytest.raises(WaitTimeoutError, match=r"after 0\.01 seconds"):
        await bus.drain(0.01)
    gate.set()
    await bus.drain(5)


@pytest.mark.parametrize("is_closed", [False, True])
async def test_drain_does_not_wait_for_a_loop_that_is_stopped(bus, seen, is_closed):
    stopped = asyncio.new_event_loop()

    async def handle(message):
        seen.append(message)

    bus.subscribe(Begun, handle, loop=stopped)
    receipt = bus.publish(Begun())
    if is_closed:
        stopped.close()

    try:
        with pytest.raises(BusError, match="does not run"):
            await bus.drain(timeout=60)

        await bus.aclose(timeout=60)
    finally:
        stopped.close()

    assert receipt.done
    assert seen == []
    assert [type(error) for error in receipt.errors] == [SubscriptionError]


async def test_metrics_time_async_handlers_and_count_what_waits():
    async with EventBus(measure=True) as bus:
        gate = asyncio.Event()

        async def handle(event: Begun) -> None:
            await gate.wait()

        subscription = bus.subscribe(Begun, handle)
        for _ in range(3):
            bus.publish(Begun())
        await turns()
        assert subscription.metrics.waiting == 2
        gate.set()
        await bus.drain(5)

        assert (subscription.metrics.handled, subscription.metrics.waiting) == (3, 0)
        assert subscription.metrics.p99 > 0


async def test_a_predicate_runs_where_its_promise_says(bus, seen):
    # in the publisher's thread for plain handlers and observers, on their loop for async ones
    here = threading.get_ident()
    asked = {}

    def asking(who):
        return lambda _: asked.setdefault(who, threading.get_ident())

    async def handle(_: Begun) -> None:
        seen.append(_)

    bus.subscribe(Begun, seen.append, where=asking("plain"))
    bus.subscribe(Begun, handle, where=asking("async"))
    bus.subscribe(Begun, handle, mode="observer", where=asking("observer"))
    publisher = []

    def publish() -> None:
        publisher.append(threading.get_ident())
        bus.publish(Begun()).wait(5)

    await asyncio.to_thread(publish)
    await bus.drain(5)

    assert asked == {"plain": publisher[0], "observer": publisher[0], "async": here}


async def test_a_handler_that_is_running_goes_on_when_its_subscription_is_closed(bus, seen):
    async def handle(event: Begun) -> None:
        subscription.close()
        await asyncio.sleep(0)
        seen.append(event)

    subscription = bus.subscribe(Begun, handle)
    await bus.publish(Begun())
    await bus.publish(Begun())

    assert len(seen) == 1


async def test_an_observer_holds_1024_messages_by_default(bus, seen):
    async def show(event: Begun) -> None:
        seen.append(event.number)

    bus.subscribe(Begun, show, mode="observer", overflow="drop_newest")
    for number in range(1_030):
        bus.publish(Begun(number=number))
    await bus.drain(5)

    assert seen == list(range(1_024))


@pytest.mark.parametrize(
    "options", [{}, {"overflow": "drop_newest", "droppable": lambda event: event.number < 0}]
)
async def test_an_observer_refuses_with_an_error_what_it_may_not_drop_beyond_65536(
    bus, seen, options
):
    failures = []

    async def show(event: Begun) -> None:
        seen.append(event.number)

    bus.subscribe(HandlerFailed, failures.append)
    bus.subscribe(Begun, show, mode="observer", **options)
    for number in range(65_536 + 2):
        bus.publish(Begun(number=number))
    await bus.drain(30)

    assert seen == list(range(65_536))
    assert [failed.error_type for failed in failures] == ["atlas.errors.BufferOverflowError"] * 2


async def test_a_stream_is_read_on_the_loop_that_entered_it(bus):
    async with bus.stream(Begun) as stream:

        async def read() -> None:
            with pytest.raises(BusError, match="is read on another event loop"):
                await anext(stream)

        await asyncio.to_thread(asyncio.run, read())


async def test_tasks_started_inside_a_scope_are_in_it(bus, seen):
    bus.subscribe(Begun, seen.append)

    async def publish() -> None:
        bus.publish(Begun())

    with bus.scope(run="r1"):
        task = asyncio.create_task(publish())
    await task

    assert seen[0].meta.run == "r1"
