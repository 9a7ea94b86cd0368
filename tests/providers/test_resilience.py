"""Deadlines, retries, naming of errors, and leaving a stream from anywhere."""

from __future__ import annotations

import asyncio
import gc
import random
from dataclasses import replace

import pytest

from atlas.core.schedules import Linear, Step
from atlas.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    IncompleteStreamError,
    InvalidResponseError,
    OverloadedError,
    ProviderError,
    RateLimitedError,
)
from atlas.providers.base import (
    Capabilities,
    Finished,
    ResponseStarted,
    TextDelta,
    UsageDelta,
)
from atlas.providers.messages import Usage
from atlas.providers.resilience import Deadlines, Retry, RetryPolicy, resilient_stream
from atlas.providers.scripted import Pause, ScriptedProvider

from support.checking import request

OFF = Deadlines(connect=None, first_token=None, gap=None, total=None)


class Clock:
    """Time that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Odd:
    """A provider made of one function, counting what is open."""

    name = "odd"
    capabilities = Capabilities()

    def __init__(self, play) -> None:
        self.play = play
        self.requests = []
        self.open = 0

    async def stream(self, asked):
        self.requests.append(asked)
        self.open += 1
        try:
            async for delta in self.play():
                yield delta
        finally:
            self.open -= 1


async def collect(stream) -> list:
    async with stream:
        return [delta async for delta in stream]


def scripted(*replies, **options) -> ScriptedProvider:
    return ScriptedProvider(replies=replies, **options)


async def hang():
    yield TextDelta("so far")
    await asyncio.Event().wait()


async def silence():
    yield ResponseStarted("r1")
    await asyncio.Event().wait()


# -- retries --------------------------------------------------------------------------------------


async def test_a_failure_before_content_is_retried_and_told() -> None:
    clock, told = Clock(), []
    provider = scripted(OverloadedError("busy"), ConnectionFailedError("gone"), "Hello")
    stream = resilient_stream(
        provider, request(), on_retry=told.append, clock=clock, sleep=clock.sleep
    )
    deltas = await collect(stream)

    assert [d.text for d in deltas if isinstance(d, TextDelta)] == ["Hello"]
    assert [type(d) for d in deltas].count(ResponseStarted) == 1
    assert [(retry.attempt, retry.error.kind) for retry in told] == [
        (1, "overloaded"),
        (2, "connection_failed"),
    ]
    assert [retry.delay for retry in told] == clock.slept
    assert stream.attempts == 3


async def test_attempts_are_bounded_and_the_last_error_is_raised() -> None:
    clock = Clock()
    provider = scripted(*[OverloadedError(f"busy {n}") for n in range(9)])

    with pytest.raises(OverloadedError, match="busy 2") as caught:
        await collect(resilient_stream(provider, request(), clock=clock, sleep=clock.sleep))
    assert (caught.value.provider, caught.value.model) == ("scripted", "test-model")
    assert len(provider.requests) == 3


async def test_nothing_is_retried_after_content() -> None:
    provider = scripted(["Half", OverloadedError("busy")], "never asked")

    with pytest.raises(OverloadedError) as caught:
        await collect(resilient_stream(provider, request()))
    assert caught.value.partial == "Half"
    assert len(provider.requests) == 1


async def test_what_cannot_succeed_is_not_retried() -> None:
    provider = scripted(AuthenticationError("no"), "never asked")

    with pytest.raises(AuthenticationError):
        await collect(resilient_stream(provider, request()))
    assert len(provider.requests) == 1


async def test_a_failed_attempt_leaves_nothing_behind() -> None:
    clock = Clock()
    usage = UsageDelta(Usage(input_tokens=1))
    provider = scripted([usage, OverloadedError("busy")], ["Hello", usage])
    deltas = await collect(resilient_stream(provider, request(), clock=clock, sleep=clock.sleep))

    assert deltas == [
        ResponseStarted("scripted-2", "test-model"),
        TextDelta("Hello"),
        usage,
        Finished("stop", "scripted"),
    ]


async def test_an_answer_without_content_is_whole_too() -> None:
    deltas = await collect(resilient_stream(scripted([Finished("length")]), request()))

    assert [type(delta) for delta in deltas] == [ResponseStarted, Finished]


async def test_a_stream_without_an_end_is_an_error() -> None:
    async def cut():
        yield TextDelta("so far")

    with pytest.raises(IncompleteStreamError) as caught:
        await collect(resilient_stream(Odd(cut), request()))
    assert (caught.value.partial, caught.value.provider) == ("so far", "odd")


def test_delays_may_follow_a_schedule_in_place_of_doubling() -> None:
    def ceilings(policy: RetryPolicy) -> list[float | None]:
        return [policy.delay(attempt, OverloadedError("busy")) for attempt in range(1, 6)]

    line = Linear(1, 9, steps=4)
    doubling = RetryPolicy(attempts=9, base_delay=0.5, random=lambda: 1.0)

    assert ceilings(RetryPolicy(attempts=9, delays=line, random=lambda: 1.0)) == [1, 3, 5, 7, 9]
    assert ceilings(RetryPolicy(attempts=9, delays=line, max_delay=4, random=lambda: 1.0)) == [
        *(1, 3, 4, 4, 4)
    ]
    assert ceilings(doubling) == ceilings(replace(doubling, delays=Step(0.5, 2, every=1)))


def test_delays_grow_with_full_jitter_and_can_be_reproduced() -> None:
    def delays(seed: int) -> list[float | None]:
        policy = RetryPolicy(attempts=8, random=random.Random(seed).random)
        return [policy.delay(attempt, OverloadedError("busy")) for attempt in range(1, 9)]

    ceilings = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert delays(1) == delays(1) != delays(2)
    assert delays(1)[-1] is None
    assert all(0 <= d <= c for d, c in zip(delays(1), ceilings, strict=False))


def test_the_vendors_wish_is_the_least_that_is_waited_up_to_a_bound() -> None:
    policy = RetryPolicy(random=lambda: 0.5)

    assert policy.delay(1, RateLimitedError("slow", retry_after=7.0)) == 7.0
    assert policy.delay(1, RateLimitedError("slow", retry_after=0.1)) == 0.25
    assert policy.delay(1, RateLimitedError("slow", retry_after=3600.0)) is None
    assert RetryPolicy(attempts=5000, random=lambda: 1.0).delay(4000, OverloadedError("x")) == 30.0


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"base_delay": -1.0}, {"max_delay": -1.0}])
def test_policies_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        RetryPolicy(**wrong)


@pytest.mark.parametrize("name", ["connect", "first_token", "gap", "total"])
def test_deadlines_that_make_no_sense_are_refused(name) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Deadlines(**{name: 0})


# -- deadlines ------------------------------------------------------------------------------------


async def test_the_first_token_deadline_is_not_moved_by_what_is_no_content() -> None:
    provider = Odd(silence)

    with pytest.raises(DeadlineExceededError) as caught:
        await collect(
            resilient_stream(
                provider,
                request(),
                deadlines=Deadlines(first_token=0.05),
                retries=RetryPolicy(attempts=2, base_delay=0.0),
            )
        )
    assert (caught.value.deadline, caught.value.seconds) == ("first_token", 0.05)
    assert len(provider.requests) == 2
    assert provider.open == 0
    assert asyncio.current_task().cancelling() == 0


async def test_the_gap_deadline_ends_a_stream_that_stalls() -> None:
    provider = Odd(hang)

    with pytest.raises(DeadlineExceededError) as caught:
        await collect(resilient_stream(provider, request(), deadlines=Deadlines(gap=0.05)))
    assert (caught.value.deadline, caught.value.partial) == ("gap", "so far")
    assert caught.value.__cause__ is None
    assert provider.open == 0


async def test_usage_does_not_move_the_gap_deadline() -> None:
    async def chatty():
        yield TextDelta("so far")
        while True:
            await asyncio.sleep(0.01)
            yield UsageDelta(Usage(output_tokens=1))

    with pytest.raises(DeadlineExceededError, match="gap"):
        await collect(resilient_stream(Odd(chatty), request(), deadlines=Deadlines(gap=0.1)))


async def test_a_reader_that_takes_its_time_breaks_no_gap_deadline() -> None:
    async def three():
        for text in "abc":
            yield TextDelta(text)
        yield Finished("stop")

    texts = []
    async with resilient_stream(
        Odd(three), request(), deadlines=Deadlines(first_token=0.05, gap=0.05)
    ) as deltas:
        async for delta in deltas:
            if isinstance(delta, TextDelta):
                texts.append(delta.text)
                await asyncio.sleep(0.12)

    assert texts == ["a", "b", "c"]


async def test_the_total_deadline_ends_a_stream_that_never_stalls() -> None:
    async def endless():
        while True:
            yield TextDelta("x")
            await asyncio.sleep(0)

    provider = Odd(endless)
    with pytest.raises(DeadlineExceededError) as caught:
        await collect(resilient_stream(provider, request(), deadlines=Deadlines(total=0.05)))
    assert caught.value.deadline == "total"
    assert set(caught.value.partial) == {"x"}
    assert provider.open == 0


async def test_the_total_deadline_covers_the_waits_between_attempts() -> None:
    clock = Clock()
    provider = scripted(*[RateLimitedError("slow", retry_after=40.0) for _ in range(5)])

    with pytest.raises(RateLimitedError):
        await collect(
            resilient_stream(
                provider,
                request(),
                deadlines=Deadlines(total=100.0),
                retries=RetryPolicy(attempts=9),
                clock=clock,
                sleep=clock.sleep,
            )
        )
    assert clock.slept == [40.0, 40.0]


async def test_the_total_deadline_interrupts_a_wait() -> None:
    provider = scripted(OverloadedError("busy"), "never")

    async def sleep_too_long(seconds: float) -> None:
        await asyncio.Event().wait()

    with pytest.raises(DeadlineExceededError, match="total"):
        await collect(
            resilient_stream(
                provider,
                request(),
                deadlines=Deadlines(total=0.5),
                retries=RetryPolicy(base_delay=0.0),
                sleep=sleep_too_long,
            )
        )


async def test_the_connect_deadline_is_handed_to_the_adapter() -> None:
    provider = scripted("a", "b")
    await collect(resilient_stream(provider, request(), deadlines=Deadlines(connect=3.0)))
    await collect(resilient_stream(provider, request(), deadlines=OFF))

    assert [asked.connect_timeout for asked in provider.requests] == [3.0, None]


async def test_streams_leave_no_timers_behind_but_the_one_that_they_share() -> None:
    loop = asyncio.get_running_loop()
    # The loop's own heap of timers has no public face.
    before = len([handle for handle in loop._scheduled if not handle.cancelled()])
    for _ in range(5):
        await collect(resilient_stream(scripted("Hello"), request()))

    assert len([handle for handle in loop._scheduled if not handle.cancelled()]) <= before + 1


# -- naming ---------------------------------------------------------------------------------------


async def test_foreign_exceptions_are_named_with_their_cause() -> None:
    original = KeyError("choices")

    async def fails():
        yield TextDelta("so far")
        raise original

    with pytest.raises(ProviderError, match=r"odd failed.*KeyError: 'choices'") as caught:
        await collect(resilient_stream(Odd(fails), request()))
    assert type(caught.value) is ProviderError
    assert caught.value.__cause__ is original
    assert caught.value.partial == "so far"


async def test_errors_of_atlas_pass_as_they_are() -> None:
    async def fails():
        raise ConfigurationError("set it right")
        yield

    with pytest.raises(ConfigurationError, match="set it right"):
        await collect(resilient_stream(Odd(fails), request()))


async def test_a_provider_that_answers_a_cancellation_with_an_error_changes_nothing() -> None:
    async def stubborn():
        yield TextDelta("so far")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("cleanup failed") from None

    with pytest.raises(DeadlineExceededError, match="gap"):
        await collect(resilient_stream(Odd(stubborn), request(), deadlines=Deadlines(gap=0.02)))
    assert asyncio.current_task().cancelling() == 0


async def test_an_iterator_without_close_will_do() -> None:
    class Plain:
        name = "plain"
        capabilities = Capabilities()

        def stream(self, asked):
            return self

        def __init__(self):
            self.left = [TextDelta("a"), Finished("stop")]

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop(0)

    assert len(await collect(resilient_stream(Plain(), request()))) == 2


# -- leaving --------------------------------------------------------------------------------------


async def test_leaving_the_loop_closes_the_provider_at_once() -> None:
    provider = Odd(hang)
    gc.disable()
    try:
        async with resilient_stream(provider, request()) as deltas:
            async for _ in deltas:
                break

        assert provider.open == 0
    finally:
        gc.enable()


async def test_cancelling_the_reader_stays_a_cancellation() -> None:
    provider = Odd(hang)
    seen = asyncio.Event()

    async def read() -> None:
        async with resilient_stream(provider, request()) as deltas:
            async for _ in deltas:
                seen.set()

    reader = asyncio.create_task(read())
    await seen.wait()
    reader.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reader
    assert provider.open == 0


async def test_a_cancellation_at_the_moment_of_a_deadline_wins() -> None:
    provider = Odd(silence)
    task = asyncio.create_task(
        collect(
            resilient_stream(
                provider,
                request(),
                deadlines=Deadlines(first_token=0.05),
                retries=RetryPolicy(attempts=1),
            )
        )
    )
    loop = asyncio.get_running_loop()
    while not provider.open:
        await asyncio.sleep(0)
    # Both happen in one turn of the loop, before the task runs again.
    loop.call_later(0.04, lambda: (loop.call_soon(task.cancel), _block(0.05)))

    with pytest.raises(asyncio.CancelledError):
        await task
    assert provider.open == 0


def _block(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        pass


async def test_closing_from_another_task_ends_the_reader_without_an_error() -> None:
    provider = Odd(hang)
    stream = resilient_stream(provider, request())
    reader = asyncio.create_task(collect(stream))
    while not provider.open:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.gather(stream.aclose(), stream.aclose())

    assert provider.open == 0
    assert await reader == [TextDelta("so far")]
    assert await collect(stream) == []


async def test_closing_from_another_task_ends_the_wait_before_a_retry() -> None:
    waiting = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    stream = resilient_stream(scripted(OverloadedError("busy"), "never"), request(), sleep=sleep)
    reader = asyncio.create_task(collect(stream))
    await waiting.wait()
    await stream.aclose()

    assert await reader == []


async def test_closing_a_stream_that_was_never_read_asks_nobody() -> None:
    provider = scripted("never")
    stream = resilient_stream(provider, request())
    await stream.aclose()

    assert await collect(stream) == []
    assert provider.requests == []


async def test_closing_while_the_reader_is_busy_elsewhere_ends_it_at_its_next_step() -> None:
    provider = scripted(["a", "b", Pause(0.0), "c"])
    stream = resilient_stream(provider, request())
    assert isinstance(await anext(stream), ResponseStarted)
    await asyncio.create_task(stream.aclose())

    assert [delta async for delta in stream] == []
    assert provider.open_streams == 0


async def test_each_step_may_be_taken_by_another_task() -> None:
    stream = resilient_stream(scripted("Hello world"), request())
    texts = []
    while True:
        try:
            delta = await asyncio.wait_for(anext(stream), 5)
        except StopAsyncIteration:
            break
        texts += [delta.text] if isinstance(delta, TextDelta) else []

    assert texts == ["Hello ", "world"]


def test_a_retry_shows_its_facts() -> None:
    error = OverloadedError("busy")

    assert Retry(1, 0.5, error) == (1, 0.5, error)


async def test_a_stream_that_is_a_coroutine_is_refused_with_the_mend() -> None:
    class Coroutine:
        name = "third-party"
        capabilities = Capabilities()

        async def stream(self, asked):
            return [TextDelta("never seen"), Finished("stop")]

    with pytest.raises(InvalidResponseError, match="'third-party' is a coroutine.*async generator"):
        await collect(resilient_stream(Coroutine(), request()))


async def test_text_that_is_none_is_not_in_what_had_arrived() -> None:
    async def play():
        yield TextDelta("so far")
        yield TextDelta(None)  # type: ignore[arg-type]
        raise OSError("gone")

    with pytest.raises(ProviderError) as caught:
        await collect(resilient_stream(Odd(play), request(), deadlines=OFF))

    assert caught.value.partial == "so far"
