"""kill -9 at random moments: a process that dies while it writes loses and tears nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from faults.checks import Acknowledged, judge
from faults.counts import SEED, count
from faults.shim import HERE
from faults.stores import open_store
from faults.writer import Job

KILLS_PER_FILE = 25


def killed_writer(job: Job, chance: random.Random) -> bytes:
    """Start a writer, kill it after a random number of acknowledgements; return what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "faults.writer", json.dumps(asdict(job))],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert process.stdout is not None
    said, enough = b"", chance.choice((0, 1, chance.randrange(20), chance.randrange(200)))
    while said.count(b"\n") < enough and (more := os.read(process.stdout.fileno(), 65536)):
        said += more
    if enough == 0:
        time.sleep(chance.uniform(0, 0.4))  # anywhere: also while the file is opened or made
    process.send_signal(signal.SIGKILL)
    said += process.stdout.read()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    return said


def test_a_killed_writer_loses_nothing_acknowledged_and_tears_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    kills, reopened, records, acks = count(25, 1_000), [], 0, 0
    for kill in range(kills):
        durability = ("atlas-power", "atlas-process")[kill // KILLS_PER_FILE % 2]
        path = tmp_path / f"{kill // KILLS_PER_FILE}.db"
        if kill % KILLS_PER_FILE == 0:
            acknowledged = Acknowledged()
        job = Job(durability, str(path), f"kill{kill}", seed=chance.randrange(1 << 30))
        acknowledged.read(killed_writer(job, chance))

        started = time.perf_counter()
        store = open_store(durability, path)
        reopened.append(time.perf_counter() - started)
        verdict, problem = judge(store.rows(), acknowledged), store.verify()
        store.close()

        assert problem == ""
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


def test_the_same_kills_find_out_a_store_that_acknowledges_too_early(tmp_path: Path) -> None:
    path, acknowledged, chance = tmp_path / "early.db", Acknowledged(), random.Random(SEED)
    for kill in range(4):
        job = Job("early-ack", str(path), f"kill{kill}", seed=kill)
        acknowledged.read(killed_writer(job, chance))
    store = open_store("raw-normal", path)
    verdict = judge(store.rows(), acknowledged)
    store.close()

    assert verdict.lost != []
    assert verdict.torn != []
