"""The OpenAI adapter and the official SDK against a real model behind llama.cpp's server."""

from __future__ import annotations

import asyncio

import pytest

from atlas.errors import ContextLengthError
from atlas.providers.base import TextDelta
from atlas.providers.messages import ChatMessage, TextPart
from atlas.providers.openai import OpenAIProvider
from atlas.providers.resilience import resilient_stream

from support.checking import ask as ask_once
from support.checking import request
from support.llama import llama_url  # noqa: F401


async def ask(provider, asked):
    # The server may close a kept-alive connection at the moment the next request is sent.
    return await ask_once(provider, asked, attempts=3)


@pytest.fixture(params=["chat", "responses"])
async def provider(request, llama_url):  # noqa: F811
    made = OpenAIProvider(model="smollm2", base_url=f"{llama_url}/v1", api=request.param)
    yield made
    await made.aclose()


async def test_a_real_model_answers(provider) -> None:
    answer = await ask(provider, request("Say hello.", model="", max_tokens=24, temperature=0.0))

    assert answer.text.strip()
    assert answer.finish_reason in {"stop", "length"}
    assert answer.usage.input_tokens > 0
    assert 0 < answer.usage.output_tokens <= 24
    assert answer.response_id


async def test_the_length_limit_is_told(provider) -> None:
    answer = await ask(provider, request("Tell a long story.", max_tokens=4, temperature=0.0))

    # llama.cpp's responses API reports every end as completed.
    assert answer.finish_reason == ("length" if provider.api == "chat" else "stop")
    assert answer.usage.output_tokens == 4


async def test_a_conversation_is_taken(provider) -> None:
    turns = (
        ChatMessage("system", (TextPart("You repeat words."),)),
        ChatMessage("user", (TextPart("My name is Ada."),)),
        ChatMessage("assistant", (TextPart("Hello Ada!"),)),
        ChatMessage("user", (TextPart("What is my name?"),)),
    )
    alone = await ask(provider, request(messages=turns[-1:], max_tokens=4, temperature=0.0))
    answer = await ask(provider, request(messages=turns, max_tokens=4, temperature=0.0))

    assert answer.text.strip()
    assert answer.usage.input_tokens > alone.usage.input_tokens


async def test_leaving_frees_the_models_slot(provider) -> None:
    long = request("Tell a long story.", max_tokens=1500)
    for _ in range(4):  # twice as many as the server has slots
        async with resilient_stream(provider, long) as deltas:
            async for delta in deltas:
                if isinstance(delta, TextDelta) and delta.text:
                    break

    answer = await asyncio.wait_for(ask(provider, request("Hi", max_tokens=2)), 30)
    assert answer.usage.output_tokens == 2


async def test_a_prompt_too_long_is_named(provider) -> None:
    with pytest.raises(ContextLengthError) as caught:
        await ask(provider, request("word " * 5000, max_tokens=4))

    assert caught.value.status == 400
    assert not caught.value.retryable


async def test_streams_run_at_once(provider) -> None:
    asked = request("Say hello.", max_tokens=8, temperature=0.0)
    answers = await asyncio.gather(*(ask(provider, asked) for _ in range(4)))

    assert all(answer.text.strip() for answer in answers)


async def test_the_models_are_listed(provider) -> None:
    assert len(await provider.models()) == 1
