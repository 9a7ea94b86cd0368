"""What a `TemporalStore` is asked that makes no sense: an error of Atlas that names it, and no other."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

# Any: what is handed in here is of every wrong type.
from typing import Any

import pytest

from atlas.core.temporal_store import SnapshotPolicy, TemporalStore, Timeline
from atlas.errors import (
    ConfigurationError,
    LogError,
    LogFormatError,
    LogUnavailableError,
    SchemaError,
    UnknownVersionError,
)


def add_up(total: int, event: int) -> int:
    return total + event


@pytest.fixture(params=[":memory:", "a file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TemporalStore]:
    address = request.param if request.param == ":memory:" else tmp_path / "log.db"
    with TemporalStore(address) as found:
        yield found


def counted(store: TemporalStore, **options: Any) -> Timeline[int]:
    return store.timeline("count", add_up, initial=0, **options)


Asked = Callable[[TemporalStore, Any], object]

REFUSED: dict[str, tuple[Asked, list[Any]]] = {
    "a name": (
        lambda store, name: store.timeline(name),
        ["", "$log", "a\0b", "\ud800", 5, None, b"x"],
    ),
    "the name of a fork": (lambda store, name: counted(store).fork(name), ["", "$x", 5, "\ud800"]),
    "a prefix": (lambda store, prefix: store.timelines(prefix), [5, None, "\ud800", "a\0"]),
    "a version": (
        lambda store, version: counted(store).at(version),
        [-1, 1.0, "1", True, math.nan],
    ),
    "a version to fork at": (lambda store, at: counted(store).fork("f", at=at), [-1, 0.5, "1"]),
    "a version to begin after": (
        lambda store, after: counted(store).events(after=after),
        [-1, 1.5],
    ),
    "a version expected": (
        lambda store, version: counted(store).append(1, expected_version=version),
        [-1, 1.0, "1", True],
    ),
    "a time": (lambda store, time: counted(store).at(time=time), [5, "2026-01-01", 1.5]),
    "a label": (lambda store, label: counted(store).label(label), ["", None, 5]),
    "a timeout of a follower": (
        lambda store, timeout: counted(store).follow(timeout=timeout),
        ["1", math.nan],
    ),
    "a timeout to wait": (lambda store, timeout: counted(store).append(1).wait(timeout), ["1"]),
    "a codec of events": (lambda store, codec: store.timeline("a", events=codec), [5, "json"]),
    "a codec of states": (lambda store, codec: counted(store, state_codec=codec), [5]),
    "a policy": (lambda store, policy: counted(store, snapshot=policy), [5, True, "never"]),
    "a view": (lambda store, view: counted(store, view=view), ["", 5, "\ud800"]),
    "the version of a view": (lambda store, version: counted(store, version=version), [None, [1]]),
    "a transition": (lambda store, given: store.timeline("a", given, initial=0), [5, "x"]),
    "days to keep": (
        lambda store, days: store.keep(counted(store), days=days),
        [-1, "x", math.nan],
    ),
    "events to keep": (lambda store, last: store.keep(counted(store), last=last), [-1, 1.5, True]),
    "a label to keep from": (lambda store, label: store.keep(counted(store), label=label), [5, ""]),
    "where to export to": (lambda store, target: store.export(target), [5, "", ".", "a\0b"]),
    "what to export": (
        lambda store, names: store.export("never.jsonl", timelines=names),
        ["count", ["count", 5], ["none"], ["\ud800"]],
    ),
    "where to import from": (lambda store, source: store.import_(source), [5, "", "a\0b", "."]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_named(what: str, store: TemporalStore) -> None:
    counted(store).append(1, 2).wait()
    ask, values = REFUSED[what]
    for value in values:
        with pytest.raises(ConfigurationError) as refused:
            ask(store, value)

        said = str(refused.value)
        named = value[-1] if isinstance(value, list) else value
        assert repr(named) in said or repr(value) in said or "transition" in said, said
    assert counted(store).now() == 3 or what == "a timeout to wait"


@pytest.mark.parametrize(
    "policy",
    [
        {"events": 0},
        {"events": "x"},
        {"events": 1.5},
        {"size": 0},
        {"share": -1},
        {"share": math.nan},
        {"share": "x"},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="makes no sense"):
        SnapshotPolicy(**policy)


@pytest.mark.parametrize("days", [10**6, 1e300, math.inf])
def test_events_may_be_kept_for_longer_than_there_is_time(
    days: float, store: TemporalStore
) -> None:
    counted(store).append(1).wait()

    assert store.keep(counted(store), days=days).erasures == ()


def test_a_version_beyond_every_log_is_unknown(store: TemporalStore) -> None:
    for version in (1, 2**63, 10**30):
        with pytest.raises(UnknownVersionError):
            counted(store).at(version)


def test_what_no_event_can_be_is_refused_and_nothing_is_stored(store: TemporalStore) -> None:
    cyclic: list[object] = []
    cyclic.append(cyclic)
    deep: object = None
    for _ in range(100_000):
        deep = [deep]
    for event in (cyclic, deep, object(), {1: 2}, math.nan, b"x", (1, 2), {1}, 10**5000):
        with pytest.raises(SchemaError):
            counted(store).append(1, event)

    assert counted(store).version == 0


def test_files_that_cannot_be_read_or_written_are_named(
    store: TemporalStore, tmp_path: Path
) -> None:
    for path in (tmp_path / "none", tmp_path / "none" / "file", tmp_path / ("x" * 300)):
        with pytest.raises(LogUnavailableError, match="cannot be read"):
            store.import_(path)
    for path in (tmp_path / "none" / "file", tmp_path / ("x" * 300)):
        with pytest.raises(LogUnavailableError, match="cannot be written"):
            store.export(path)
    with pytest.raises(ConfigurationError, match="is a folder"):
        store.export(tmp_path)

    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("address", [5, None, b"x", 1.5, "", "a\0b", "\ud800", "http://x/y"])
def test_what_is_no_address_is_refused(address: Any) -> None:
    with pytest.raises(ConfigurationError, match="address"):
        TemporalStore(address)


def test_what_is_no_log_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    foreign = sqlite3.connect(tmp_path / "foreign.db")
    foreign.execute("CREATE TABLE notes (text)")
    foreign.close()
    (tmp_path / "text").write_text("no database " * 100)
    for path in (tmp_path, tmp_path / "foreign.db", tmp_path / "text"):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(LogFormatError, match=path.name):
            TemporalStore(path)
        assert before == (path.read_bytes() if path.is_file() else b"")
    for path in (tmp_path / "none" / "log.db", tmp_path / ("x" * 300), Path("/dev/null/log.db")):
        with pytest.raises(LogError):
            TemporalStore(path)


def test_an_address_may_be_any_path(tmp_path: Path) -> None:
    class Named(PathLike[str]):
        def __fspath__(self) -> str:
            return str(tmp_path / "log.db")

    with TemporalStore(Named()) as store:
        counted(store).append(1).wait()

    assert (tmp_path / "log.db").exists()


def test_a_durability_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'power', 'process', 'lazy'"):
        TemporalStore(tmp_path / "log.db", durability="always")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="clock is 5"):
        TemporalStore(tmp_path / "log.db", clock=5)  # type: ignore[arg-type]


def test_a_log_that_may_only_be_read_is_read_without_snapshots(tmp_path: Path) -> None:
    with TemporalStore(tmp_path / "log.db") as store:
        counted(store, snapshot=None).append(*range(1_000)).wait()
    with TemporalStore(tmp_path / "log.db", read_only=True) as store:
        count = counted(store)

        assert (count.now(), count.at(64), len(count.events())) == (499_500, 2_016, 1_000)
        for write in (
            lambda: count.append(1),
            count.checkpoint,
            count.rebuild,
            lambda: count.erase(64),
            lambda: count.fork("other", at=64),
        ):
            with pytest.raises(LogUnavailableError, match="reading only"):
                write()
        assert store.verify().ok
