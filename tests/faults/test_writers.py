"""Several processes write to one log: what each was told is stored is there, once, in one order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.checks import Acknowledged, Verdict, judge
from faults.counts import FULL, count
from faults.shim import HERE
from faults.stores import Row, open_store


def race(kind: str, path: Path, racers: int, times: int) -> tuple[Verdict, list[Row], int]:
    """Let processes race; return the verdict, all records and how many conflicts there were."""
    open_store(kind, path).close()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "faults.racer", kind, str(path), f"racer{number}", str(times)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        )
        for number in range(racers)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said, conflicts = Acknowledged(), 0
    for process in processes:
        report = json.loads(process.communicate(timeout=110)[0])
        said.batches.update(report["stored"])
        conflicts += report["conflicts"]
    store = open_store(kind, path)
    rows = store.rows()
    assert store.verify() == ""
    store.close()
    return judge(rows, said), rows, conflicts


@pytest.mark.parametrize("racers", [2, 4, 8] if FULL else [2, 4])
def test_racing_processes_store_what_they_acknowledge_once(racers: int, tmp_path: Path) -> None:
    times = count(15, 150)
    verdict, rows, conflicts = race("atlas-power", tmp_path / "runs.db", racers, times)

    print(f"{racers} processes, {len(rows)} records, {conflicts} conflicts")
    assert verdict.ok, verdict
    shared = [row.version for row in rows if row.stream == "shared"]
    assert shared == list(range(1, racers * times + 1))
    assert conflicts > 0
    assert [row.position for row in rows] == list(range(1, len(rows) + 1))


def test_the_same_race_finds_twins_where_versions_are_not_checked(tmp_path: Path) -> None:
    verdict, _, _ = race("trusting-next", tmp_path / "runs.db", 4, 30)

    assert verdict.twins != []
