"""Stored runs: their events, what was known at any moment, comparison, export and import."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

# Any: what is handed in here is of every wrong type.
from typing import Any

import pytest

from atlas import Event, EventBus, message
from atlas.core.log.memory import MemoryEngine
from atlas.core.message_log import MessageLog, stream_of
from atlas.core.runs import RunEnded, Runs, RunStarted
from atlas.errors import (
    ConfigurationError,
    ErasedError,
    LogFormatError,
    LogUnavailableError,
    UnknownRunError,
    UnknownVersionError,
    VersionConflictError,
)
from atlas.testing import ManualClock


@message("runs.deposited")
class Deposited(Event):
    amount: int


class Teller:
    """A bus whose messages are stored, with a clock that goes one second per message."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.clock = ManualClock()
        self.bus = EventBus(clock=self.clock)
        self.log = MessageLog(self.engine, session="s", page=4)
        self.log.attach(self.bus)
        self.runs: Runs[dict[str, int]] = Runs(self.engine, add, {"balance": 0})

    def play(self, run: str, *amounts: int, end: bool = True, **started: object) -> None:
        with self.bus.scope(run=run):
            self.bus.publish(RunStarted(run, "play", **started))  # type: ignore[arg-type]
            for amount in amounts:
                self.clock.advance(1)
                self.bus.publish(Deposited(amount))
            if end:
                self.bus.publish(RunEnded(run, "completed"))
        self.log.flush(10)


def add(state: dict[str, int], event: object) -> dict[str, int]:
    return {"balance": state["balance"] + event.amount} if isinstance(event, Deposited) else state


@pytest.fixture
def teller() -> Iterator[Teller]:
    teller = Teller()
    yield teller
    teller.log.close()
    teller.engine.close()


def test_a_run_tells_what_happened_and_how_it_ended(teller: Teller) -> None:
    teller.play("r1", 5, 7)
    teller.play("r2", 1, end=False)
    run = teller.runs["r1"]

    assert list(teller.runs) == ["r1", "r2"]
    assert teller.runs.latest().id == "r2"
    assert [type(event).__name__ for event in run.events] == [
        "RunStarted",
        "Deposited",
        "Deposited",
        "RunEnded",
    ]
    assert (run.name, run.status, len(run)) == ("play", "completed", 4)
    assert teller.runs["r2"].status == "unfinished"


def test_the_state_of_any_moment_is_known_by_number_and_by_time(teller: Teller) -> None:
    teller.play("r1", *range(1, 11))
    run = teller.runs["r1"]

    assert [run.at(number)["balance"] for number in range(12)] == [
        0, 0, 1, 3, 6, 10, 15, 21, 28, 36, 45, 55,
    ]  # fmt: skip
    assert run.at() == run.at(-1) == {"balance": 55}
    assert run.time is not None
    assert run.at(time=run.time + timedelta(seconds=4.5)) == {"balance": 10}
    assert run.at(time=run.time - timedelta(seconds=1)) == {"balance": 0}
    assert run.diff(3, 6) == ({"op": "replace", "path": "/balance", "value": 15},)


def test_moments_of_long_runs_are_found_from_the_nearest_known_one(teller: Teller) -> None:
    teller.play("r1", *([1] * 3_000))
    run = teller.runs["r1"]

    assert run.at(2_901)["balance"] == 2_900
    assert run.at(1_500)["balance"] == 1_499


def test_a_fork_shares_the_events_of_its_parent_up_to_where_it_was_forked(teller: Teller) -> None:
    teller.play("r1", 5, 7, 9)
    teller.log.begin("r2", 3)
    teller.play("r2", 100, mode="fork", parent="r1", at=3)
    teller.log.begin("r3", 5)
    teller.play("r3", 1000, mode="fork", parent="r2", at=5)
    fork, fork_of_fork = teller.runs["r2"], teller.runs["r3"]

    assert fork.at()["balance"] == 112
    assert fork_of_fork.at()["balance"] == 1112
    assert [event.meta.run for event in fork.events] == ["r1"] * 3 + ["r2"] * 3
    assert len(fork) == 6
    assert fork.events[:3] == teller.runs["r1"].events[:3]
    assert [event.amount for event in fork.read(2, 5) if isinstance(event, Deposited)] == [7, 100]


def test_comparing_long_runs_tells_how_far_it_is(teller: Teller) -> None:
    teller.play("r1", *range(700))
    teller.play("r2", *range(700))
    told: list[tuple[int, int]] = []
    compared = teller.runs.compare("r1", "r2", lambda *how_far: told.append(how_far))
    whole = len(teller.runs["r1"]) + len(teller.runs["r2"])

    assert compared.same
    assert told == [(500, whole), (1000, whole), (whole, whole)]


def test_two_runs_are_compared_event_by_event(teller: Teller) -> None:
    teller.play("r1", 5, 7, 9)
    teller.play("r2", 5, 7, 9)
    teller.play("r3", 5, 8)

    assert teller.runs.compare("r1", "r2").same
    assert teller.runs["r1"].digest == teller.runs["r2"].digest
    other = teller.runs.compare("r1", "r3")
    assert not other.same
    assert other.shared == 1
    assert "part" in str(other)


