"""Our providers keep the promises that third parties' are checked against, and the check bites."""

from __future__ import annotations

import asyncio

import pytest

from atlas.errors import BadRequestError, ModelNotFoundError
from atlas.providers.base import Capabilities, ChatRequest, Finished, TextDelta
from atlas.providers.openai import OpenAIProvider
from atlas.providers.scripted import ScriptedProvider
from atlas.testing.providers import check_provider

from support.openai_cases import ERROR_ROWS, chat_answer, responses_answer, said, words
from support.wire import Answer, WireServer

FAILING = ChatRequest(messages=(), model="no such model")


@pytest.mark.parametrize(
    ("api", "answer"),
    [
        ("chat", chat_answer(*words("Hello", " world"), usage=True)),
        ("responses", responses_answer(*said("Hello", " world"))),
    ],
)
async def test_openai(api, answer: Answer) -> None:
    missing = next(row.answer for row in ERROR_ROWS if row.case == "model-not-found")
    with WireServer(always=answer) as server:

        def make() -> OpenAIProvider:
            return OpenAIProvider(model="m", base_url=f"{server.url}/v1", api=api)

        await check_provider(make)
        server.always(missing)
        with pytest.raises(ModelNotFoundError):
            await check_provider(make)


async def test_scripted() -> None:
    await check_provider(ScriptedProvider)
    await check_provider(lambda: ScriptedProvider(replies=[refuse_unknown] * 9), failing=FAILING)


def refuse_unknown(asked: ChatRequest):
    return BadRequestError("No such model.") if asked.model else "Hello world"


class Base:
    name = "third-party"
    capabilities = Capabilities()

    async def stream(self, request):
        yield TextDelta("Hello")
        yield Finished("stop")

    async def models(self):
        return ()

    async def aclose(self):
        pass


class NoEnd(Base):
    async def stream(self, request):
        yield TextDelta("Hello")


class TwoEnds(Base):
    async def stream(self, request):
        yield TextDelta("Hello")
        yield Finished("stop")
        yield Finished("stop")


class Empty(Base):
    async def stream(self, request):
        yield Finished("stop")


class OddReason(Base):
    async def stream(self, request):
        yield TextDelta("Hello")
        yield Finished("eos")


class Swallows(Base):
    async def stream(self, request):
        try:
            yield TextDelta("Hello")
            await asyncio.sleep(0)
        except GeneratorExit:
            self.task = asyncio.create_task(asyncio.Event().wait())
            raise
        yield Finished("stop")


class Foreign(Base):
    async def stream(self, request):
        if request.model:
            raise KeyError("choices")
        yield TextDelta("Hello")
        yield Finished("stop")


class Nameless(Base):
    name = ""


class OddModels(Base):
    default_model = "m"

    async def models(self):
        return [1]


async def test_a_minimal_provider_passes() -> None:
    await check_provider(Base)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (NoEnd, "ends with `Finished`"),
        (TwoEnds, "after the answer was finished"),
        (Empty, "has content"),
        (OddReason, "Finished(reason='eos'"),
        (Swallows, "still run"),
        (Foreign, "only a `ProviderError`"),
        (Nameless, "`name`"),
        (OddModels, "models()"),
    ],
)
async def test_a_broken_promise_is_named(broken, promise) -> None:
    with pytest.raises(Exception) as caught:
        await check_provider(broken, failing=FAILING)

    assert promise in str(caught.value)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
