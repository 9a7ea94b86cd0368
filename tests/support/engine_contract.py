"""What every engine of the log must do. An engine passes when its tests, derived from `EngineContract`
and `model_of`, pass::

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def place(self, tmp_path):
            return lambda clock=None: MyEngine(tmp_path / "log", clock=clock)

``place`` opens an engine; called again in one test, it opens another onto the same log.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import product

# Any: options of every kind.
from typing import Any, ClassVar, TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from atlas.core.log.chain import GENESIS, link
from atlas.core.log.engine import Engine
from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.errors import AtlasError, ConfigurationError, LogClosedError, VersionConflictError

__all__ = ["EngineContract", "SettableClock", "model_of", "new"]

Place: TypeAlias = Callable[..., Engine]

START_NS = 1_700_000_000_000_000_000


class SettableClock:
    """A clock that a test moves, back too."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9


def new(stream: str, payload: bytes = b"{}", **more: object) -> NewRecord:
    """Return a record to append."""
    return NewRecord(stream, str(more.pop("name", "thing.done@1")), payload, **more)


class EngineContract:
    """The suite."""

    persistent: ClassVar[bool] = True
    """Whether a log can be opened twice, and again after it was closed."""

    @pytest.fixture
    def place(self) -> Place:
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> SettableClock:
        return SettableClock()

    @pytest.fixture
    def log(self, place: Place, clock: SettableClock) -> Iterator[Engine]:
        engine = place(clock=clock)
        yield engine
        engine.close()

    # -- appending --

    def test_what_is_appended_is_read(self, log: Engine, clock: SettableClock):
        stored = log.append([new("a", b"1", name="x@1"), new("b", b"2", wall_ns=5)]).wait()

        assert [
            (r.position, r.stream, r.version, r.name, r.time_ns, r.wall_ns, r.payload)
            for r in stored
        ] == [
            (1, "a", 1, "x@1", START_NS, START_NS, b"1"),
            (2, "b", 1, "thing.done@1", START_NS + 1, 5, b"2"),
        ]
        assert log.read_all() == list(stored)
        assert log.read("a") == [stored[0]]
        assert log.read("b") == [stored[1]]

    def test_the_chain_is_the_documented_one(self, log: Engine):
        log.append([new("ä/日本", b"1"), new("b", b"")]).wait()
        chain = GENESIS
        for r in log.read_all():
            assert r.digest == sha256(r.payload).digest()
            chain = link(
                chain,
                r.digest,
                position=r.position,
                stream=r.stream.encode(),
                version=r.version,
                name=r.name.encode(),
                time_ns=r.time_ns,
                wall_ns=r.wall_ns,
            )
            assert r.chain == chain

    def test_nothing_appended_is_done_at_once(self, log: Engine):
        append = log.append([])

        assert append.done
        assert append.wait() == ()
        assert log.last_position() is None

    def test_versions_may_be_given_with_gaps(self, log: Engine):
        log.append([new("a", version=5), new("a"), new("a", version=10)]).wait()

        assert [r.version for r in log.read("a")] == [5, 6, 10]
        assert log.head("a") == 10
        assert log.head("b") is None

    def test_a_record_may_span_several_versions(self, log: Engine):
        log.append([new("a"), new("a", span=64), new("a", span=2), new("b", span=3)]).wait()
        log.append([new("a", span=5), new("a", version=100, span=7)]).wait()

        assert [r.version for r in log.read("a")] == [1, 65, 67, 72, 100]
        assert log.head("b") == 3

    def test_what_is_noted_is_read_as_a_record_and_what_is_not_can_be_appended(self, log: Engine):
        log.append([new("a", b"first")]).wait()
        for version in (2, 3):
            record = new("a", b"%d" % version, version=version, wall_ns=version)
            if not log.note([record]):
                log.append([record]).wait()
        assert not log.note([new("a", b"again", version=3, wall_ns=4)])
        log.flush()

        assert [(each.version, each.payload) for each in log.read("a")] == [
            (1, b"first"),
            (2, b"2"),
            (3, b"3"),
        ]
        assert (log.head("a"), log.last_position(), log.verify().ok) == (3, 3, True)

    @pytest.mark.parametrize("version", [3, 4])
    def test_a_version_that_is_taken_is_refused(self, log: Engine, version: int):
        log.append([new("a", version=4)]).wait()
        with pytest.raises(VersionConflictError) as caught:
            log.append([new("a", version=version)]).wait()

        assert caught.value.actual == 4
        assert caught.value.expected == version - 1

    def test_a_stream_that_is_not_where_expected_refuses(self, log: Engine):
        log.append([new("a")], expect={"a": 0, "other": 0}).wait()
        with pytest.raises(VersionConflictError) as caught:
            log.append([new("b")], expect={"b": 0, "a": 0}).wait()

        assert (caught.value.expected, caught.value.actual) == (0, 1)
        assert log.head("b") is None
        assert log.append([new("b")], expect={"a": 1}).wait()[0].position == 2

    def test_an_append_is_stored_whole_or_not_at_all(self, log: Engine):
        log.append([new("a", version=1)]).wait()
        refused = log.append([new("b"), new("c"), new("a", version=1)])
        with pytest.raises(VersionConflictError):
            refused.wait()

        assert log.last_position() == 1
        assert log.streams() == ["a"]
        stored = log.append([new("b"), new("a")]).wait()
        assert [(r.position, r.version) for r in stored] == [(2, 1), (3, 2)]
        assert log.verify().ok

    def test_waiting_twice_gives_the_same(self, log: Engine):
        append = log.append([new("a")])

        assert append.wait(timeout=30) == append.wait()
        refused = log.append([new("a")], expect={"a": 0})
        for _ in range(2):
            with pytest.raises(VersionConflictError):
                refused.wait()

    @pytest.mark.parametrize(
        ("record", "error"),
        [
            (NewRecord("", "n", b""), ValueError),
            (NewRecord("s", "", b""), ValueError),
            (NewRecord("a\0b", "n", b""), ValueError),
            (NewRecord("s", "\ud800", b""), ValueError),
            (NewRecord("s", "n", b"", version=0), ValueError),
            (NewRecord("s", "n", b"", version=2**63), ValueError),
            (NewRecord("s", "n", b"", wall_ns=2**63), ValueError),
            (NewRecord("s", "n", b"", version=1.5), ValueError),
            (NewRecord("s", "n", b"", version=True), ValueError),
            (NewRecord("s", "n", b"", wall_ns=0.5), ValueError),
            (NewRecord("s", "n", b"", span="2"), ValueError),
            (NewRecord(5, "n", b""), ValueError),
            (NewRecord("s", None, b""), ValueError),
            (NewRecord("s", "n", "text"), TypeError),
            (NewRecord("s", "n", bytearray(b"x")), TypeError),
        ],
    )
    def test_what_cannot_be_stored_is_refused_at_once(
        self, log: Engine, record: NewRecord, error: type[Exception]
    ):
        with pytest.raises(error) as refused:
            log.append([new("s"), record])

        assert isinstance(refused.value, AtlasError)
        log.flush()
        assert log.last_position() is None

    @pytest.mark.parametrize(
        "options",
        [
            {"expect": {"\ud800": 0}},
            {"expect": {"a\0b": 0}},
            {"expect": {"a": 2**63}},
            {"expect": {"a": "0"}},
            {"tracking": ("\ud800", 1)},
            {"tracking": ("reader", 2**63)},
            {"tracking": ("reader", 1.0)},
        ],
    )
    def test_what_cannot_be_compared_does_not_fail_others(
        self, log: Engine, options: dict[str, Any]
    ):
        waiting = log.append([new("s")])
        with pytest.raises(ConfigurationError):
            log.append([new("a")], **options)

        waiting.wait()
        assert log.streams() == ["s"]

    def test_odd_texts_and_large_payloads_come_back(self, log: Engine):
        streams = [
            "%",
            "_",
            "a'b",
            'a"b',
            "line\nbreak",
            "\U0010ffff",
            "e\u0301",
            "\u00e9",
            "A",
            "a",
        ]
        payloads = [b"", b"\0", bytes(range(256)) * 4096]
        records = [new(s, payloads[i % 3], name=f"n {s}") for i, s in enumerate(streams)]
        log.append(records).wait()

        assert [(r.stream, r.name, r.payload) for r in log.read_all()] == [
            (r.stream, r.name, r.payload) for r in records
        ]
        assert log.streams() == streams

    # -- tracking --

    def test_a_position_is_tracked_with_its_records_or_not_at_all(self, log: Engine):
        assert log.tracked("view") is None
        log.append([new("a")], tracking=("view", 7)).wait()
        log.append([], tracking=("view", 9)).wait()
        for position in (9, 8):
            with pytest.raises(VersionConflictError):
                log.append([new("a")], tracking=("view", position)).wait()
        with pytest.raises(VersionConflictError):
            log.append([new("a", version=1)], tracking=("view", 10)).wait()

        assert log.tracked("view") == 9
        assert log.tracked("other") is None
        assert log.last_position() == 1

    # -- reading --

    def test_any_part_of_a_stream_is_read(self, log: Engine):
        versions = [1, 3, 4, 7, 8]
        log.append([r for v in versions for r in (new("a", version=v), new("b"))]).wait()
        parts = product([None, 0, 3, 4, 99], [None, 0, 4, 7, 99], [None, 0, 2, 99], [False, True])
        for after, until, limit, newest_first in parts:
            expected = [
                v
                for v in versions
                if (after is None or v > after) and (until is None or v <= until)
            ]
            expected = expected[::-1] if newest_first else expected
            found = log.read("a", after=after, until=until, limit=limit, newest_first=newest_first)

            assert [r.version for r in found] == expected[:limit]

    def test_a_part_of_the_log_is_read(self, log: Engine):
        log.append([new("ab"[i % 2], b"%d" % i, name=f"n{i % 3}") for i in range(12)]).wait()

        def positions(**part):
            return [r.position for r in log.read_all(**part)]

        assert positions() == list(range(1, 13))
        assert positions(after=3, until=7) == [4, 5, 6, 7]
        assert positions(after=3, limit=2) == [4, 5]
        assert positions(limit=0) == []
        assert positions(names=["n1"]) == [2, 5, 8, 11]
        assert positions(names=["n1", "n2", "no"], after=2, limit=3) == [3, 5, 6]
        assert positions(names=["no"]) == []
        assert positions(prefix="b", names=["n1"]) == [2, 8]
        assert positions(prefix="a", after=1, limit=2) == [3, 5]
        assert positions(prefix="c") == []

    def test_streams_are_found_by_how_they_begin(self, log: Engine):
        streams = [
            "run/2",
            "run/1",
            "run",
            "rum",
            "ruo",
            "run/\U0010ffff",
            "日",
            "日本",
            "$x",
            "Run/1",
        ]
        log.append([new(stream) for stream in streams]).wait()
        log.append([new(stream) for stream in reversed(streams)]).wait()

        for prefix in [
            "",
            "run",
            "run/",
            "日",
            "日本語",
            "$",
            "run/\U0010ffff",
            "\U0010ffff",
            "%",
            "r_n",
        ]:
            expected = [s for s in streams if s.startswith(prefix)]
            assert log.streams(prefix) == expected, prefix
            last = [r.position for r in log.read_all() if r.stream.startswith(prefix)]
            assert log.last_position(prefix) == (last[-1] if last else None), prefix

    def test_the_log_is_found_as_it_was_at_a_time(self, log: Engine, clock: SettableClock):
        assert log.position_at(2**62) == 0
        times = []
        for step in [0, 1_000, 5, 0, -3_600_000_000_000, 0, 7, 7_200_000_000_000, 0, 10]:
            clock.now_ns += step
            times += [r.time_ns for r in log.append([new("a"), new("b")]).wait()]

        assert times == sorted(set(times))
        for time_ns in [t + d for t in times for d in (-1, 0, 1)]:
            assert log.position_at(time_ns) == sum(t <= time_ns for t in times)
        assert log.position_at(0) == 0
        assert log.position_at(2**62) == 20

    # -- following --

    def test_waiting_ends_when_something_is_appended(self, log: Engine):
        assert not log.wait_beyond(0, timeout=0)
        log.append([new("a")]).wait()
        assert log.wait_beyond(0)
        assert not log.wait_beyond(1, timeout=0.01)

        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(log.wait_beyond, position) for position in (1, 2, 2, 3)]
            log.append([new("a"), new("a"), new("a")]).wait()
            assert all(w.result(30) for w in waiting)

    def test_waiting_ends_when_the_log_is_closed(self, log: Engine):
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(log.wait_beyond, 0)
            log.close()

            assert waiting.result(30) is False

    def test_waiting_ends_when_another_engine_appends(self, place: Place, log: Engine):
        self._only_if_persistent()
        other = place()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(log.wait_beyond, 0)
            other.append([new("a")]).wait()

            assert waiting.result(30) is True
        other.close()

    # -- snapshots --

    def test_the_latest_snapshot_is_found(self, log: Engine):
        for version, payload in [(3, b"three"), (9, b"nine"), (5, b"five"), (5, b"FIVE")]:
            log.save_snapshot(Snapshot("a", version, "sum", payload))
        log.save_snapshot(Snapshot("a", 4, "other", b"o"))

        assert log.snapshot("a", "sum") == Snapshot("a", 9, "sum", b"nine")
        assert log.snapshot("a", "sum", until=8) == Snapshot("a", 5, "sum", b"FIVE")
        assert log.snapshot("a", "sum", until=5) == Snapshot("a", 5, "sum", b"FIVE")
        assert log.snapshot("a", "sum", until=2) is None
        assert log.snapshot("b", "sum") is None
        log.drop_snapshots("a")
        assert log.snapshot("a", "sum") is None
        assert log.snapshot("a", "other") is None

    # -- keeping --

    def test_erased_payloads_are_gone_and_the_chain_verifies(self, log: Engine):
        before = log.append([new("a", b"%d" % i) for i in range(5)] + [new("b", b"b")]).wait()
        log.save_snapshot(Snapshot("a", 5, "sum", b"10"))

        assert log.erase("a", after=1, until=3) == 2
        assert [r.payload for r in log.read("a")] == [b"0", None, None, b"3", b"4"]
        assert [r._replace(payload=None) for r in log.read_all(until=6)] == [
            r._replace(payload=None) for r in before
        ]
        assert log.snapshot("a", "sum") is None
        found = log.verify()
        assert (found.records, found.erased, found.bad_position) == (7, 2, None)
        assert log.erase("a") == 3
        assert log.erase("a") == 0
        assert log.erase("nobody") == 0
        assert log.append([new("a", b"again")]).wait()[0].version == 6
        assert log.verify().ok

    def test_the_log_says_what_was_erased(self, log: Engine, clock: SettableClock):
        log.append([new("a"), new("a")]).wait()
        clock.now_ns += 10**9
        log.erase("a")
        (note,) = log.read("$log")

        assert note.name == "$erased"
        assert note.time_ns == clock.now_ns
        assert b'"a"' in note.payload
        with pytest.raises(ValueError, match="cannot be erased"):
            log.erase("$log")

    def test_a_log_as_it_was_appended_verifies(self, log: Engine):
        assert log.verify().records == 0
        log.append([new("ab"[i % 2], b"%d" % i) for i in range(1200)]).wait()
        told = []
        found = log.verify(lambda done, of: told.append((done, of)))

        assert found.ok
        assert found.records == 1200
        assert found.problem == ""
        assert told
        assert all(0 <= done <= of == 1200 for done, of in told)
        assert (log.repair().kept, log.repair().set_aside) == (1200, 0)

    # -- closing --

    def test_a_closed_log_refuses(self, log: Engine):
        log.append([new("a")])
        log.close()
        log.close()

        for use in [
            lambda: log.append([new("a")]),
            lambda: log.read("a"),
            log.read_all,
            lambda: log.head("a"),
            lambda: log.save_snapshot(Snapshot("a", 1, "l", b"")),
            lambda: log.erase("a"),
            log.verify,
        ]:
            with pytest.raises(LogClosedError):
                use()

    def test_a_failure_nobody_waited_for_is_raised_by_flush_once(self, log: Engine):
        log.append([new("a", version=1)])
        log.append([new("a", version=1)])
        log.append([new("b")])
        with pytest.raises(VersionConflictError):
            log.flush()

        log.flush()
        assert log.head("b") == 1

    def test_a_failure_nobody_waited_for_is_raised_by_close(self, log: Engine):
        log.append([new("a", version=1)])
        log.append([new("a", version=1)])
        with pytest.raises(VersionConflictError):
            log.close()

        log.close()

    def test_a_failure_somebody_learned_of_is_not_raised_again(self, log: Engine):
        log.append([new("a", version=1)])
        with pytest.raises(VersionConflictError):
            log.append([new("a", version=1)]).wait()

        log.flush()

    def test_what_nobody_waited_for_is_stored_by_flush(self, log: Engine):
        for _ in range(100):
            log.append([new("a")])
        log.flush(timeout=60)

        assert log.head("a") == 100

    # -- event loops and threads --

    async def test_appends_are_awaited(self, log: Engine):
        async def one(i: int) -> int:
            (record,) = await log.append([new(f"s{i % 7}", b"%d" % i)])
            return record.position

        positions = await asyncio.gather(*(one(i) for i in range(100)))

        assert sorted(positions) == list(range(1, 101))

    async def test_a_refused_append_does_not_fail_those_beside_it(self, log: Engine):
        await log.append([new("a", version=1)])
        appends = [log.append([new("a", version=1) if i % 3 else new("b")]) for i in range(30)]

        async def end(append):
            return await append

        results = await asyncio.gather(*map(end, appends), return_exceptions=True)

        assert [isinstance(r, VersionConflictError) for r in results] == [
            bool(i % 3) for i in range(30)
        ]
        assert log.head("b") == 10
        log.flush()

    async def test_an_append_whose_waiter_is_cancelled_is_stored(self, log: Engine):
        append = log.append([new("a")])

        async def wait():
            await append

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert (await append)[0].position == 1

    def test_one_append_is_awaited_on_two_loops_and_in_threads(self, log: Engine):
        append = log.append([new("a")])

        async def end():
            return await append

        with ThreadPoolExecutor(8) as pool:
            ends = [pool.submit(lambda: asyncio.run(end())) for _ in range(4)]
            ends += [pool.submit(append.wait) for _ in range(4)]

            assert {e.result(60)[0].position for e in ends} == {1}

    def test_threads_append_without_losing_anything(self, log: Engine):
        each, barrier = 50, threading.Barrier(8)
        stored: list[list[Record]] = [[] for _ in range(8)]
        conflicts = [0] * 8

        def write(number: int) -> None:
            barrier.wait()
            rng = random.Random(number)
            for _ in range(each):
                own = [new(f"own{number}") for _ in range(rng.randrange(1, 4))]
                stored[number] += log.append(own).wait(60)
                head = log.head("shared") or 0
                try:
                    stored[number] += log.append([new("shared")], expect={"shared": head}).wait(60)
                except VersionConflictError:
                    conflicts[number] += 1

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        acknowledged = sorted(r for records in stored for r in records)

        assert log.read_all() == acknowledged
        assert [r.position for r in acknowledged] == list(range(1, len(acknowledged) + 1))
        assert log.head("shared") == 8 * each - sum(conflicts)
        for number in range(8):
            own = [r for r in stored[number] if r.stream != "shared"]
            assert log.read(f"own{number}") == own
        assert log.verify().ok

    def test_a_reader_sees_no_gaps_and_no_halves(self, log: Engine):
        end = threading.Event()

        def follow() -> list[int]:
            seen: list[int] = []
            while len(seen) < 200:
                seen += [r.position for r in log.read_all(after=seen[-1] if seen else 0)]
                assert len(seen) % 2 == 0
                if end.is_set() and not log.wait_beyond(len(seen), timeout=0):
                    break
            return seen

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(follow) for _ in range(2)]
            for _ in range(100):
                log.append([new("a"), new("b")]).wait(60)
            end.set()

            for reader in readers:
                assert reader.result(60) == list(range(1, 201))

    # -- more than one engine --

    def test_a_log_goes_on_where_it_was_closed(self, place: Place, clock: SettableClock):
        self._only_if_persistent()
        first = place(clock=clock)
        first.append([new("a", b"1"), new("b", b"2")], tracking=("view", 3))
        first.save_snapshot(Snapshot("a", 1, "l", b"s"))
        first.close()
        clock.now_ns -= 10**12
        second = place(clock=clock)
        (record,) = second.append([new("a", b"3")]).wait()

        assert (record.position, record.version, record.time_ns) == (3, 2, START_NS + 2)
        assert [r.payload for r in second.read_all()] == [b"1", b"2", b"3"]
        assert second.tracked("view") == 3
        assert second.snapshot("a", "l") == Snapshot("a", 1, "l", b"s")
        assert second.verify().ok
        second.close()

    def test_two_engines_take_turns(self, place: Place):
        self._only_if_persistent()
        engines = [place(), place()]
        each = 40

        def write(number: int) -> int:
            conflicts = 0
            for i in range(each):
                engine = engines[number]
                engine.append([new(f"own{number}"), new(f"new{number}.{i}")]).wait(60)
                head = engine.head("shared") or 0
                try:
                    engine.append([new("shared")], expect={"shared": head}).wait(60)
                except VersionConflictError:
                    conflicts += 1
            return conflicts

        with ThreadPoolExecutor(2) as pool:
            conflicts = sum(pool.map(write, range(2)))

        expected = 2 * each * 3 - conflicts
        for engine in engines:
            found = engine.read_all()
            assert [r.position for r in found] == list(range(1, expected + 1))
            assert engine.verify().ok
            assert engine.read("own0") == [r for r in found if r.stream == "own0"]
            engine.close()

    def _only_if_persistent(self) -> None:
        if not self.persistent:
            pytest.skip("this log is in the memory of one engine")


