"""`app.chat(..., context=...)`: passages are found, given to the model, cited, recorded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from atlas import Atlas
from atlas.errors import ConfigurationError
from atlas.providers.context import ContextPassage
from atlas.providers.messages import StreamContextFound

from support.providers import ListProvider

BUS = ContextPassage(text="The bus carries messages.", citation="bus.md#L1", source="bus.md")
LOG = ContextPassage(text="The log keeps them.", citation="log.md#L7", source="log.md")


class Shelf:
    """A context source that counts what it is asked."""

    def __init__(self, *passages: ContextPassage) -> None:
        self.asked: list[str] = []
        self._passages = passages

    async def passages(self, question: str) -> Sequence[ContextPassage]:
        self.asked.append(question)
        return self._passages


async def test_passages_are_given_to_the_model_and_its_citations_resolved() -> None:
    provider, shelf = ListProvider([["It carries ", "messages [1], not [7]."]]), Shelf(BUS, LOG)
    async with Atlas(provider=provider) as app:
        told: list[StreamContextFound] = []
        app.bus.subscribe(StreamContextFound, told.append)
        reply = app.chat("What does the bus do?", system="Be brief.", context=shelf)
        await reply

    (request,) = provider.requests
    assert [message.role for message in request.messages] == ["system", "system", "user"]
    assert "[1] bus.md#L1\nThe bus carries messages." in request.messages[1].text
    assert "[2] log.md#L7" in request.messages[1].text
    assert shelf.asked == ["What does the bus do?"]
    assert reply.citations == {1: BUS}
    assert told[0].citations == ("bus.md#L1", "log.md#L7")


async def test_without_passages_the_question_is_asked_as_it_is() -> None:
    provider = ListProvider([["Hm."]])
    async with Atlas(provider=provider) as app:
        reply = app.chat("Anything?", context=Shelf())
        await reply

    assert [message.role for message in provider.requests[0].messages] == ["user"]
    assert reply.citations == {}


async def test_passages_that_do_not_fit_are_left_out_and_that_is_told() -> None:
    provider = ListProvider([["Hm."]])
    async with Atlas(provider=provider) as app:
        told: list[StreamContextFound] = []
        app.bus.subscribe(StreamContextFound, told.append)
        long = ContextPassage(text="word " * 4_000, citation="long.md#L1", source="long.md")
        await app.chat("Anything?", context=Shelf(BUS, long), context_tokens=200)

    assert told[0].citations == ("bus.md#L1",)
    assert told[0].left_out == 1
    assert told[0].tokens <= 200


async def test_a_replay_takes_the_passages_from_the_recording() -> None:
    shelf = Shelf(BUS)
    async with Atlas(provider=ListProvider([["It carries [1]."]])) as app:
        async with app.recording("rag", strict=True) as run:
            said = await app.chat("What?", context=shelf)
        async with app.replaying(run.id):
            again = app.chat("What?", context=Shelf())
            assert (await again).text == said.text
            assert again.citations == {1: BUS}

    assert shelf.asked == ["What?"]


async def test_a_source_that_fails_fails_the_answer_with_its_own_error() -> None:
    class Broken:
        async def passages(self, question: str) -> Sequence[ContextPassage]:
            raise OSError("the index is gone")

    async with Atlas(provider=ListProvider([["Hm."]])) as app:
        with pytest.raises(OSError, match="index is gone"):
            await app.chat("Anything?", context=Broken())


async def test_something_else_than_a_source_is_refused() -> None:
    async with Atlas(provider=ListProvider([])) as app:
        with pytest.raises(ConfigurationError, match="context is 'docs/'"):
            app.chat("Anything?", context="docs/")  # type: ignore[arg-type]
