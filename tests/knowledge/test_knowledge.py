"""A knowledge base from outside: what goes in, what is found, what stays when it is opened again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from atlas.core.event_bus import EventBus
from atlas.errors import (
    ConfigurationError,
    DocumentError,
    EmbeddingError,
    KnowledgeError,
    MissingDependencyError,
    StoreError,
    UnknownNameError,
    UnknownVersionError,
    ValidationError,
)
from atlas.knowledge import (
    CallableEmbedder,
    Document,
    Knowledge,
    Loader,
    MemoryStore,
    ProviderExpander,
    Ranking,
    StructureChunker,
)
from atlas.knowledge.messages import IndexRebuilt, IngestFinished, SearchPerformed
from atlas.providers.context import ContextSource, pack_context

from support.knowledge import DIMENSION, bag_of_words, note, small_model
from support.providers import ListProvider


@pytest.fixture
def kb():
    with Knowledge(embedder=small_model(), chunker=StructureChunker(20)) as made:
        yield made


def opened(path: Path, **options) -> Knowledge:
    return Knowledge(path, embedder=small_model(), **{"chunker": StructureChunker(20), **options})


NOTES = [
    note(
        "cats",
        "Cats purr when they are content. They sleep most of the day.",
        kind="animal",
        legs=4,
    ),
    note("ships", "Ships sail across the sea and anchor in a harbour.", kind="thing", legs=0),
    note("dogs", "Dogs bark at strangers and guard the house.", kind="animal", legs=4),
]


def sources(hits) -> list[str]:
    return [hit.source for hit in hits]


# -- finding --


@pytest.mark.parametrize("mode", ["hybrid", "dense", "keyword"])
def test_the_passage_that_fits_comes_first(kb, mode) -> None:
    kb.ingest_sync(*NOTES)

    hits = kb.search_sync("ships anchor in which harbour", mode=mode)

    assert hits[0].source == "ships"
    assert hits[0].text == NOTES[1].text[hits[0].start : hits[0].end]


async def test_the_asynchronous_form_does_the_same(kb) -> None:
    done = await kb.ingest(*NOTES)

    assert done.ingested == 3
    assert sources(await kb.search("cats purr", k=1)) == ["cats"]


def test_a_condition_decides_which_documents_count(kb) -> None:
    kb.ingest_sync(*NOTES)

    assert set(sources(kb.search_sync("sea", where="kind == 'animal'"))) == {"cats", "dogs"}
    assert (
        sources(
            kb.search_sync(
                "purr", where="source == 'dogs' or title contains 'SHIP'", k=9, per_document=1
            )
        )
        != []
    )
    assert kb.search_sync("purr", where="legs > 4") == []


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ("knd == 'animal'", "No document has a field 'knd'; the nearest is 'kind'.*kind, legs, so"),
        ("kind == 'animal' and not (leg > 1)", "No document has a field 'leg'"),
        ("legs == '4'", "'legs' is compared by '==' with '4', but holds values like 4"),
        ("legs in ['4']", "'legs' is compared by 'in'"),
        ("kind < 3", "'kind' is compared by '<' with 3, but holds values like 'animal'"),
        ("legs contains '4'", "'legs' is compared by 'contains'"),
    ],
)
def test_a_condition_that_no_document_can_meet_is_refused(kb, condition: str, problem: str) -> None:
    kb.ingest_sync(*NOTES)

    with pytest.raises(ConfigurationError, match=problem):
        kb.search_sync("sea", where=condition)


def test_scores_are_explained_and_add_up(kb) -> None:
    kb.ingest_sync(*NOTES)

    for fusion in ("convex", "rrf"):
        for hit in kb.search_sync(
            "dogs guard the house", explain=True, ranking=Ranking(fusion=fusion)
        ):
            why = hit.explanation
            assert hit.score == pytest.approx(
                why.fused - why.length_penalty + why.heading_boost, abs=1e-5
            )
            assert sum(each.score for each in why.terms) == pytest.approx(why.words, abs=1e-4)


def test_at_most_so_many_passages_of_a_document(kb) -> None:
    long = note(
        "long",
        "\n\n".join(
            f"Cats purr in room {number} of the large old house by the sea." for number in range(9)
        ),
    )
    kb.ingest_sync(long, *NOTES)

    assert sources(kb.search_sync("cats purr", k=4)).count("long") > 1
    assert sources(kb.search_sync("cats purr", k=4, per_document=1)).count("long") == 1


def test_diverse_passages_are_not_copies(kb) -> None:
    kb.ingest_sync(
        note("a", "cats purr loudly"),
        note("b", "cats purr loudly"),
        note("c", "cats chase small mice"),
    )

    plain = kb.search_sync("cats purr loudly", k=2, ranking=Ranking(heading_boost=0))
    diverse = kb.search_sync("cats purr loudly", k=2, diversity=0.7)

    assert {hit.source for hit in plain} == {"a", "b"}
    assert "c" in sources(diverse)


def test_neighbours_come_with_a_passage(kb) -> None:
    text = "\n\n".join(
        f"Paragraph number {n} speaks about topic{n} and nothing else at all here."
        for n in range(6)
    )
    kb.ingest_sync(note("long", text))

    (alone,) = kb.search_sync("topic3", k=1, mode="keyword")
    (wide,) = kb.search_sync("topic3", k=1, mode="keyword", neighbours=1)

    assert alone.text in wide.text
    assert "topic2" in wide.text
    assert "topic4" in wide.text
    assert wide.text == text[wide.start : wide.end]


def test_a_reranker_has_the_last_word(kb) -> None:
    kb.ingest_sync(*NOTES)

    def shortest(query, passages):
        return [-len(passage) for passage in passages]

    hits = kb.search_sync("cats", k=3, reranker=shortest)

    assert [len(hit.text) for hit in hits] == sorted(len(hit.text) for hit in hits)
    assert hits[0].explanation.reranked == hits[0].score
    with pytest.raises(ConfigurationError, match="0 scores"):
        kb.search_sync("cats", reranker=lambda query, passages: [])


async def test_other_wordings_are_searched_too(kb) -> None:
    await kb.ingest(*NOTES)

    async def expand(query):
        return ["bark at strangers"]

    hits = await kb.search("watchful animal", expander=expand, k=1)

    assert sources(hits) == ["dogs"]
    with pytest.raises(ConfigurationError, match="asynchronous"):
        kb.search_sync("x", expander=expand)


async def test_a_model_finds_other_wordings(kb) -> None:
    await kb.ingest(*NOTES)
    provider = ListProvider([["1. bark at ", "strangers\n- watchful animal\n\n* guard\nand more"]])
    expander = ProviderExpander(provider, count=2)

    hits = await kb.search("watchful animal", expander=expander, k=1)

    assert sources(hits) == ["dogs"]
    assert "in 2 other ways" in provider.requests[0].messages[0].text
    with pytest.raises(ConfigurationError, match="count is 0"):
        ProviderExpander(provider, count=0)


def test_a_hit_cites_its_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\nFirst words.\n\n## Cats\n\nCats purr\nand sleep.\n", encoding="utf-8"
    )
    with Knowledge(embedder=small_model(), chunker=StructureChunker(8)) as kb:
        kb.ingest_sync(page)

        (hit,) = kb.search_sync("cats purr", k=1)

        assert hit.citation == f"{page}#L5-L8"
        assert page.read_text(encoding="utf-8")[hit.start : hit.end] == hit.text
        assert hit.headings == ("Title", "Cats")
        assert hit.for_model().startswith("Title › Cats\n")
        assert hit.citation in hit.for_user()
        assert "purr" not in repr(hit.for_log())


# -- versions --


def test_a_document_has_versions_and_each_can_be_searched(kb) -> None:
    first = kb.ingest_sync(note("pets", "Cats purr."))
    between = datetime.now(UTC)
    second = kb.ingest_sync(note("pets", "Dogs bark."))
    third = kb.remove_sync("pets")

    assert kb.search_sync("cats") == []
    assert kb.search_sync("cats purr", at=first.version)[0].text == "Cats purr."
    assert kb.search_sync("cats purr", at=between)[0].text == "Cats purr."
    assert kb.search_sync("cats purr", at=second.version, mode="keyword") == []
    assert kb.search_sync("dogs", at=second.version)[0].version == 2
    assert [(v.number, v.removed) for v in kb.versions("pets")] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    assert kb.documents() == []
    assert [d.number for d in kb.documents(at=second.version)] == [2]
    assert kb.text("pets", 1) == "Cats purr."
    assert third == kb.version
    with pytest.raises(UnknownVersionError, match="version 3"):
        kb.text("pets")
    with pytest.raises(UnknownVersionError, match="never at version 99"):
        kb.search_sync("cats", at=99)
    with pytest.raises(ConfigurationError, match="time zone"):
        kb.search_sync("cats", at=datetime.fromisoformat("2026-01-01T00:00"))


def test_words_are_counted_as_of_the_version_that_is_searched(kb) -> None:
    first = kb.ingest_sync(*NOTES)
    before = kb.search_sync("cats sleep", mode="keyword")
    kb.ingest_sync(*(note(f"more{n}", f"cats sleep {n}") for n in range(20)))

    after = kb.search_sync("cats sleep", mode="keyword", at=first.version)

    assert [(hit.source, hit.score, hit.explanation.words) for hit in after] == [
        (hit.source, hit.score, hit.explanation.words) for hit in before
    ]


def test_what_did_not_change_is_no_work(kb) -> None:
    kb.ingest_sync(*NOTES)
    version = kb.version

    done = kb.ingest_sync(*NOTES, note("cats", "Cats purr even more."))

    assert (done.unchanged, done.changed, done.ingested) == (3, 1, 0)
    assert kb.version == version + 1


def test_a_file_that_was_only_touched_is_no_work(kb, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Cats\n\nCats purr.\n")
    kb.ingest_sync(page)
    os.utime(page, (1, 1))

    done = kb.ingest_sync(page)

    assert (done.unchanged, done.changed) == (1, 0)


def test_a_passage_that_was_seen_before_is_not_embedded_again() -> None:
    asked: list[str] = []

    def counting(texts):
        asked.extend(texts)
        return bag_of_words(texts)

    model = CallableEmbedder(counting, name="counting", dimension=DIMENSION)
    with Knowledge(embedder=model, chunker=StructureChunker(12)) as kb:
        kb.ingest_sync(note("a", "One two three four five six.\n\nSeven eight nine ten eleven."))
        done = kb.ingest_sync(
            note("a", "One two three four five six.\n\nSomething else is here now.")
        )

    assert (done.chunks, done.embedded) == (2, 1)
    assert len(asked) == len(set(asked)) == 3


# -- what happens is told --


def test_everything_is_told_on_the_bus(tmp_path: Path) -> None:
    (tmp_path / "good.md").write_text("# Good\nwords", encoding="utf-8")
    (tmp_path / "bad.pdf").write_bytes(b"no pdf")
    bus = EventBus()
    told = []
    bus.subscribe("**", told.append)
    with Knowledge(bus=bus, embedder=small_model()) as kb:
        done = kb.ingest_sync(tmp_path)
        (tmp_path / "good.md").write_text("# Good\nother words", encoding="utf-8")
        kb.ingest_sync(tmp_path / "good.md")
        kb.search_sync("words")
        kb.remove_sync(str(tmp_path / "good.md"))

    assert [event.message_name for event in told] == [
        "collection.created",
        "ingest.started",
        "document.skipped",
        "document.ingested",
        "ingest.finished",
        "ingest.started",
        "document.changed",
        "ingest.finished",
        "search.performed",
        "document.removed",
    ]
    assert done.skipped[0][0].endswith("bad.pdf")
    assert "damaged PDF" in done.skipped[0][1]
    finished = next(event for event in told if isinstance(event, IngestFinished))
    assert (finished.ingested, finished.skipped) == (1, 1)
    searched = next(event for event in told if isinstance(event, SearchPerformed))
    assert searched.found[0].source.endswith("good.md")
    bus.close()


def test_a_format_whose_library_is_missing_does_not_stop_the_others(tmp_path: Path) -> None:
    def read(source: str, content: bytes) -> Document:
        raise MissingDependencyError("Reading TeX needs the package tex.", extra="knowledge")

    (tmp_path / "a.tex").write_text("x")
    (tmp_path / "b.md").write_text("# Cats")
    with Knowledge(embedder=small_model(), loader=Loader(formats={".tex": read})) as kb:
        done = kb.ingest_sync(tmp_path / "a.tex", tmp_path / "b.md")

    assert done.ingested == 1
    assert done.skipped == ((str(tmp_path / "a.tex"), "Reading TeX needs the package tex."),)


def test_progress_counts_what_is_stored(kb) -> None:
    told, again = [], []
    # More passages than are stored together.
    large = note("large", "\n\n".join(f"part {number} of many words here" for number in range(900)))

    kb.ingest_sync(NOTES[0], large, NOTES[1], on_progress=told.append)
    kb.ingest_sync(NOTES[0], large, NOTES[1], on_progress=again.append)

    between = [each for each in told if each.embedded]
    assert [(e.done, e.total) for e in told if not e.embedded] == [(0, 3), (2, 3), (2, 3), (3, 3)]
    assert between
    assert all((each.done, each.read) == (0, 2) for each in between)
    assert [each.share for each in told] == sorted(each.share for each in told)
    assert told[-1].share == 1
    assert [each.done for each in again] == [1, 2, 3]
    assert told[-1].remaining == 0


# -- refusals --


def test_mixing_models_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as kb:
        kb.ingest_sync(*NOTES)

    with Knowledge(tmp_path, embedder=small_model("another")) as kb:
        with pytest.raises(ConfigurationError, match=r"'bag-of-words' \(64 numbers each\)"):
            kb.search_sync("cats")
        with pytest.raises(ConfigurationError, match="cannot be compared"):
            kb.ingest_sync(*NOTES)


@pytest.mark.parametrize(
    ("vectors", "problem"),
    [
        (lambda texts: bag_of_words(texts)[:, :3], "shape"),
        (lambda texts: bag_of_words(texts) * float("nan"), "NaN"),
        (lambda texts: bag_of_words(texts) * 0, "zeros"),
    ],
)
def test_vectors_that_are_none_are_refused_and_nothing_is_stored(vectors, problem: str) -> None:
    model = CallableEmbedder(vectors, name="broken", dimension=DIMENSION)
    with Knowledge(embedder=model) as kb:
        with pytest.raises(EmbeddingError, match=problem):
            kb.ingest_sync(*NOTES)

        assert kb.documents() == []


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"mode": "magic"},
        {"diversity": 2},
        {"per_document": 0},
        {"neighbours": -1},
        {"where": "a ="},
        {"where": {"kind": "animal"}},
        {"where": "(" * 1_000},
        {"at": "yesterday"},
        {"at": datetime(2026, 1, 1)},  # noqa: DTZ001 - which is the point
        {"k": "3"},
        {"k": 2.5},
        {"limit": 3},
        {"reranker": lambda query, passages: [float("nan")] * len(passages)},
        {"reranker": lambda query, passages: []},
    ],
)
def test_options_that_make_no_sense_are_refused(kb, options) -> None:
    kb.ingest_sync(*NOTES)

    with pytest.raises(ConfigurationError):
        kb.search_sync("cats", **options)


def test_names_that_are_unknown_are_refused_with_the_nearest(kb) -> None:
    kb.ingest_sync(*NOTES, collection="notes")

    with pytest.raises(UnknownNameError, match="'nots'; the nearest is 'notes'"):
        kb.search_sync("cats", collection="nots")
    with pytest.raises(UnknownNameError, match="'cat'.*; the nearest is 'cats'"):
        kb.remove_sync("cat", collection="notes")
    with pytest.raises(ConfigurationError, match="no name for a collection"):
        kb.ingest_sync(*NOTES, collection="a/b")
    with pytest.raises(ConfigurationError, match="Nothing was given"):
        kb.ingest_sync()
    with pytest.raises(DocumentError, match="stands for no file"):
        kb.ingest_sync("nowhere/*.md")
    for question in ("  ", 5):
        with pytest.raises(ConfigurationError, match=r"The question is .*Ask for something"):
            kb.search_sync(question, collection="notes")
    kb.remove_sync("cats", collection="notes")
    with pytest.raises(UnknownNameError, match="'cats' was removed before"):
        kb.remove_sync("cats", collection="notes")


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"source": ""}, "Document.source: ''"),
        ({"source": "a\0"}, "Document.source"),
        ({"source": "a\udc80"}, "Document.source"),
        ({"text": b"x"}, "Document.text: b'x' was given where a text is expected"),
        ({"title": None}, "Document.title"),
        ({"metadata": {"tags": ["a"]}}, r"Document.metadata.tags: \['a'\]"),
        ({"metadata": {"size": float("inf")}}, "Document.metadata.size"),
    ],
)
def test_a_document_that_cannot_be_kept_is_refused(facts, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Document(**{"source": "x", "text": "x", **facts})


def test_what_is_no_source_is_refused(kb) -> None:
    for nothing in (5, None, ["a.md"]):
        with pytest.raises(ConfigurationError, match="cannot be ingested"):
            kb.ingest_sync(nothing)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes")
def test_a_file_whose_name_is_no_text_is_skipped(kb, tmp_path: Path) -> None:
    (tmp_path / "ok.md").write_text("# Cats")
    (tmp_path / "bad\udcff.md").write_text("# Dogs")

    done = kb.ingest_sync(tmp_path)

    assert done.ingested == 1
    ((_, reason),) = done.skipped
    assert "without NUL and lone surrogates" in reason


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    for path in (tmp_path / "file", tmp_path / "file" / "kb"):
        with pytest.raises(StoreError, match=r"file.* cannot be made: .*Give the path of a folder"):
            Knowledge(path)


def test_a_closed_knowledge_base_says_so(kb) -> None:
    kb.close()
    kb.close()

    with pytest.raises(KnowledgeError, match="closed"):
        kb.search_sync("cats")


# -- on disk --


def test_everything_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with opened(tmp_path) as kb:
        first = kb.ingest_sync(*NOTES)
        kb.ingest_sync(note("cats", "Cats chase mice."))
        hits = kb.search_sync("cats", k=3)

    with opened(tmp_path) as kb:
        assert kb.search_sync("cats", k=3) == hits
        assert kb.search_sync("cats purr", at=first.version)[0].version == 1
        assert kb.ingest_sync(*NOTES[1:]).unchanged == 2
        assert [info.name for info in kb.collections()] == ["main"]


@pytest.mark.parametrize(
    ("victim", "damage"),
    [
        *(
            (name, how)
            for name in ("words-*", "vectors-*")
            for how in ("deleted", "emptied", "flipped")
        ),
        ("chroma/**/*", "deleted"),
        ("chroma/**/*", "flipped"),
        ("index.json", "emptied"),
    ],
)
def test_what_is_made_from_the_log_may_be_lost(tmp_path: Path, victim: str, damage: str) -> None:
    # Chroma takes seconds to be looked into; where it is not the victim, another serves as well.
    store = None if victim in {"chroma/**/*", "index.json"} else MemoryStore()
    with opened(tmp_path, store=store) as kb:
        kb.ingest_sync(*NOTES)
        hits = kb.search_sync("cats sleep", k=3)
    for path in sorted(tmp_path.glob(victim)):
        if path.is_file():
            content = bytearray(path.read_bytes())
            if damage == "flipped" and content:
                content[len(content) // 2] ^= 0xFF
            path.write_bytes(content if damage == "flipped" else b"")
            if damage == "deleted":
                path.unlink()

    with opened(tmp_path, store=store) as kb:
        assert kb.search_sync("cats sleep", k=3) == hits
        kb.ingest_sync(note("more", "Mice squeak."))
        assert kb.search_sync("mice squeak", k=1)[0].source == "more"


@pytest.mark.parametrize("victim", ["data_level0.bin", "length.bin"])
def test_a_graph_that_differs_from_what_was_left_is_made_again(tmp_path: Path, victim: str) -> None:
    # Chroma opens it without a word, and would find something else.
    many = "\n\n".join(f"part {number} about the sea and ships" for number in range(1_200))
    with opened(tmp_path, chunker=StructureChunker(8)) as kb:
        passages = kb.ingest_sync(note("ships", many)).chunks
    (path,) = tmp_path.glob(f"chroma/*/{victim}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    told: list[IndexRebuilt] = []
    bus = EventBus()
    bus.subscribe(IndexRebuilt, told.append)

    with opened(tmp_path, bus=bus) as kb:
        kb.ingest_sync(note("more", "Mice squeak."))

    assert [(each.reason, each.added) for each in told if each.index == "vectors"] == [
        ("it was damaged", passages)
    ]


def test_a_store_of_ones_own_is_kept_in_step() -> None:
    store = MemoryStore()
    with Knowledge(embedder=small_model(), store=store) as kb:
        kb.ingest_sync(*NOTES)
        kb.ingest_sync(note("cats", "Cats chase mice."))
        kb.remove_sync("ships")

        assert len(store.ids("main")) == 2
        assert sources(kb.search_sync("mice", k=1)) == ["cats"]


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    program = (
        "import sys; from support.knowledge import *; from atlas.knowledge import Knowledge\n"
        f"kb = Knowledge({str(tmp_path)!r}, embedder=small_model()); kb.ingest_sync(note('theirs', 'Birds sing.'))\n"
        "print('ready', flush=True); sys.stdin.readline(); kb.ingest_sync(note('later', 'Fish swim.'))\n"
        "print('done', flush=True); sys.stdin.readline(); kb.close()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    with other, opened(tmp_path, timeout=0.2) as kb:
        assert other.stdout.readline() == "ready\n"
        assert sources(kb.search_sync("birds", k=1)) == ["theirs"]
        with pytest.raises(StoreError, match=f"process {other.pid}"):
            kb.ingest_sync(*NOTES)
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "done\n"
        assert sources(kb.search_sync("fish swim", k=1)) == ["later"]
        other.communicate("\n")
        kb.ingest_sync(*NOTES)
        assert sources(kb.search_sync("cats purr", k=1)) == ["cats"]


# -- many at once --


def test_readers_see_each_document_whole_while_one_writes(tmp_path: Path) -> None:
    parts = 5
    problems: list[object] = []
    finished = threading.Event()

    def paper(number: int, version: int):
        text = "\n\n".join(
            f"paper{number} part {part} edition{version} about the sea and ships."
            for part in range(parts)
        )
        return note(f"paper{number}", text)

    def read() -> None:
        while not finished.is_set():
            for mode in ("keyword", "hybrid"):
                hits = kb.search_sync("sea ships", k=500, mode=mode, where="source != 'base'")
                seen: dict[str, list[int]] = {}
                for hit in hits:
                    seen.setdefault(hit.source, []).append(hit.version)
                problems.extend(s for s, v in seen.items() if len(v) != parts or len(set(v)) != 1)

    store = MemoryStore()
    with Knowledge(
        tmp_path, embedder=small_model(), chunker=StructureChunker(12), store=store
    ) as kb:
        kb.ingest_sync(note("base", "The sea and ships."))
        readers = [threading.Thread(target=read) for _ in range(8)]
        for reader in readers:
            reader.start()
        for version in range(3):
            for number in range(12):
                kb.ingest_sync(paper(number, version))
        finished.set()
        for reader in readers:
            reader.join()

    assert problems == []


async def test_an_ingest_that_is_cancelled_leaves_whole_documents(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    def slow(texts):
        entered.set()
        release.wait(30)
        return bag_of_words(texts)

    model = CallableEmbedder(slow, name="slow", dimension=DIMENSION)
    async with Knowledge(tmp_path, embedder=model) as kb:
        task = asyncio.create_task(kb.ingest(*NOTES))
        await asyncio.to_thread(entered.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()

        done = await asyncio.to_thread(kb.ingest_sync, *NOTES)

        assert done.ingested + done.unchanged == 3
        assert len(kb.documents()) == 3


# -- context for a model --


async def test_a_knowledge_base_is_a_source_of_context(kb) -> None:
    await kb.ingest(*NOTES)

    passages = await kb.passages("what do dogs guard?")
    packed = pack_context(passages, 500)

    assert isinstance(kb, ContextSource)
    assert isinstance(kb.searching(k=1), ContextSource)
    assert len(await kb.searching(k=1).passages("dogs")) == 1
    assert "[1] dogs" in packed.text
    assert packed.cited("They guard the house [1].")[1].source == "dogs"