def model_of(place: Place, *, persistent: bool = True, steps: int = 40, examples: int = 30):
    """Return a hypothesis test that compares engines with a list.

    Args:
        place: Opens an engine onto a log of its own for each first call with ``fresh=True``, and
            onto the same log again without.
        persistent: Whether a log may be closed and opened again.
        steps: At most that many steps an example.
        examples: How many examples.
    """

    class Model(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.clock = SettableClock()
            self.log = place(clock=self.clock, fresh=True)
            self.records: list[Record] = []
            self.snapshots: dict[tuple[str, int], bytes] = {}

        def head(self, stream: str) -> int:
            return max((r.version for r in self.records if r.stream == stream), default=0)

        @rule(
            streams=st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
            gap=st.integers(0, 2),
            payload=st.binary(max_size=40),
            moved=st.integers(-(10**10), 10**10),
        )
        def append(self, streams, gap, payload, moved) -> None:
            self.clock.now_ns += moved
            version = self.head(streams[0]) + 1 + gap
            records = [new(streams[0], payload, version=version)]
            records += [new(stream, payload) for stream in streams[1:]]
            stored = self.log.append(records).wait(60)
            last = self.records[-1] if self.records else None

            assert [(r.stream, r.payload) for r in stored] == [(s, payload) for s in streams]
            assert stored[0].version == version
            assert stored[0].position == (last.position + 1 if last else 1)
            assert last is None or stored[0].time_ns > last.time_ns
            self.records += stored

        @rule(stream=st.sampled_from("abc"), wrong=st.sampled_from([-1, 1, 5]))
        def conflict(self, stream, wrong) -> None:
            head = self.head(stream)
            append = self.log.append([new("c"), new(stream)], expect={stream: head + wrong})
            with pytest.raises(VersionConflictError) as caught:
                append.wait(60)

            assert caught.value.actual == head

        @precondition(lambda self: self.records)
        @rule(stream=st.sampled_from("abc"), after=st.integers(0, 12), span=st.integers(0, 12))
        def erase(self, stream, after, span) -> None:
            hit = [
                i
                for i, r in enumerate(self.records)
                if r.stream == stream
                and after < r.version <= after + span
                and r.payload is not None
            ]

            assert self.log.erase(stream, after=after, until=after + span) == len(hit)
            for i in hit:
                self.records[i] = self.records[i]._replace(payload=None)
            if hit:
                self.records += self.log.read_all(after=self.records[-1].position)
                assert self.records[-1].name == "$erased"
            self.snapshots = {k: v for k, v in self.snapshots.items() if k[0] != stream}

        @rule(
            stream=st.sampled_from("abc"), version=st.integers(1, 9), payload=st.binary(max_size=9)
        )
        def save_snapshot(self, stream, version, payload) -> None:
            self.log.save_snapshot(Snapshot(stream, version, "l", payload))
            self.snapshots[stream, version] = payload

        @rule(stream=st.sampled_from("abc"), until=st.none() | st.integers(0, 10))
        def snapshot(self, stream, until) -> None:
            versions = [
                v for s, v in self.snapshots if s == stream and (until is None or v <= until)
            ]
            expected = None
            if versions:
                version = max(versions)
                expected = Snapshot(stream, version, "l", self.snapshots[stream, version])

            assert self.log.snapshot(stream, "l", until) == expected

        @precondition(lambda self: self.records)
        @rule(data=st.data(), off=st.integers(-1, 1))
        def as_of(self, data, off) -> None:
            time_ns = data.draw(st.sampled_from(self.records)).time_ns + off
            before = [r.position for r in self.records if r.time_ns <= time_ns]

            assert self.log.position_at(time_ns) == (before[-1] if before else 0)

        @precondition(lambda self: persistent)
        @rule()
        def reopen(self) -> None:
            self.log.close()
            self.log = place(clock=self.clock)

        @rule()
        def verify(self) -> None:
            found = self.log.verify()

            assert found.ok, found
            assert found.erased == sum(r.payload is None for r in self.records)

        @invariant()
        def reads_are_the_list(self) -> None:
            if not hasattr(self, "log"):
                return
            assert self.log.read_all() == self.records
            for stream in "abc":
                mine = [r for r in self.records if r.stream == stream]
                assert self.log.read(stream) == mine
                assert self.log.head(stream) == (mine[-1].version if mine else None)

        def teardown(self) -> None:
            if hasattr(self, "log"):
                self.log.close()

    Model.TestCase.settings = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None
    )
    return Model.TestCase
