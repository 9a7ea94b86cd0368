"""kill -9 at random moments: a process that dies while it writes loses and tears nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from faults.checks import Acknowledged, examined, judge, secret_of
from faults.counts import SEED, count
from faults.shim import HERE
from faults.stores import open_store
from faults.writer import Job

KILLS_PER_FILE = 25


class Writers:
    """Starts writers, and kills them."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.writer", "serve", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        theirs.close()

    def close(self) -> None:
        self._connection.close()
        self._server.wait()

    def start(self, job: Job) -> tuple[int, int]:
        """Start a writer; return its id, and where to read what it was told is stored."""
        told, say = os.pipe()
        socket.send_fds(self._connection, [json.dumps(asdict(job)).encode()], [say])
        os.close(say)
        return int(self._connection.recv(100)), told

    def start_and_kill(self, job: Job, chance: random.Random) -> bytes:
        """Start a writer, kill it after a random number of acknowledgements; return them."""
        writer, told = self.start(job)
        said, enough = b"", chance.choice((0, 1, chance.randrange(20), chance.randrange(200)))
        while said.count(b"\n") < enough and (more := os.read(told, 65536)):
            said += more
        if enough == 0:
            time.sleep(chance.uniform(0, 0.05))  # anywhere: also while the file is opened or made
        return said + kill(writer, told)


def kill(writer: int, told: int) -> bytes:
    """Kill a writer; return what it said last."""
    os.kill(writer, signal.SIGKILL)
    with open(told, "rb") as rest:  # ends when the process has
        return rest.read()


@pytest.fixture
def writers() -> Iterator[Writers]:
    found = Writers()
    yield found
    found.close()


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
    acknowledged.read(said + kill(survivor, told))
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
