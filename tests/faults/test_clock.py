"""Clocks that step back and forth or stand still: order and time of the log stay right."""

from __future__ import annotations

import itertools
import random
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas.core.log.engine import Engine
from atlas.core.log.memory import MemoryEngine
from atlas.core.log.records import NewRecord, Record
from atlas.core.log.sqlite import SqliteEngine
from faults.counts import SEED, count

SECOND = 10**9
HOUR = 3_600 * SECOND
NOON = 1_800_000_000 * SECOND


class WrongClock:
    """A clock that moves by what a function says before each look at it."""

    def __init__(self, step: Callable[[], int], start: int = NOON) -> None:
        self.now = start
        self._step = step

    def time_ns(self) -> int:
        self.now += self._step()
        return self.now

    def monotonic(self) -> float:
        return 0.0


def frozen() -> int:
    return 0


def back() -> int:
    return -SECOND


def stepping() -> Callable[[], int]:
    chance = random.Random(SEED)
    return lambda: chance.choice((0, 1, SECOND, -SECOND, HOUR, -HOUR))


CLOCKS = {"frozen": lambda: frozen, "running backwards": lambda: back, "stepping": stepping}


Opened = Callable[[WrongClock], Engine]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Return how a log is opened with a clock, the same one each time, but for the one in memory."""
    if request.param == "memory":
        return lambda clock: MemoryEngine(clock=clock)
    if request.param == "sqlite":
        return lambda clock: SqliteEngine(tmp_path / "runs.db", clock=clock)
    # Here, because the package is optional.
    from atlas.core.log.postgres import PostgresEngine

    address = request.getfixturevalue("postgres_server").new_log()
    return lambda clock: PostgresEngine(address, clock=clock)


def check_order(engine: Engine) -> list[Record]:
    records = engine.read_all()
    times = [record.time_ns for record in records]
    assert [record.position for record in records] == list(range(1, len(records) + 1))
    assert all(before < after for before, after in itertools.pairwise(times))
    probes = {time + step for time in times for step in (-1, 0, 1)} | {0, 1 << 62}
    for probe in sorted(probes)[:: max(1, len(probes) // 500)]:
        assert engine.position_at(probe) == bisect_right(times, probe)
    return records


@pytest.mark.parametrize("how", CLOCKS)
def test_records_keep_their_order_whatever_the_clock_does(how: str, opened: Opened) -> None:
    engine = opened(WrongClock(CLOCKS[how]()))
    for number in range(count(100, 2_000)):
        engine.append([NewRecord("run", "tick@1", b"%d" % number)] * (1 + number % 3)).wait()
    records = check_order(engine)
    payloads = [int(record.payload or b"") for record in records]
    versions = [record.version for record in records]

    assert engine.verify().ok
    assert payloads == sorted(payloads)
    assert versions == list(range(1, len(records) + 1))
    assert any(record.wall_ns < record.time_ns for record in records[1:])
    engine.close()


@pytest.mark.parametrize("opened", ["sqlite", "postgresql"], indirect=True)
def test_a_clock_that_went_back_between_two_starts_changes_neither_order_nor_time(
    opened: Opened,
) -> None:
    for start in (NOON, NOON - HOUR, NOON + HOUR, NOON - 24 * HOUR):
        engine = opened(WrongClock(lambda: 1_000, start))
        for _ in range(20):
            engine.append([NewRecord("run", "tick@1", b"x")]).wait()
        engine.close()
    engine = opened(WrongClock(frozen))
    records = check_order(engine)
    engine.close()

    assert [record.version for record in records] == list(range(1, 81))


def test_order_by_the_clock_on_the_wall_would_be_wrong(tmp_path: Path) -> None:
    """The control: these clocks do disturb whoever believes them."""
    engine = MemoryEngine(clock=WrongClock(stepping()))
    for number in range(50):
        engine.append([NewRecord("run", "tick@1", b"%d" % number)]).wait()
    believed = sorted(engine.read_all(), key=lambda record: record.wall_ns)
    engine.close()

    assert [record.position for record in believed] != list(range(1, 51))
