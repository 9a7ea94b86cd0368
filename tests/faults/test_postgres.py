"""kill -9 of PostgreSQL, its postmaster first, and of those who write to it, at random moments."""

from __future__ import annotations

import os
import random

import pytest

from faults.checks import Acknowledged, Verdict, examined
from faults.counts import SEED, count
from faults.killing import Writers
from faults.stores import open_store
from faults.writer import Job

from support.postgres import PostgresServer

KILLS_PER_LOG = 5


def kill_server(writers: Writers, server: PostgresServer, job: Job, chance: random.Random) -> bytes:
    """Start a writer, kill the server after a random number of acknowledgements; return them."""
    _, told = writers.start(job)
    said, enough = b"", chance.choice((1, chance.randrange(40), chance.randrange(300)))
    with os.fdopen(told, "rb", buffering=0) as saying:
        while said.count(b"\n") < enough and (more := saying.read(65536)):
            said += more
        server.kill()
        # It ends by itself, as its appends fail.
        while more := saying.read(65536):
            said += more
    server.start()
    return said


def judged(job: Job, acknowledged: Acknowledged) -> tuple[Verdict, str]:
    store = open_store(job.store, job.path)
    verdict, problem = examined(store, acknowledged), store.verify()
    store.close()
    return verdict, problem


def test_a_killed_server_and_killed_writers_lose_nothing_acknowledged_and_tear_nothing(
    writers: Writers, postgres_server: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, acks, records = random.Random(SEED), 0, 0
    kills = count(KILLS_PER_LOG, 100)
    for kill in range(kills):
        if kill % KILLS_PER_LOG == 0:
            address, acknowledged = postgres_server.new_log(), Acknowledged()
        job = Job("postgres-power", address, f"kill{kill}", seed=chance.randrange(1 << 30))
        if kill % KILLS_PER_LOG == 2:
            acknowledged.read(writers.start_and_kill(job, chance))
        else:
            acknowledged.read(kill_server(writers, postgres_server, job, chance))
        verdict, problem = judged(job, acknowledged)

        assert problem == ""
        assert verdict.ok, f"kill {kill}: {verdict}"
        if (kill + 1) % KILLS_PER_LOG == 0:
            acks, records = acks + len(acknowledged.batches), records + verdict.records
    with capsys.disabled():
        print(
            f"\n  {kills} kills, {kills * 4 // 5} of PostgreSQL: {acks:,} batches acknowledged, "
            f"{records:,} records, 0 lost, 0 torn, 0 twins"
        )
    assert acks > kills


def test_a_killed_server_may_cost_the_end_where_appends_do_not_wait_for_its_disk(
    writers: Writers, postgres_server: PostgresServer
) -> None:
    """The control: these kills lose what was not written; and nothing but that."""
    chance, lost = random.Random(SEED), 0
    for kill in range(count(3, 20)):
        job = Job("postgres-process", postgres_server.new_log(), f"kill{kill}", seed=kill)
        acknowledged = Acknowledged()
        acknowledged.read(kill_server(writers, postgres_server, job, chance))
        verdict, problem = judged(job, acknowledged)

        assert problem == ""
        assert (verdict.torn, verdict.twins, verdict.disordered) == ([], [], [])
        lost += len(verdict.lost)

    assert lost > 0
