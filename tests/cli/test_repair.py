"""``atlas repair``: a damaged log is usable again, and the damaged file is kept."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from atlas.core.temporal_store import TemporalStore


def add_up(total: int, event: int) -> int:
    return total + event


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.db"
    with TemporalStore(path) as store:
        for number in range(40):
            store.timeline("count").append(number).wait()
    return path


def test_a_log_with_a_damaged_header_keeps_every_record(atlas, log: Path) -> None:
    damaged = bytes(100) + log.read_bytes()[100:]
    log.write_bytes(damaged)
    assert atlas("verify", "--db", str(log)).code == 1
    ran = atlas("repair", "--db", str(log))

    assert ran.code == 0, ran.err
    assert "40 good records" in ran.out
    assert atlas("verify", "--db", str(log)).code == 0
    assert log.with_name("log.db.set-aside-1").read_bytes() == damaged
    with TemporalStore(log) as store:
        assert store.timeline("count", add_up, initial=0).now() == sum(range(40))


def test_what_comes_after_a_bad_record_is_set_aside(atlas, log: Path) -> None:
    with closing(sqlite3.connect(log)) as connection:
        connection.execute("UPDATE events SET payload = x'3939' WHERE position = 20")
        connection.commit()
    ran = atlas("repair", "--db", str(log), "--json")
    done = json.loads(ran.out)

    assert ran.code == 0, ran.err
    assert (done["kept"], done["set_aside"]) == (19, 21)
    assert atlas("verify", "--db", str(log)).code == 0


def test_a_log_that_is_whole_is_left_as_it_is(atlas, log: Path) -> None:
    before = log.read_bytes()
    ran = atlas("repair", "--db", str(log))

    assert (ran.code, log.read_bytes()) == (0, before)
    assert "nothing to repair" in ran.out
    assert "There is no log at" in atlas("repair", "--db", str(log.with_name("none.db"))).err
