"""A run and a bus: handlers are outside, and what awaiting them gives is recorded."""

from __future__ import annotations

import asyncio

import pytest

from atlas import Command, Event, EventBus, message
from atlas.core.effects import MemoryJournal, RunContext, current_run, effect
from atlas.core.effects.entries import EffectStarted
from atlas.errors import HandlersFailedError, NoResponderError, WaitTimeoutError


@message("effects_bus_test.said")
class Said(Event):
    text: str


@message("effects_bus_test.asked")
class Asked(Command[str]):
    text: str


@message("effects_bus_test.asked_for_message")
class AskedForMessage(Command[Said]):
    text: str


async def recorded(program, bus: EventBus) -> tuple[list, object]:
    journal = MemoryJournal()
    async with RunContext("r", journal=journal, strict=True):
        given = await program(bus)
    return journal.entries, given


async def replayed(entries, program, bus: EventBus) -> object:
    again = MemoryJournal()
    async with RunContext("r", mode="replay", recorded=entries, journal=again):
        given = await program(bus)
    assert again.entries == entries
    return given


async def test_async_handlers_run_outside_and_plain_ones_inside():
    bus = EventBus()
    seen = []

    @bus.on(Said)
    async def later(event: Said) -> None:
        await asyncio.sleep(0)
        seen.append(("async", current_run() is None))

    @bus.on(Said)
    def at_once(event: Said) -> None:
        seen.append(("plain", current_run() is None))

    async with RunContext("r", strict=True) as run:
        await bus.publish(Said("x"))

    assert sorted(seen) == [("async", True), ("plain", False)]
    assert run.exact


async def say(bus: EventBus) -> list[str]:
    errors = []
    for text in ("one", "bad", "two"):
        receipt = await bus.publish(Said(text))
        errors += [repr(error) for error in receipt.errors]
    return errors


async def test_a_receipt_is_answered_from_the_recording_whatever_handlers_there_are():
    bus = EventBus()

    @bus.on(Said)
    async def slow(event: Said) -> None:
        await asyncio.sleep(0.001)
        if event.text == "bad":
            raise ValueError("no")

    entries, errors = await recorded(say, bus)
    other = EventBus()
    called = []

    @other.on(Said)
    async def another(event: Said) -> None:
        called.append(event.text)
        raise KeyError

    assert errors == ["ValueError('no')"]
    assert await replayed(entries, say, EventBus()) == errors
    assert await replayed(entries, say, other) == errors
    await other.drain()  # its handlers are no part of the replay, which did not wait for them
    assert called == ["one", "bad", "two"]


async def test_a_receipt_without_async_handlers_needs_no_entry():
    entries, errors = await recorded(say, EventBus())
    busy = EventBus()

    @busy.on(Said)
    async def slow(event: Said) -> None:
        await asyncio.sleep(0.001)

    assert errors == []
    assert len(entries) == 1
    assert await replayed(entries, say, busy) == []


async def test_errors_of_a_strict_bus_are_raised_in_the_replay_too():
    async def program(bus: EventBus) -> str:
        with pytest.raises(HandlersFailedError, match="ValueError") as caught:
            await bus.publish(Said("x"))
        return repr(caught.value.errors[0])

    bus = EventBus(strict=True)

    @bus.on(Said)
    async def fail(event: Said) -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    entries, error = await recorded(program, bus)

    assert await replayed(entries, program, EventBus()) == error


async def test_an_answer_from_outside_is_recorded():
    async def program(bus: EventBus) -> list[object]:
        said = await bus.request(AskedForMessage("b"))
        return [await bus.request(Asked("a"), timeout=5), said, said.meta.id]

    bus = EventBus()

    @bus.on(Asked)
    async def answer(command: Asked) -> None:
        await asyncio.sleep(0.001)
        bus.reply(command, command.text.upper())

    @bus.on(AskedForMessage)
    async def answer_with_message(command: AskedForMessage) -> None:
        bus.reply(command, Said(command.text))

    entries, given = await recorded(program, bus)

    assert given[:2] == ["A", Said("b")]
    assert await replayed(entries, program, EventBus()) == given


async def test_nobody_answering_is_recorded():
    async def program(bus: EventBus) -> str:
        try:
            await bus.request(Asked("a"), timeout=0.001)
        except (NoResponderError, WaitTimeoutError) as error:
            return type(error).__name__
        return ""

    silent = EventBus()
    silent.subscribe(Asked, lambda command: None)

    for bus, name in ((EventBus(), "NoResponderError"), (silent, "WaitTimeoutError")):
        entries, given = await recorded(program, bus)
        assert given == name
        for other in (EventBus(), silent):
            assert await replayed(entries, program, other) == name


async def say_when(ready: asyncio.Event, bus: EventBus) -> None:
    await ready.wait()
    bus.publish(Said("host"))


async def test_waiting_for_a_message_of_the_host_is_recorded():
    ready = asyncio.Event()

    async def program(bus: EventBus) -> str:
        ready.set()
        return (await bus.wait_for(Said)).text

    bus = EventBus()
    host = asyncio.create_task(say_when(ready, bus))
    await asyncio.sleep(0)
    entries, text = await recorded(program, bus)
    await host

    assert text == "host"
    assert await replayed(entries, program, EventBus()) == "host"


async def test_waiting_for_a_message_of_the_run_itself_works():
    async def program(bus: EventBus) -> str:
        async def publish() -> None:
            bus.publish(Said("inside"))

        said, _ = await asyncio.gather(bus.wait_for(Said), publish())
        return said.text

    entries, text = await recorded(program, EventBus())

    assert text == "inside"
    assert await replayed(entries, program, EventBus()) == "inside"


@pytest.mark.parametrize("overflow", ["block", "drop_oldest"])
async def test_a_stream_of_messages_from_both_sides_is_recorded(overflow):
    ready = asyncio.Event()

    async def program(bus: EventBus) -> list[str]:
        texts = []
        async with bus.stream(Said, overflow=overflow) as messages:
            ready.set()
            bus.publish(Said("inside"))
            async for event in messages:
                texts.append(event.text)
                if event.text == "host":
                    break
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await anext(messages)
        return texts

    bus = EventBus()
    host = asyncio.create_task(say_when(ready, bus))
    await asyncio.sleep(0)
    entries, texts = await recorded(program, bus)
    await host

    assert texts == ["inside", "host"]
    assert await replayed(entries, program, EventBus()) == texts


async def test_agents_that_talk_over_the_bus_replay_alike():
    @effect(pure=True)
    async def think(text: str) -> str:
        await asyncio.sleep(0.0005)
        return text + "!"

    async def program(bus: EventBus) -> list[str]:
        heard: list[str] = []
        with bus.subscribe(Said, lambda event: heard.append(event.text)):

            async def agent(name: str) -> None:
                for turn in range(3):
                    thought = await think(f"{name}{turn}{len(heard)}")
                    await bus.publish(Said(thought))

            await asyncio.gather(*(agent(name) for name in "abcde"))
        return heard

    bus = EventBus()

    @bus.on(Said)
    async def host(event: Said) -> None:
        await asyncio.sleep(0.0002)

    for _ in range(5):
        entries, heard = await recorded(program, bus)
        assert await replayed(entries, program, EventBus()) == heard
        kinds = {entry.kind for entry in entries if isinstance(entry, EffectStarted)}
        assert kinds == {"think", "receipt"}
