"""A knowledge base inside a recorded run: what it does is an effect, and a replay asks nobody."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from atlas import Atlas, ReplayDiverged
from atlas.errors import EmbeddingError, UnknownNameError
from atlas.knowledge import (
    CallableEmbedder,
    Hit,
    Ingested,
    Knowledge,
    OpenAIEmbedder,
    Ranking,
)
from atlas.knowledge.messages import SearchPerformed

from support.knowledge import DIMENSION, bag_of_words, note
from support.wire import WireServer, error_answer

CATS = note("cats", "Cats purr when they are content.", legs=4)
DOGS = note("dogs", "Dogs bark at strangers.", legs=4)


class CountedModel:
    """An embedding model that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        self.asked += 1
        return bag_of_words(texts)


@pytest.fixture
def model() -> CountedModel:
    return CountedModel()


@pytest.fixture
def kb(model: CountedModel) -> Iterator[Knowledge]:
    with Knowledge(embedder=CallableEmbedder(model, name="counted", dimension=DIMENSION)) as made:
        yield made


@pytest.fixture
def nobody() -> Iterator[Knowledge]:
    """A knowledge base that has nothing to answer with."""
    with Knowledge() as made:
        yield made


async def test_a_search_is_replayed_without_the_knowledge_base(
    kb: Knowledge, nobody: Knowledge
) -> None:
    async def program(base: Knowledge) -> list[Hit]:
        first = await base.search("cats purr", k=1, where="legs == 4", explain=True)
        return first + await base.search("strangers", mode="keyword", ranking=Ranking(weight=0.5))

    kb.ingest_sync(CATS, DOGS)
    async with Atlas() as app:
        async with app.recording("search", strict=True) as run:
            found = await program(kb)
        async with app.replaying(run.id):
            again = await program(nobody)

    assert run.is_exact
    assert again == found
    assert (found[0].source, found[0].metadata, found[-1].source) == ("cats", {"legs": 4}, "dogs")


async def test_another_question_diverges(kb: Knowledge) -> None:
    kb.ingest_sync(CATS)
    async with Atlas() as app:
        async with app.recording("search") as run:
            await kb.search("Who purrs?")
        with pytest.raises(ReplayDiverged, match="knowledge.search"):
            async with app.replaying(run.id):
                await kb.search("Who barks?")


async def test_code_that_takes_part_in_a_search_is_not_compared_and_not_called_in_a_replay(
    kb: Knowledge, nobody: Knowledge
) -> None:
    calls: list[str] = []

    async def reworded(query: str) -> Sequence[str]:
        calls.append(query)
        return ["content"]

    def backwards(query: str, passages: Sequence[str]) -> Sequence[float]:
        calls.append(query)
        return range(len(passages))

    async def program(base: Knowledge) -> list[Hit]:
        return await base.search("Who purrs?", expander=reworded, reranker=backwards)

    kb.ingest_sync(CATS, DOGS)
    async with Atlas() as app:
        async with app.recording("search", strict=True) as run:
            found = await program(kb)
        async with app.replaying(run.id):
            assert await program(nobody) == found

    assert calls == ["Who purrs?"] * 2


async def test_an_ingest_is_replayed_without_storing_or_embedding(
    kb: Knowledge, nobody: Knowledge, model: CountedModel
) -> None:
    async def program(base: Knowledge) -> Ingested:
        return await base.ingest(CATS, DOGS, collection="animals")

    async with Atlas() as app:
        async with app.recording("ingest", strict=True) as run:
            done = await program(kb)
        asked = model.asked
        async with app.replaying(run.id):
            assert await program(nobody) == done
        with pytest.raises(ReplayDiverged, match=r"knowledge\.ingest"):
            async with app.replaying(run.id):
                await nobody.ingest(CATS, note("dogs", "Dogs wag."), collection="animals")

    assert done.ingested == 2
    assert model.asked == asked
    assert nobody.collections() == []


async def test_the_texts_of_documents_are_not_written_into_the_run_as_well(kb: Knowledge) -> None:
    async with Atlas() as app:
        async with app.recording("ingest") as run:
            await kb.ingest(note("long", "word " * 10_000))

        written = [repr(event) for event in app.runs[run.id].events]

    assert any("knowledge.ingest" in text for text in written)
    assert max(map(len, written)) < 2_000


async def test_taking_documents_out_is_recorded(kb: Knowledge, nobody: Knowledge) -> None:
    kb.ingest_sync(CATS)
    async with Atlas() as app:
        async with app.recording("remove", strict=True) as run:
            version = await kb.remove("cats")
        async with app.replaying(run.id):
            assert await nobody.remove("cats") == version


async def test_what_fails_fails_alike_in_a_replay(kb: Knowledge, nobody: Knowledge) -> None:
    async with Atlas() as app:
        async with app.recording("search", strict=True) as run:
            with pytest.raises(UnknownNameError, match="collection"):
                await kb.search("Who purrs?", collection="plants")
        async with app.replaying(run.id):
            with pytest.raises(UnknownNameError, match="collection"):
                await nobody.search("Who purrs?", collection="plants")


async def test_a_search_is_told_with_the_run_it_belongs_to(model: CountedModel) -> None:
    async with Atlas() as app:
        told: list[SearchPerformed] = []
        app.bus.subscribe(SearchPerformed, told.append)
        embedder = CallableEmbedder(model, name="counted", dimension=DIMENSION)
        with Knowledge(bus=app.bus, embedder=embedder) as kb:
            kb.ingest_sync(CATS)
            async with app.recording("search", strict=True) as run:
                await kb.search("Who purrs?")
            async with app.replaying(run.id):
                await kb.search("Who purrs?")

    assert [event.meta.run for event in told] == [run.id]


async def test_a_key_that_the_server_of_the_model_quotes_is_not_recorded(tmp_path: Path) -> None:
    key = "sk-live-0123456789abcdefXYZ"
    with WireServer() as server:
        server.play(error_answer(401, {"error": {"message": f"The key {key} is wrong."}}))
        model = OpenAIEmbedder(api_key=key, base_url=server.url, dimension=DIMENSION)
        with Knowledge(embedder=model) as kb:
            async with Atlas(tmp_path / "runs.db") as app:
                with pytest.raises(EmbeddingError, match="<redacted>"):
                    async with app.recording("search") as run:
                        await kb.ingest(CATS)
                lines = "".join(app.runs[run.id].lines)

    assert key not in lines
    assert "<redacted> is wrong" in lines
