"""kill -9 at random moments: a process that dies while it writes loses and tears nothing."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from faults.checks import Acknowledged, examined, judge, secret_of
from faults.counts import SEED, count
from faults.killing import Writers, put_down
from faults.stores import open_store
from faults.writer import Job

KILLS_PER_FILE = 25


def test_a_killed_writer_loses_nothing_acknowledged_and_tears_nothing(
    writers: Writers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    kills, reopened, records, acks = count(25, 1_000), [], 0, 0
    for kill in range(kills):
        durability = ("atlas-power", "atlas-process")[kill // KILLS_PER_FILE % 2]
        path = tmp_path / f"{kill // KILLS_PER_FILE}.db"
        if kill % KILLS_PER_FILE == 0:
            acknowledged = Acknowledged()
        job = Job(durability, str(path), f"kill{kill}", seed=chance.randrange(1 << 30))
        acknowledged.read(writers.start_and_kill(job, chance))

        left = b"".join(file.read_bytes() for file in tmp_path.glob(f"{path.name}*"))
        started = time.perf_counter()
        store = open_store(durability, path)
        reopened.append(time.perf_counter() - started)
        verdict, problem = examined(store, acknowledged), store.verify()
        store.close()

        assert problem == ""
        assert not any(secret_of(stream) in left for stream in acknowledged.erased)
        assert verdict.ok, f"kill {kill}: {verdict}"
        if (kill + 1) % KILLS_PER_FILE == 0:
            records, acks = records + verdict.records, acks + len(acknowledged.batches)
            path.unlink()
    reopened.sort()
    with capsys.disabled():
        print(
            f"\n  {kills} kills: {acks:,} batches acknowledged, {records:,} records, 0 lost, 0 torn, "
            f"0 twins; reopened in {reopened[kills // 2] * 1e3:.1f} ms (p50), "
            f"{reopened[int(kills * 0.99)] * 1e3:.1f} ms (p99)"
        )
    assert acks > kills


def test_a_killed_writer_does_not_hinder_the_others(writers: Writers, tmp_path: Path) -> None:
    chance, path, acknowledged = random.Random(SEED), tmp_path / "runs.db", Acknowledged()
    open_store("atlas-power", path).close()
    survivor, told = writers.start(Job("atlas-power", str(path), "survivor", seed=1, alone=False))
    said = b""
    for number in range(count(6, 100)):
        job = Job("atlas-power", str(path), f"victim{number}", seed=number, alone=False)
        acknowledged.read(writers.start_and_kill(job, chance))
        before = said.count(b"\n")
        while said.count(b"\n") <= before:
            more = os.read(told, 65536)
            assert more, "the survivor has died, too"
            said += more
    acknowledged.read(said + put_down(survivor, told))
    store = open_store("atlas-power", path)
    verdict, problem = examined(store, acknowledged), store.verify()
    store.close()

    assert problem == ""
    assert verdict.ok, verdict


def test_the_same_kills_find_out_a_store_that_acknowledges_too_early(
    writers: Writers, tmp_path: Path
) -> None:
    path, acknowledged, chance = tmp_path / "early.db", Acknowledged(), random.Random(SEED)
    for kill in range(4):
        job = Job("early-ack", str(path), f"kill{kill}", seed=kill)
        acknowledged.read(writers.start_and_kill(job, chance))
    store = open_store("raw-normal", path)
    verdict = judge(store.rows(), acknowledged)
    store.close()

    assert verdict.lost != []
    assert verdict.torn != []
