"""What every store of vectors does: the one in memory, and Chroma in a folder and on a server."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from atlas.errors import ConfigurationError, StoreError, UnknownNameError, ValidationError
from atlas.knowledge import (
    ChromaStore,
    CollectionInfo,
    Entry,
    Knowledge,
    KnowledgeStore,
    MemoryStore,
    parse_filter,
)
from atlas.knowledge.chroma import probe

from support.knowledge import note, small_model

INFO = CollectionInfo("notes", "model", 3)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[int]:
    """The port of a Chroma server, which runs for as long as this module is tested."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = "import sys; from chromadb.cli.cli import app; sys.exit(app())"
    folder = str(tmp_path_factory.mktemp("server"))
    process = subprocess.Popen(
        [sys.executable, "-c", run, "run", "--path", folder, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        assert process.stdout is not None
        assert any(b"listening" in line for line in process.stdout), "the server did not start"
        # It would stop when nobody read what it says.
        reader = threading.Thread(target=process.stdout.read)
        reader.start()
        yield port
        process.kill()
        reader.join()


@pytest.fixture(params=["memory", "folder", "server"])
def store(request, tmp_path: Path) -> Iterator[KnowledgeStore]:
    made: KnowledgeStore
    if request.param == "memory":
        made = MemoryStore()
    elif request.param == "folder":
        made = ChromaStore(tmp_path / "c")
    else:
        made = ChromaStore(host="127.0.0.1", port=request.getfixturevalue("server"))
    made.create(INFO)
    yield made
    for info in made.collections():
        made.drop(info.name)
    made.close()


def entry(key: str, /, *numbers: float, **fields) -> Entry:
    return Entry(key, np.array(numbers, np.float32), fields)


def found(
    store: KnowledgeStore, *numbers: float, k: int = 10, where: str | None = None
) -> list[str]:
    condition = None if where is None else parse_filter(where)
    return [m.id for m in store.query("notes", np.array(numbers, np.float32), k, where=condition)]


def test_the_most_similar_come_first_with_their_cosines(store) -> None:
    store.put("notes", [entry("x", 2, 0, 0), entry("xy", 1, 1, 0), entry("y", 0, 1, 0)])

    matches = store.query("notes", np.array([1, 0, 0], np.float32), 3)

    assert [match.id for match in matches] == ["x", "xy", "y"]
    assert [match.similarity for match in matches] == pytest.approx([1, 0.7071, 0], abs=1e-3)
    assert found(store, 1, 0, 0, k=2) == ["x", "xy"]


def test_what_is_put_again_is_replaced_whole(store) -> None:
    store.put("notes", [entry("a", 1, 0, 0, colour="red", size=1)])
    store.put("notes", [entry("a", 0, 1, 0, colour="blue"), entry("b", 1, 0, 0)])
    store.put("notes", [entry("b", 0, 0, 1), entry("b", 1, 0, 0)])

    assert store.ids("notes") == {"a", "b"}
    assert found(store, 1, 0, 0) == ["b", "a"]
    assert found(store, 1, 0, 0, where="colour == 'blue'") == ["a"]
    assert found(store, 1, 0, 0, where="size == 1") == []


def test_what_is_deleted_is_gone_and_what_is_not_there_is_no_error(store) -> None:
    store.put("notes", [entry("a", 1, 0, 0), entry("b", 0, 1, 0)])

    store.delete("notes", ["a", "never"])

    assert store.ids("notes") == {"b"}
    assert found(store, 1, 0, 0) == ["b"]


def test_nothing_is_found_in_an_empty_collection(store) -> None:
    assert found(store, 1, 0, 0) == []
    assert store.ids("notes") == set()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("year >= 2020", {"b", "c"}),
        ("year in [2019, 2021]", {"a", "c"}),
        ("not year == 2019", {"b", "c", "d"}),
        ("year != 2019", {"b", "c", "d"}),
        ("name contains 'AN'", {"a", "b"}),
        ("year > 2019 and name contains 'bo' or draft == true", {"c", "d"}),
        ("year == 1990", set()),
    ],
)
def test_conditions_mean_the_same_everywhere(store, where: str, expected: set[str]) -> None:
    store.put(
        "notes",
        [
            entry("a", 1, 0, 0, year=2019, name="Anna"),
            entry("b", 1, 0, 0, year=2020, name="Dan"),
            entry("c", 1, 0, 0, year=2021, name="Bob"),
            entry("d", 1, 0, 0, draft=True),
        ],
    )

    assert set(found(store, 1, 0, 0, where=where)) == expected


@pytest.mark.parametrize("numbers", [(1, 0), (1, 0, float("nan")), (1, 0, float("inf"))])
def test_vectors_that_are_none_are_refused(store, numbers) -> None:
    with pytest.raises(ValidationError, match="vector"):
        store.put("notes", [entry("good", 1, 0, 0), entry("bad", *numbers)])
    with pytest.raises(ValidationError, match="question"):
        store.query("notes", np.array(numbers, np.float32), 1)

    assert store.ids("notes") == set()


