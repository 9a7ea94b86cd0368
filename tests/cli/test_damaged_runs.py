"""One damaged run: the others are listed, and what is damaged is told."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from atlas.core.log.controller import LOGS


@pytest.fixture
def damaged(atlas, tmp_path: Path) -> tuple[str, list[str]]:
    """A log of three runs, the second of which has a first page that is not what was written."""
    db = str(tmp_path / "talk.db")
    for word in ("one", "two", "three"):
        assert atlas("chat", "--provider", "scripted", "--db", db, word).code == 0
    runs = [each["run"] for each in json.loads(atlas("runs", "--db", db, "--json").out)]
    with closing(sqlite3.connect(db)) as connection:
        (stream,) = connection.execute(
            "SELECT id FROM streams WHERE stream = ?", (f"run/{runs[1]}",)
        ).fetchone()
        changed = connection.execute(
            "UPDATE events SET payload = x'00' WHERE stream_id = ?", (stream,)
        ).rowcount
        connection.commit()
    assert changed
    return db, runs


def test_a_damaged_run_is_listed_among_the_others(atlas, damaged: tuple[str, list[str]]) -> None:
    db, runs = damaged

    ran = atlas("runs", "--db", db, "--json")
    listed = json.loads(ran.out)

    assert ran.code == 1
    assert [each["run"] for each in listed] == runs
    assert [each["status"] for each in listed] == ["completed", "damaged", "completed"]
    assert listed[1].keys() - {"problem"} == listed[0].keys()
    assert listed[1]["events"] == listed[0]["events"]
    assert listed[1]["problem"]


def test_people_are_told_which_run_is_damaged(atlas, damaged: tuple[str, list[str]]) -> None:
    db, runs = damaged

    ran = atlas("runs", "--db", db)

    assert ran.code == 1
    assert [line.split()[0] for line in ran.out.splitlines()] == runs
    assert f"{runs[1]} is damaged: " in ran.err
    assert "atlas verify" in ran.err


def test_the_other_runs_are_listed_without_a_word(atlas, damaged: tuple[str, list[str]]) -> None:
    ran = atlas("runs", "--db", damaged[0], "--last", "1")

    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("run", [0, 2])
def test_the_other_runs_are_shown(run: int, atlas, damaged: tuple[str, list[str]]) -> None:
    assert atlas("show", damaged[1][run], "--db", damaged[0]).code == 0


def test_what_waits_in_the_other_runs_is_told(atlas, damaged: tuple[str, list[str]]) -> None:
    db, runs = damaged

    listed = atlas("agents", "approvals", "--db", db)
    refused = atlas("agents", "approve", "nothing", "--db", db)

    assert (listed.code, listed.out) == (1, "Nothing waits for a person.\n")
    assert f"{runs[1]} is damaged: " in listed.err
    assert refused.code == 2
    assert "Nothing waits for 'nothing'" in refused.err


def test_a_run_that_was_erased_is_listed_as_such(atlas, tmp_path: Path) -> None:
    db = str(tmp_path / "talk.db")
    assert atlas("chat", "--provider", "scripted", "--db", db, "Hello").code == 0
    (run,) = json.loads(atlas("runs", "--db", db, "--json").out)
    engine = LOGS.open_log(db)
    try:
        engine.erase(f"run/{run['run']}")
    finally:
        LOGS.close_log(engine)

    ran = atlas("runs", "--db", db, "--json")

    assert ran.code == 0
    assert [each["status"] for each in json.loads(ran.out)] == ["erased"]
    assert atlas("agents", "approvals", "--db", db).code == 0
