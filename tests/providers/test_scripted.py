"""The scripted provider plays what it is given, and says so when it is given nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from atlas.errors import (
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    RateLimitedError,
)
from atlas.providers.base import Finished, Provider, TextDelta
from atlas.providers.messages import RefusalPart, ThinkingPart, ToolCallPart
from atlas.providers.scripted import Pause, ScriptedProvider

from support.checking import ask, request


async def test_text_is_streamed_word_by_word() -> None:
    provider = ScriptedProvider(["Hello  wide\nworld "])
    pieces = [d.text async for d in provider.stream(request()) if isinstance(d, TextDelta)]

    assert pieces == ["Hello  ", "wide\n", "world "]


async def test_parts_waits_and_ends_are_played() -> None:
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    call = ToolCallPart("c1", "now", '{"a": 1}')
    thinking = ThinkingPart("hm", "signature")
    provider = ScriptedProvider(
        replies=[
            [thinking, "Let me ", Pause(2.5), "see", call, ToolCallPart("c2", "now", "")],
            [RefusalPart("No."), Finished("refusal")],
        ],
        sleep=sleep,
    )
    first = await ask(provider)
    second = await ask(provider)

    assert first.parts[0] == thinking
    assert first.text == "Let me see"
    assert first.tool_calls == (call, ToolCallPart("c2", "now", ""))
    assert first.finish_reason == "tool_calls"
    assert slept == [2.5]
    assert second.parts == (RefusalPart("No."),)
    assert second.finish_reason == "refusal"
    assert second.response_id == "scripted-2"


async def test_failures_are_raised_where_they_stand() -> None:
    provider = ScriptedProvider(
        replies=[RateLimitedError("Too fast."), ["Half an ans", ConnectionFailedError("Gone.")]]
    )

    with pytest.raises(RateLimitedError):
        await ask(provider)
    with pytest.raises(ConnectionFailedError) as caught:
        await ask(provider)
    assert caught.value.partial == "Half an ans"


async def test_an_event_stops_the_stream_at_an_exact_place() -> None:
    event = asyncio.Event()
    provider = ScriptedProvider([["a", event, "b"]])
    answer = asyncio.create_task(ask(provider))
    while not provider.open_streams and not answer.done():
        await asyncio.sleep(0)

    assert not answer.done()
    event.set()
    assert (await answer).text == "ab"
    assert provider.open_streams == 0


async def test_a_function_decides_by_the_request() -> None:
    provider = ScriptedProvider([lambda asked: asked.messages[-1].text.upper()])

    assert (await ask(provider, request("shout"))).text == "SHOUT"
    assert provider.requests[0].messages[-1].text == "shout"


async def test_a_request_without_a_reply_fails_loudly() -> None:
    provider = ScriptedProvider([])

    with pytest.raises(BadRequestError, match="no reply left for request number 1"):
        await ask(provider)


async def test_a_reply_nobody_asked_for_fails_loudly() -> None:
    with pytest.raises(AssertionError, match="1 scripted replies were never asked for"):
        async with ScriptedProvider(["unheard"]):
            pass


async def test_without_replies_it_says_what_it_is_for_ever() -> None:
    async with ScriptedProvider() as provider:
        answers = [await ask(provider, request(model="")) for _ in range(5)]

    assert all("scripted provider" in answer.text for answer in answers)
    assert answers[0].model == "scripted-1"


async def test_what_is_no_step_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="42 is no step"):
        ScriptedProvider([["a", 42]])  # type: ignore[list-item]  # on purpose
    with pytest.raises(ConfigurationError, match="42 is no step"):
        await ask(ScriptedProvider([lambda request: ["a", 42]]))  # type: ignore[list-item]  # too


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: ScriptedProvider([5]), "5 is no scripted reply"),
        (lambda: ScriptedProvider([None]), "None is no scripted reply"),
        (lambda: ScriptedProvider([b"x"]), "b'x' is no scripted reply"),
        (lambda: ScriptedProvider([{"a": "b"}]), "{'a': 'b'} is no scripted reply"),
        (lambda: ScriptedProvider("Hello."), "replies is 'Hello.'"),
        (lambda: ScriptedProvider(5), "replies is 5"),
        (lambda: ScriptedProvider({"a": "b"}), "replies is {'a': 'b'}"),
        (lambda: ScriptedProvider([], name=5), "name is 5"),
        (lambda: ScriptedProvider([], delay="1"), "delay is '1'"),
        (lambda: ScriptedProvider([], delay=float("nan")), "delay is nan"),
        (lambda: ScriptedProvider([], delay=True), "delay is True"),
        (lambda: Pause(-1), "Pause.seconds is -1"),
        (lambda: Pause("1"), "Pause.seconds is '1'"),
    ],
)
def test_what_it_cannot_play_is_refused_when_it_is_made(made: Any, told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        made()

    assert str(refused.value).startswith(told)


def test_it_is_a_provider() -> None:
    assert isinstance(ScriptedProvider(), Provider)
