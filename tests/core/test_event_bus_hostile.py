"""The event bus given what it should not be given: each is refused in a sentence, and loses nothing."""

from __future__ import annotations

import asyncio
import math

import anyio
import pytest

from atlas.core.event_bus import EventBus, HandlerFailed
from atlas.core.messages import Command, Event, message
from atlas.errors import (
    BusError,
    ConfigurationError,
    HandlersFailedError,
    NotAMessageError,
    RecursionLimitError,
    SubscriptionError,
    ValidationError,
)


@message("hostile.happened")
class Happened(Event):
    number: int = 0


@message("hostile.asked")
class Asked(Command[int]):
    depth: int = 0


class Unspeakable(Exception):
    """What a handler raises may fail when it is asked for its own text."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.fixture
async def bus():
    made = EventBus()
    yield made
    await made.aclose(timeout=1)


@pytest.fixture
def seen():
    return []


# -- errors that are hard to tell -----------------------------------------------------------------


def test_an_error_whose_text_fails_stops_nobody_and_is_told(bus, seen):
    failures = []

    def fail(happened):
        raise Unspeakable

    bus.subscribe(Happened, fail)
    bus.subscribe(Happened, seen.append)
    bus.subscribe(HandlerFailed, failures.append)

    receipt = bus.publish(Happened())

    assert len(seen) == 1
    assert isinstance(receipt.errors[0], Unspeakable)
    assert failures[0].error == "<a Unspeakable, whose text fails with RuntimeError>"
    with pytest.raises(HandlersFailedError, match="whose text fails"):
        receipt.raise_for_errors()


async def test_an_async_error_whose_text_fails_leaves_nobody_waiting(bus, seen):
    async def fail(happened):
        await asyncio.sleep(0)
        raise Unspeakable

    async def handle(happened):
        await asyncio.sleep(0)
        seen.append(happened)

    bus.subscribe(Happened, fail)
    bus.subscribe(Happened, handle)
    bus.subscribe(HandlerFailed, lambda failed: None)

    receipt = await asyncio.wait_for(bus.publish(Happened()), 5)

    assert len(seen) == 1
    assert len(receipt.errors) == 1


async def test_the_text_of_failures_within_failures_stays_short():
    async def ask_deeper(happened):
        if happened.number < 30:
            (await bus.publish(Happened(number=happened.number + 1))).raise_for_errors()
        raise ValueError("at the bottom, 'quoted'")

    async with EventBus() as bus:
        bus.subscribe(Happened, ask_deeper)
        bus.subscribe(HandlerFailed, lambda failed: None)
        receipt = await bus.publish(Happened())

    with pytest.raises(HandlersFailedError) as caught:
        receipt.raise_for_errors()
    assert len(str(caught.value)) < 2_000


# -- asking inside handlers -----------------------------------------------------------------------


async def test_a_handler_may_request_what_it_answers_itself_without_deadlock(bus):
    async def answer(asked):
        below = await bus.request(Asked(depth=asked.depth - 1)) + 1 if asked.depth else 0
        bus.reply(asked, below)

    bus.subscribe(Asked, answer)

    assert await bus.request(Asked(depth=5), timeout=5) == 5


async def test_long_chains_of_requests_to_one_handler_are_answered():
    """Each overtakes all before it; looking for whom it waits must not take longer each time."""
    async with EventBus(max_depth=500) as bus:

        async def answer(asked: Asked) -> None:
            await asyncio.sleep(0)
            below = await bus.request(Asked(depth=asked.depth - 1)) + 1 if asked.depth else 0
            bus.reply(asked, below)

        bus.subscribe(Asked, answer)

        assert await bus.request(Asked(depth=400), timeout=60) == 400


async def test_handlers_that_request_each_other_without_end_fail_with_the_chain(bus):
    async def answer(asked):
        bus.reply(asked, await bus.request(Asked(depth=asked.depth + 1)))

    bus.subscribe(Asked, answer)
    bus.subscribe(HandlerFailed, lambda failed: None)

    with pytest.raises(RecursionLimitError, match=r"hostile\.asked -> hostile\.asked"):
        await bus.request(Asked(), timeout=30)


async def test_a_request_within_a_handler_waits_for_the_answer_and_not_for_the_handlers(bus, seen):
    answered = asyncio.Event()

    async def answer_first(asked):
        bus.reply(asked, 7)
        await answered.wait()
        seen.append("handler ended")

    async def ask(happened):
        seen.append(await bus.request(Asked(), timeout=5))
        answered.set()

    bus.subscribe(Asked, answer_first)
    bus.subscribe(Happened, ask)
    await bus.publish(Happened())
    await bus.drain(5)

    assert seen == [7, "handler ended"]


# -- observers whose policy fails -----------------------------------------------------------------


@pytest.mark.parametrize("merged", [ZeroDivisionError, 5, "text"])
async def test_an_observer_loses_no_waiting_message_to_a_merge_that_fails(bus, seen, merged):
    failures = []
    gate = asyncio.Event()

    def merge(older, newer):
        if merged is ZeroDivisionError:
            raise ZeroDivisionError
        return merged

    async def show(happened):
        await gate.wait()
        seen.append(happened.number)

    bus.subscribe(HandlerFailed, failures.append)
    bus.subscribe(Happened, show, mode="observer", capacity=2, merge=merge)
    for number in range(4):
        bus.publish(Happened(number=number))
    gate.set()
    await bus.drain(5)

    assert seen == [0, 1]
    assert len(failures) == 2  # of the two that there was no room for


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"where": asyncio.sleep}, "where=.* is asynchronous"),
        ({"where": lambda: True}, "where=.* cannot be called with 1"),
        ({"merge": asyncio.sleep, "mode": "observer"}, "merge=.* is asynchronous"),
        ({"merge": lambda one: one, "mode": "observer"}, "merge=.* cannot be called with 2"),
        ({"droppable": lambda: True, "mode": "observer"}, "droppable=.* cannot be called with 1"),
    ],
)
async def test_a_question_that_cannot_be_asked_is_refused_at_once(bus, seen, options, text):
    with pytest.raises(SubscriptionError, match=text):
        bus.subscribe(Happened, seen.append, **options)


class Forgetful:
    def handle(self):
        """Handles nothing: the message was forgotten."""

    async def handle_later(self):
        """Handles nothing either."""

    @classmethod
    def handle_for_all(cls):
        """Nor does this."""

    def merge(self, one):
        """Takes one message, not two."""


@pytest.mark.parametrize("name", ["handle", "handle_later", "handle_for_all"])
async def test_a_method_that_takes_no_message_is_refused_at_once(bus, name):
    with pytest.raises(SubscriptionError, match=rf"Forgetful\.{name}\(\) cannot handle messages"):
        bus.subscribe(Happened, getattr(Forgetful(), name))


async def test_a_method_that_takes_too_few_to_merge_is_refused_at_once(bus, seen):
    with pytest.raises(SubscriptionError, match="cannot be called with 2"):
        bus.subscribe(Happened, seen.append, mode="observer", merge=Forgetful().merge)


# -- arguments that make no sense -----------------------------------------------------------------


@pytest.mark.parametrize("timeout", ["5", [], True, math.nan])
@pytest.mark.parametrize("method", ["wait_for", "request", "drain", "aclose", "wait"])
async def test_a_timeout_that_is_no_number_is_refused_by_its_value(bus, seen, method, timeout):
    bus.subscribe(Asked, seen.append)
    waits = {
        "wait_for": lambda: bus.wait_for(Happened, timeout=timeout),
        "request": lambda: bus.request(Asked(), timeout=timeout),
        "drain": lambda: bus.drain(timeout),
        "aclose": lambda: bus.aclose(timeout),
        "wait": lambda: asyncio.to_thread(bus.publish(Happened()).wait, timeout),
    }

    with pytest.raises(ValidationError, match=rf"{method}\.timeout: .* a number of seconds"):
        await waits[method]()
    assert bus.publish(Happened()).done  # in particular, it is not half closed


def test_no_end_is_a_timeout_too(seen):
    async def handle(happened):
        seen.append(happened)

    with EventBus() as bus:
        bus.subscribe(Happened, handle)
        bus.publish(Happened()).wait(math.inf)

    assert len(seen) == 1


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"name": 5}, "name=5"),
        ({"clock": 5}, "clock=5 tells no time"),
        ({"on_unhandled": 5}, "on_unhandled=5"),
        ({"on_unhandled": lambda: None}, "on_unhandled=.*cannot handle messages"),
        ({"history": True}, "history of True"),
        ({"history": 10**30}, "history of 10000"),
        ({"max_depth": True}, "max_depth=True"),
    ],
)
def test_a_part_of_a_bus_that_cannot_do_its_work_is_refused(wrong, text):
    with pytest.raises(ConfigurationError, match=text):
        EventBus(**wrong)


def test_middleware_that_is_asynchronous_is_refused():
    async def pass_on(item):
        return item

    with pytest.raises(ConfigurationError, match="is asynchronous"):
        EventBus(middleware=[pass_on])


def test_middleware_that_says_what_cannot_be_said_is_refused_by_its_name():
    def label(item, links):
        links["label"] = "x"
        return item

    with pytest.raises(ConfigurationError, match="'label' about a message; what can be said is"):
        EventBus(middleware=[label]).publish(Happened())


@pytest.mark.parametrize("thing", ["hostile.happened", int, Happened(), Event])
def test_explain_refuses_what_is_no_message_class(bus, thing):
    with pytest.raises(NotAMessageError, match="is no message class"):
        bus.explain(thing)


def test_replay_refuses_a_handler_that_it_cannot_call_and_a_wrong_place(bus, seen):
    async def handle(item):
        seen.append(item)

    bus.publish(Happened())

    with pytest.raises(SubscriptionError, match="`replay` awaits nobody"):
        bus.replay(handle)
    with pytest.raises(SubscriptionError, match="returned a coroutine"):
        bus.replay(lambda item: handle(item))  # noqa: PLW0108  not seen to be asynchronous
    with pytest.raises(SubscriptionError, match="not a callable"):
        bus.replay(5)
    with pytest.raises(ValidationError, match=r"history\.since: 'x'"):
        bus.replay(seen.append, since="x")


async def test_a_stream_is_entered_once(bus):
    stream = bus.stream(Happened)
    async with stream:
        with pytest.raises(BusError, match="is entered once"):
            await stream.__aenter__()
        bus.publish(Happened(number=1))
        assert (await anext(stream)).number == 1

    with pytest.raises(BusError, match="is entered once"):
        await stream.__aenter__()
    assert not bus.metrics


# -- hosts without asyncio ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["wait_for", "request", "stream", "drain", "aclose"])
def test_what_needs_asyncio_says_so_under_trio(method, seen):
    bus = EventBus()
    bus.subscribe(Asked, seen.append)
    waits = {
        "wait_for": lambda: bus.wait_for(Happened),
        "request": lambda: bus.request(Asked()),
        "stream": lambda: bus.stream(Happened).__aenter__(),
        "drain": bus.drain,
        "aclose": bus.aclose,
    }

    with pytest.raises(BusError, match="needs asyncio's event loop"):
        anyio.run(waits[method], backend="trio")
    assert bus.publish(Happened()).done


# -- the tree -------------------------------------------------------------------------------------


async def test_the_tree_of_a_long_chain_is_drawn(bus):
    ended = asyncio.Event()

    async def go_on(happened):
        if happened.number < 1_500:
            bus.publish(Happened(number=happened.number + 1))
        else:
            ended.set()

    bus.subscribe(Happened, go_on)
    bus.publish(Happened())
    await asyncio.wait_for(ended.wait(), 30)

    assert bus.tree().count("\n") == 1_023