def test_an_exported_run_can_be_imported_elsewhere_and_is_the_same(
    teller: Teller, tmp_path: Path
) -> None:
    teller.play("r1", *range(10))
    teller.log.begin("r2", 3)
    teller.play("r2", 100, mode="fork", parent="r1", at=3)
    elsewhere = Runs(MemoryEngine(), add, {"balance": 0})

    for name in ("r1", "r2"):
        file, again = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.again.jsonl"
        count = teller.runs[name].export(file)
        imported = elsewhere.import_(file)
        imported.export(again)

        assert count == len(teller.runs[name]) == len(imported.events)
        assert imported.digest == teller.runs[name].digest
        assert again.read_bytes() == file.read_bytes()

    with pytest.raises(VersionConflictError):
        elsewhere.import_(tmp_path / "r1.jsonl")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda lines: lines[:-1], "cut off"),
        (lambda lines: [lines[0], *lines[2:]], "changed"),
        (lambda lines: [*lines[:3], b"{", *lines[4:]], "line 4"),
        (lambda lines: lines[1:], "no run"),
        (lambda lines: [lines[0].replace(b'"format":1', b'"format":9'), *lines[1:]], "newer"),
    ],
)
def test_a_spoiled_export_is_refused_and_nothing_of_it_stored(
    teller: Teller, tmp_path: Path, spoil: object, named: str
) -> None:
    teller.play("r1", 1, 2, 3)
    file = tmp_path / "run.jsonl"
    teller.runs["r1"].export(file)
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join(spoil(lines)) + b"\n")  # type: ignore[operator]
    elsewhere = Runs(MemoryEngine(), add, {"balance": 0})

    with pytest.raises(LogFormatError, match=named):
        elsewhere.import_(file)
    assert len(elsewhere) == 0


def test_an_export_that_is_broken_off_leaves_the_file_of_before(
    teller: Teller, tmp_path: Path
) -> None:
    def interrupted(_done: int, _all: int) -> None:
        raise KeyboardInterrupt

    teller.play("r1", *range(1_000))
    file = tmp_path / "run.jsonl"
    file.write_text("the one of before")

    with pytest.raises(KeyboardInterrupt):
        teller.runs["r1"].export(file, interrupted)
    assert [each.name for each in tmp_path.iterdir()] == ["run.jsonl"]
    assert file.read_text() == "the one of before"


def test_who_waits_for_an_export_or_import_is_told_when_it_is_over(
    teller: Teller, tmp_path: Path
) -> None:
    teller.play("r1", *range(700))
    file, told = tmp_path / "run.jsonl", list[tuple[int, int]]()
    teller.runs["r1"].export(file, lambda done, whole: told.append((done, whole)))
    elsewhere = Runs(MemoryEngine(), add, {"balance": 0})
    size = file.stat().st_size
    elsewhere.import_(file, lambda done, whole: told.append((done, whole)))

    assert told[:2] == [(500, 702), (702, 702)]
    assert told[-1] == (size, size)


def test_an_export_goes_to_open_files_and_to_devices_too(teller: Teller, tmp_path: Path) -> None:
    teller.play("r1", 5)
    file, pipe = tmp_path / "run.jsonl", tmp_path / "pipe"
    teller.runs["r1"].export(file)
    os.mkfifo(pipe)
    reader = ThreadPoolExecutor(1).submit(pipe.read_text)
    teller.runs["r1"].export(pipe)
    text = io.StringIO()
    teller.runs["r1"].export(text)

    assert text.getvalue() == file.read_text() == reader.result()
    assert pipe.is_fifo()
    text.seek(0)
    elsewhere = Runs(MemoryEngine(), add, {"balance": 0})
    assert elsewhere.import_(text).digest == teller.runs["r1"].digest


@pytest.mark.parametrize("target", ["", "a\0b", "\ud800", ".", "no/such/folder/x", 5, None])
def test_what_is_no_file_to_export_to_or_import_from_is_named(
    teller: Teller, target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teller.play("r1", 5)

    with pytest.raises((ConfigurationError, LogUnavailableError)):
        teller.runs["r1"].export(target)
    with pytest.raises((ConfigurationError, LogUnavailableError)):
        teller.runs.import_(target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", ["", "a\0b", "\ud800"])
def test_an_export_of_a_run_that_cannot_be_called_so_is_refused(run: str, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    header = {"atlas": "run", "format": 1, "run": run, "sha256": hashlib.sha256().hexdigest()}
    file.write_text(json.dumps(header) + "\n")

    with pytest.raises(LogFormatError, match="`run`"):
        Runs(MemoryEngine(), add, {"balance": 0}).import_(file)


def test_an_export_is_json_lines_that_anybody_can_read(teller: Teller, tmp_path: Path) -> None:
    teller.play("r1", 5)
    file = tmp_path / "run.jsonl"
    teller.runs["r1"].export(file)

    header, *events = [json.loads(line) for line in file.read_text().splitlines()]
    assert header["run"] == "r1"
    assert [event["name"] for event in events] == ["run.started", "runs.deposited", "run.ended"]


def test_what_is_asked_for_and_not_there_is_named(teller: Teller) -> None:
    teller.play("run-7", 5)

    with pytest.raises(UnknownRunError, match="nearest is 'run-7'"):
        teller.runs["run-8"]
    assert "run-8" not in teller.runs
    with pytest.raises(UnknownVersionError, match="no event 9; it has 3"):
        teller.runs["run-7"].at(9)
    with pytest.raises(UnknownVersionError, match="time zone"):
        teller.runs["run-7"].at(time=datetime(2026, 1, 1))  # noqa: DTZ001
    assert teller.runs["run-7"].at(time=datetime(2000, 1, 1, tzinfo=UTC)) == {"balance": 0}


def test_erased_events_are_named_when_they_are_asked_for(teller: Teller) -> None:
    teller.play("r1", 1, 2, 3)
    teller.engine.erase(stream_of("r1"), until=4)

    with pytest.raises(ErasedError, match="erased"):
        teller.runs["r1"].at(2)
