"""Timing providers from outside: what is measured, who caused it, and that nothing stays behind."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from atlas import Atlas, EventBus
from atlas.errors import ConfigurationError, ServerError
from atlas.providers.base import Capabilities, ChatRequest, Delta, Finished, TextDelta
from atlas.providers.messages import ProviderTimed, StreamStarted
from atlas.providers.resilience import RetryPolicy
from atlas.providers.timing import ProviderTimer

from support.checking import request
from support.providers import GatedProvider, ListProvider


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """Takes 2 seconds for each of its three deltas."""

    name = "slow"
    capabilities = Capabilities()

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        for delta in (TextDelta("a"), TextDelta("b"), Finished("stop")):
            self._clock.now += 2
            yield delta

    async def aclose(self) -> None:
        pass


class Plain(Slow):
    """Its ``stream`` is a plain function that returns an iterator."""

    def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        return super().stream(request)


@pytest.fixture
def bus():
    with EventBus() as made:
        yield made


def timed_on(bus: EventBus) -> list[ProviderTimed]:
    seen: list[ProviderTimed] = []
    bus.subscribe(ProviderTimed, seen.append)
    return seen


@pytest.mark.parametrize("kind", [Slow, Plain])
async def test_a_call_is_timed_apart_from_its_reader(bus, kind) -> None:
    clock, seen = Clock(), timed_on(bus)
    provider = kind(clock)
    with ProviderTimer(bus, clock=clock) as timer:
        timer.time(provider)
        timer.time(provider)
        async for _ in provider.stream(request("Hi", model="m")):
            clock.now += 10

    assert seen == [ProviderTimed("slow", "m", "ended", 36.0, 6.0, 3, 2.0)]


async def test_closing_puts_back_exactly_what_was_there(bus) -> None:
    provider, other = Slow(Clock()), Slow(Clock())
    mine = other.stream = lambda request: iter(())
    before = dict(vars(provider))
    timer = ProviderTimer(bus)
    timer.time(provider)
    timer.time(other)
    woven = provider.stream
    timer.close()
    timer.close()
    timer.time(provider)

    assert woven is not provider.stream
    assert vars(provider) == before
    assert provider.stream.__func__ is Slow.stream
    assert other.stream is mine
    assert not timer.is_open


async def test_a_call_under_way_when_the_timer_closes_ends_as_ever_and_is_not_reported(bus) -> None:
    seen, provider = timed_on(bus), Slow(Clock())
    timer = ProviderTimer(bus)
    timer.time(provider)
    stream = provider.stream(request())
    first = await anext(stream)
    timer.close()
    rest = [delta async for delta in stream]

    assert [first, *rest] == [TextDelta("a"), TextDelta("b"), Finished("stop")]
    assert seen == []


async def test_every_attempt_of_a_reply_is_timed_and_caused_by_its_start() -> None:
    provider = ListProvider([[ServerError("Busy.")], ["One", "two"], ["x"]])
    async with Atlas(provider=provider, retries=RetryPolicy(base_delay=0)) as app:
        seen, started = timed_on(app.bus), []
        app.bus.subscribe(StreamStarted, started.append)
        with app.time_providers() as timer:
            assert app.time_providers() is timer
            await app.chat("Well?")
        await app.chat("Well?")

    assert [(e.outcome, e.deltas, e.model) for e in seen] == [
        ("failed", 0, "list-model"),
        ("ended", 3, "list-model"),
    ]
    assert seen[0].first_delta is None
    assert {event.meta.causation for event in seen} == {started[0].meta.id}


async def test_a_cancelled_call_is_closed_at_the_provider_and_told(bus) -> None:
    provider = GatedProvider(["a", "b"], gate_after=1)
    async with Atlas(provider=provider) as app:
        seen = timed_on(app.bus)
        app.time_providers()
        reply = app.chat("Well?")
        await asyncio.wait_for(provider.at_gate.wait(), 5)
        await reply.cancel()

    assert [(e.outcome, e.deltas) for e in seen] == [("closed", 1)]
    assert provider.closed == 1


async def test_an_application_times_every_provider_it_asks_and_leaves_them_as_they_were() -> None:
    default, other = ListProvider([["a"]]), ListProvider([["b"]])
    async with Atlas(provider=default) as app:
        seen = timed_on(app.bus)
        app.time_providers()
        await app.chat("Well?")
        await app.chat("Well?", provider=other)

    assert len(seen) == 2
    assert "stream" not in vars(default)
    assert "stream" not in vars(other)


def test_a_provider_that_cannot_be_woven_is_told(bus) -> None:
    class Sealed(Slow):
        __slots__ = ()

        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    with ProviderTimer(bus) as timer, pytest.raises(ConfigurationError, match="Weave its class"):
        timer.time(object.__new__(Sealed))
