"""The commands about runs: what is in a log, at any moment, and what is asked for wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def talk(atlas, tmp_path: Path) -> str:
    db = str(tmp_path / "talk.db")
    assert atlas("chat", "--provider", "scripted", "--db", db, "Hello 😀").code == 0
    return db


def the_run(atlas, db: str) -> str:
    (run,) = json.loads(atlas("runs", "--db", db, "--json").out)
    return str(run["run"])


@pytest.mark.parametrize(
    "command", ["runs", "show", "verify", "replay", "fork x --at 1", "resume x"]
)
def test_a_log_that_is_not_there_is_not_made(command: str, atlas, tmp_path: Path) -> None:
    db = tmp_path / "typo.db"
    ran = atlas(*command.split(), "--db", str(db))
    assert ran.code == 1
    assert "There is no log at" in ran.err
    assert not db.exists()


@pytest.mark.parametrize(
    "moment", ["", "now", "+nan", "+inf", "+1e300", "+-1", "2026", "0001-01-01T00:00:00"]
)
def test_a_time_that_is_none_is_told_in_a_sentence(moment: str, atlas, talk: str) -> None:
    ran = atlas("show", "--db", talk, f"--time={moment}")
    assert (ran.code, ran.out) in [(2, ""), (0, ran.out)]
    assert "Traceback" not in ran.err


def test_events_counted_from_the_end_are_named_by_their_number(atlas, talk: str) -> None:
    last = json.loads(atlas("show", "--db", talk, "--at", "-1", "--json").out)
    assert last == json.loads(atlas("show", "--db", talk, "--time", "9999-01-01", "--json").out)
    assert last["at"] == json.loads(atlas("runs", "--db", talk, "--json").out)[0]["events"]


def test_a_run_is_replayed_and_forked_by_its_id(atlas, talk: str) -> None:
    run = the_run(atlas, talk)
    assert json.loads(atlas("replay", "--db", talk, "--json").out)["run"].startswith(f"{run}~")
    forked = atlas(
        "fork", run, "--at", "0", "-p", "scripted", "--prompt", "Bye", "--db", talk, "--json"
    )
    fork = json.loads(forked.out)["run"]
    assert atlas("replay", fork, "--db", talk).code == 0
    compared = atlas("diff", run, fork, "--db", talk, "--json")
    assert compared.code == 1
    assert not json.loads(compared.out)["same"]