def test_an_unknown_collection_is_named_with_the_nearest(store) -> None:
    for use in (
        lambda: store.put("nots", [entry("a", 1, 0, 0)]),
        lambda: store.delete("nots", ["a"]),
        lambda: store.ids("nots"),
        lambda: store.query("nots", np.ones(3, np.float32), 1),
    ):
        with pytest.raises(UnknownNameError, match="'nots'; the nearest is 'notes'"):
            use()


def test_models_do_not_mix(store) -> None:
    store.create(INFO)

    with pytest.raises(ConfigurationError, match="cannot be compared"):
        store.create(CollectionInfo("notes", "other", 3))
    with pytest.raises(ConfigurationError, match="cannot be compared"):
        store.create(CollectionInfo("notes", "model", 4))


def test_collections_are_listed_and_dropped(store) -> None:
    store.create(CollectionInfo("more", "other", 2))

    assert [info.name for info in store.collections()] == ["more", "notes"]
    store.drop("more")
    store.drop("never")
    assert store.collections() == [INFO]


def test_more_entries_than_a_batch(store) -> None:
    vectors = np.random.default_rng(1).standard_normal((4_500, 3)).astype(np.float32)

    store.put("notes", [Entry(str(i), vector) for i, vector in enumerate(vectors)])

    assert len(store.ids("notes")) == 4_500
    store.delete("notes", [str(i) for i in range(4_400)])
    assert len(store.ids("notes")) == 100


# -- Chroma's own --


def test_a_chroma_store_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    store = ChromaStore(tmp_path / "c")
    store.create(INFO)
    store.put("notes", [entry("a", 1, 0, 0)])
    store.close()

    again = ChromaStore(tmp_path / "c")

    assert again.collections() == [INFO]
    assert found(again, 1, 0, 0) == ["a"]
    again.close()
    with pytest.raises(StoreError, match="closed"):
        again.collections()


def test_tidying_up_leaves_each_vector_once_on_disk(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((1_100, 384)).astype(np.float32)
    store = ChromaStore(tmp_path / "c")
    store.create(CollectionInfo("notes", "model", 384))
    store.put("notes", [Entry(str(i), vector) for i, vector in enumerate(vectors)])
    store.delete("notes", ["5"])
    store.tidy_up()

    again = ChromaStore(tmp_path / "c")
    # The vectors once; links, ids and Chroma's tables beside.
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size < 1.4 * vectors.nbytes
    assert again.ids("notes") == {str(i) for i in range(1_100)} - {"5"}
    assert again.query("notes", vectors[1_099], 1)[0].id == "1099"
    again.put("notes", [Entry("5", vectors[5])])
    again.tidy_up()
    with closing(ChromaStore(tmp_path / "c")) as third:
        assert len(third.ids("notes")) == 1_100


def test_a_store_that_cannot_be_tidied_up_is_closed_nevertheless(tmp_path: Path) -> None:
    store = ChromaStore(tmp_path / "c")
    store.create(INFO)
    vectors = np.random.default_rng(1).standard_normal((200, 3)).astype(np.float32)
    store.put("notes", [Entry(str(i), vector) for i, vector in enumerate(vectors)])
    other = ChromaStore(tmp_path / "c")
    other.drop("notes")
    other.close()

    with pytest.raises(StoreError):
        store.tidy_up()
    with pytest.raises(StoreError, match="closed"):
        store.collections()


def test_a_probe_tells_a_sound_folder_from_a_damaged_one(tmp_path: Path) -> None:
    store = ChromaStore(tmp_path / "c")
    store.create(INFO)
    vectors = np.random.default_rng(1).standard_normal((1_500, 3)).astype(np.float32)
    store.put("notes", [Entry(str(i), vector) for i, vector in enumerate(vectors)])
    store.close()

    assert probe(tmp_path / "none") == "empty"
    assert probe(tmp_path / "c") == "sound"
    database = tmp_path / "c" / "chroma.sqlite3"
    database.write_bytes(database.read_bytes()[:20_000])
    assert probe(tmp_path / "c") == "damaged"


def test_a_knowledge_base_on_a_server(tmp_path: Path, server: int) -> None:
    with (
        closing(ChromaStore(host="127.0.0.1", port=server)) as store,
        Knowledge(tmp_path, embedder=small_model(), store=store) as kb,
    ):
        kb.ingest_sync(note("ships", "Ships sail the sea."), note("bread", "Bread is baked."))
        (hit,) = kb.search_sync("the sea", k=1)
        kb.ingest_sync(note("bread", "Bread is baked in an oven."))

        assert hit.source == "ships"
        assert len(store.ids("main")) == 2
        store.drop("main")


def test_a_server_that_is_not_there_is_told(unused_port: int) -> None:
    with pytest.raises(StoreError, match=f"127.0.0.1:{unused_port}"):
        ChromaStore(host="127.0.0.1", port=unused_port)
