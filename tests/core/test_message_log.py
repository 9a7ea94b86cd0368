"""The message log: everything that crosses a bus is stored, run by run, or loudly is not."""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from types import FrameType
from typing import Literal

import pytest

from atlas import Event, EventBus, message
from atlas.core.log.engine import Append, Engine, Join
from atlas.core.log.memory import MemoryEngine
from atlas.core.log.records import NewRecord
from atlas.core.log.sqlite import SqliteEngine
from atlas.core.message_log import Fate, LogFailed, LogRecovered, MessageLog, stream_of
from atlas.core.message_pages import OUTSIDE, unpack
from atlas.core.messages import Message
from atlas.errors import (
    ConfigurationError,
    LogClosedError,
    LogUnavailableError,
    VersionConflictError,
)


@message("kept.counted")
class Counted(Event):
    number: int


class LostServer(MemoryEngine):
    """Stores an append, and is gone before it can say so, once."""

    is_lost = False

    def append(
        self,
        records: Sequence[NewRecord],
        *,
        expect: Mapping[str, int] | None = None,
        tracking: tuple[str, int] | None = None,
    ) -> Append:
        done = super().append(records, expect=expect, tracking=tracking)
        if self.is_lost:
            self.is_lost = False
            raise LogUnavailableError("The server is gone.")
        return done


class FullEngine(MemoryEngine):
    """An engine whose disk is full while it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_full = threading.Event()

    def append(
        self,
        records: Sequence[NewRecord],
        *,
        expect: Mapping[str, int] | None = None,
        tracking: tuple[str, int] | None = None,
    ) -> Append:
        if self.is_full.is_set():
            raise LogUnavailableError("The disk is full. Make room.")
        return super().append(records, expect=expect, tracking=tracking)


@pytest.fixture
def engine() -> Iterator[FullEngine]:
    engine = FullEngine()
    yield engine
    engine.close()


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus() as bus:
        yield bus


def stored(engine: Engine, run: str) -> list[Message]:
    records = engine.read(stream_of(run))
    return [each for record in records for each in unpack(record.payload or b"")]


def numbers(engine: Engine, run: str) -> list[int]:
    return [each.number for each in stored(engine, run) if isinstance(each, Counted)]


def test_messages_are_stored_by_run_in_published_order(engine: FullEngine, bus: EventBus) -> None:
    log = MessageLog(engine, session="s", page=16)
    log.attach(bus)
    for number in range(100):
        bus.publish(Counted(number), run=f"r{number % 2}")
    log.close()

    assert numbers(engine, "r0") == list(range(0, 100, 2))
    assert numbers(engine, "r1") == list(range(1, 100, 2))
    assert engine.head(stream_of("r0")) == 50


def test_messages_outside_every_run_belong_to_the_session(
    engine: FullEngine, bus: EventBus
) -> None:
    log = MessageLog(engine, session="s1")
    log.attach(bus)
    bus.publish(Counted(1))
    log.close()

    assert numbers(engine, "s1") == [1]


def test_four_threads_lose_nothing_and_keep_the_order_of_each(
    engine: FullEngine, bus: EventBus
) -> None:
    log = MessageLog(engine, session="s", interval=0.001)
    log.attach(bus)

    def publish(thread: int) -> None:
        for number in range(2_000):
            bus.publish(Counted(number), run=f"t{thread}")

    threads = [threading.Thread(target=publish, args=(each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()

    assert all(numbers(engine, f"t{each}") == list(range(2_000)) for each in range(4))


async def test_after_commit_everything_published_before_is_stored(
    engine: FullEngine, bus: EventBus
) -> None:
    log = MessageLog(engine, session="s", interval=60.0)
    log.attach(bus)
    bus.publish(Counted(1), run="r")
    await asyncio.wait_for(log.commit(), 10)

    assert numbers(engine, "r") == [1]
    bus.publish(Counted(2), run="r")
    log.flush(10)
    assert numbers(engine, "r") == [1, 2]
    log.close()


def test_messages_wait_for_a_full_disk_and_the_bus_is_told(
    engine: FullEngine, bus: EventBus
) -> None:
    log = MessageLog(engine, session="s", interval=0.001)
    log.attach(bus)
    failed, recovered = threading.Event(), threading.Event()
    bus.subscribe(LogFailed, lambda _: failed.set())
    bus.subscribe(LogRecovered, lambda _: recovered.set())
    engine.is_full.set()
    bus.publish(Counted(1), run="r")
    assert failed.wait(10)
    with pytest.raises(LogUnavailableError, match="disk is full"):
        log.flush(10)
    bus.publish(Counted(2), run="r")

    engine.is_full.clear()
    assert recovered.wait(10)
    log.close()

    assert numbers(engine, "r") == [1, 2]
    assert log.lost == 0


def test_closing_while_the_disk_is_full_says_how_much_is_lost(
    engine: FullEngine, bus: EventBus
) -> None:
    log = MessageLog(engine, session="s", interval=0.001)
    log.attach(bus)
    engine.is_full.set()
    bus.publish(Counted(1), run="r")
    bus.publish(Counted(2), run="r")

    with pytest.raises(LogUnavailableError, match=r"lost.*disk is full"):
        log.close()


def test_a_publisher_waits_for_room_and_then_is_refused_loudly(engine: FullEngine) -> None:
    bus = EventBus(strict=False)
    log = MessageLog(engine, session="s", capacity=2, interval=0.001, patience=0.05)
    log.attach(bus)
    engine.is_full.set()
    receipts = [bus.publish(Counted(number), run="r") for number in range(10)]

    refused = [receipt for receipt in receipts if receipt.errors]
    assert refused
    assert log.lost == len(refused)
    assert "no room" in str(refused[0].errors[0])
    with pytest.raises(LogUnavailableError, match="lost"):
        log.close()


def test_without_a_session_only_watched_runs_are_kept_as_their_gates_decide(
    engine: FullEngine, bus: EventBus
) -> None:
    log = MessageLog(engine)
    log.attach(bus)

    def gate(each: Message) -> Fate:
        assert isinstance(each, Counted)
        return ("keep", "outside", "drop")[each.number]  # type: ignore[return-value]

    log.watch("r", gate)
    for number in range(3):
        bus.publish(Counted(number), run="r")
    log.watch("r", None)
    bus.publish(Counted(0), run="r")
    bus.publish(Counted(0))
    log.close()

    assert numbers(engine, "r") == [0, 1]
    assert [OUTSIDE in each.meta.headers for each in stored(engine, "r")] == [False, True]
    assert engine.streams() == [stream_of("r")]


def test_a_run_that_shares_a_beginning_goes_on_counting_behind_it(
    engine: FullEngine, bus: EventBus
) -> None:
    log = MessageLog(engine, session="s")
    log.attach(bus)
    log.begin("fork", 12)
    bus.publish(Counted(1), run="fork")
    log.close()

    assert engine.head(stream_of("fork")) == 13


def test_two_logs_may_write_the_same_run_in_turn(engine: FullEngine, bus: EventBus) -> None:
    one, other = MessageLog(engine, session="s"), MessageLog(engine, session="s")
    other_bus = EventBus()
    one.attach(bus)
    other.attach(other_bus)
    for number in range(0, 10, 2):
        bus.publish(Counted(number), run="r")
        one.flush(10)
        other_bus.publish(Counted(number + 1), run="r")
        other.flush(10)
    one.close()
    other.close()

    assert numbers(engine, "r") == list(range(10))


def test_a_closed_log_takes_nothing_more(engine: FullEngine, bus: EventBus) -> None:
    log = MessageLog(engine)
    log.close()
    log.close()

    with pytest.raises(LogClosedError):
        log.attach(bus)
    with pytest.raises(LogClosedError):
        log.flush()


@pytest.mark.parametrize("name", ["capacity", "page"])
def test_sizes_below_one_are_refused(engine: FullEngine, name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        MessageLog(engine, **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("is_watched", [True, False])
def test_what_a_server_stored_before_it_was_lost_is_not_stored_twice(is_watched: bool) -> None:
    with closing(LostServer()) as engine, closing(EventBus()) as bus:
        log = MessageLog(engine, session="s", interval=0.001)
        log.attach(bus)
        if is_watched:
            log.watch("r", lambda _: "keep")
        bus.publish(Counted(1), run="r")
        log.flush()
        engine.is_lost = True
        bus.publish(Counted(2), run="r")
        with suppress(LogUnavailableError):  # who waits is told; it is tried again
            log.flush()
        bus.publish(Counted(3), run="r")
        log.close()

        assert numbers(engine, "r") == [1, 2, 3]


@pytest.mark.parametrize("count", [1, 5])  # also where it has written more than the other
async def test_a_run_that_another_writes_to_is_not_kept_any_more_and_others_are(
    engine: FullEngine, bus: EventBus, count: int
) -> None:
    log, other_bus = MessageLog(engine, session="s", interval=0.001), EventBus()
    log.attach(bus)
    for run in ("ours", "lost"):
        log.watch(run, lambda _: "keep")
        bus.publish(Counted(1), run=run)
    log.flush()
    other = MessageLog(engine, session="o", interval=0.001)
    other.attach(other_bus)
    other.watch("lost", lambda _: "keep", seen=1)
    other_bus.publish(Counted(10), run="lost")
    other.flush()
    bus.publish(Counted(2), run="ours")
    for _ in range(count):
        bus.publish(Counted(2), run="lost")
    with pytest.raises(VersionConflictError, match="Another process has gone on with run lost"):
        log.flush()
    log.watch("lost", None)
    bus.publish(Counted(3), run="ours")
    bus.publish(Counted(3), run="lost")
    committed = await asyncio.gather(
        *map(log.commit, ("ours", "lost", None)), return_exceptions=True
    )
    assert [type(each) for each in committed] == [type(None), *[VersionConflictError] * 2]
    with pytest.raises(LogUnavailableError, match=rf"{count + 1} lost.*gone on with run lost"):
        log.close()
    other_bus.publish(Counted(11), run="lost")
    other.close()
    other_bus.close()

    assert numbers(engine, "ours") == [1, 2, 3]
    assert numbers(engine, "lost") == [1, 10, 11]


def test_who_goes_on_from_what_was_read_too_early_is_refused(
    engine: FullEngine, bus: EventBus
) -> None:
    log = MessageLog(engine, session="s", interval=0.001)
    log.attach(bus)
    bus.publish(Counted(1), run="r")
    bus.publish(Counted(2), run="r")
    log.close()
    late = MessageLog(engine, session="s", interval=0.001)
    late.attach(bus)
    late.watch("r", lambda _: "keep", seen=1)
    bus.publish(Counted(3), run="r")
    with pytest.raises(LogUnavailableError, match="Another process has gone on"):
        late.close()

    assert numbers(engine, "r") == [1, 2]


async def test_what_was_committed_bit_by_bit_is_read_at_once_and_kept_together(
    bus: EventBus, tmp_path: Path
) -> None:
    with closing(SqliteEngine(tmp_path / "runs.db", durability="process")) as engine:
        log = MessageLog(engine, interval=60)
        await watched(log, bus, "r")
        for number in range(1, 1_001):
            bus.publish(Counted(number), run="r")
            engine._commits.took = 0.0  # however slow the disk is
            await log.commit("r")
            if number % 333 == 0:
                assert numbers(engine, "r") == [*range(number + 1)]
        log.close()

        assert numbers(engine, "r") == [*range(1_001)]
        assert len(engine.read(stream_of("r"))) < 100


async def test_two_who_go_on_with_a_run_are_never_both_told_that_it_is_kept(
    tmp_path: Path,
) -> None:
    path = tmp_path / "runs.db"
    with (
        closing(SqliteEngine(path, durability="process")) as first,
        closing(SqliteEngine(path, durability="process")) as second,
        EventBus() as bus,
        EventBus() as other_bus,
    ):
        log, other = MessageLog(first, interval=60), MessageLog(second, interval=60)
        await watched(log, bus, "r")
        for number in (1, 2, 3):
            bus.publish(Counted(number), run="r")
            first._commits.took = 0.0
            await log.commit("r")
        other.attach(other_bus)
        other.watch("r", lambda _: "keep", seen=second.head(stream_of("r")))
        other_bus.publish(Counted(4), run="r")
        await other.commit("r")
        for number in (5, 6):
            other_bus.publish(Counted(number), run="r")
            second._commits.took = 0.0
            await other.commit("r")
        for _ in range(10):
            bus.publish(Counted(99), run="r")
        first._commits.took = 0.0
        with pytest.raises(VersionConflictError, match="gone on with run r"):
            await log.commit("r")
        other.close()
        with pytest.raises(LogUnavailableError, match="10 lost"):
            log.close()

        assert numbers(first, "r") == [*range(7)]


def test_many_who_wait_for_room_all_get_it(engine: FullEngine, bus: EventBus) -> None:
    log = MessageLog(engine, session="s", capacity=1, interval=0.001, patience=3)
    log.attach(bus)
    with ThreadPoolExecutor(8) as pool:
        for thread in range(8):
            pool.submit(lambda of: [bus.publish(Counted(of)) for _ in range(50)], thread)
    log.close()

    assert log.lost == 0
    assert sorted(numbers(engine, "s")) == sorted([*range(8)] * 50)


class CannotEnter(MemoryEngine):
    """An engine that keeps notes, and cannot enter them for a while."""

    refused = 0

    def flush(self, timeout: float | None = None) -> None:
        self.refused += 1
        raise LogUnavailableError("The disk is full. Make room.")


async def test_notes_that_cannot_be_entered_yet_are_kept_and_no_trouble(bus: EventBus) -> None:
    engine = CannotEnter()
    log = MessageLog(engine, interval=0.001)
    await watched(log, bus, "r")
    for number in range(1, 100):
        bus.publish(Counted(number), run="r")
        await log.commit("r")
    log.close()

    assert numbers(engine, "r") == [*range(100)]
    assert engine.refused
    assert (log.lost, [each for each in bus.history if isinstance(each, LogFailed)]) == (0, [])


# -- in the thread of the loop --


class Interrupt:
    """Raises `KeyboardInterrupt` in this thread, at one of the moments at which Python may.

    That is when a function begins, or has returned.
    """

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, what: str, argument: object) -> None:
        if what == "c_call":
            return
        self.left -= 1
        if self.left == 0:
            sys.setprofile(None)
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        sys.setprofile(self)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


async def test_an_interrupt_at_any_moment_of_a_commit_loses_nothing_and_stores_nothing_twice(
    tmp_path: Path, bus: EventBus
) -> None:
    with closing(SqliteEngine(tmp_path / "runs.db", durability="process")) as engine:
        log = MessageLog(engine, interval=60)
        log.attach(bus)
        log.watch("r", lambda _: "keep")
        number, interrupted, at_once = 0, 0, 0
        for at in itertools.count(1):
            for _ in range(3):
                number += 1
                bus.publish(Counted(number), run="r")
            await log.commit("r")
            number += 1
            bus.publish(Counted(number), run="r")
            engine._commits.took = 0.0  # however slow the disk is
            try:
                with Interrupt(at):
                    stored_already = log.commit("r").done()
            except KeyboardInterrupt:
                interrupted += 1
                log.flush(60)
                continue
            at_once += stored_already
            if at > interrupted + 20:
                break
        log.close()

        assert numbers(engine, "r") == [*range(1, number + 1)]
        assert (interrupted > 100, at_once > 0) == (True, True)


@message("kept.said")
class Said(Event):
    text: str


class Balking(MemoryEngine):
    """An engine that does not store at once what it is asked to, or stores it and cannot say so."""

    how: Literal["well", "not", "fails", "breaks", "is lost"] = "well"

    def note(self, records: Sequence[NewRecord], join: Join | None = None) -> bool:
        if self.how in ("well", "is lost"):
            self.append(records).wait()
            if self.how == "well":
                return True
        if self.how == "not":
            return False
        if self.how == "breaks":
            raise ZeroDivisionError
        raise LogUnavailableError("The disk is full. Make room.")


async def watched(log: MessageLog, bus: EventBus, *runs: str) -> None:
    """Have the log keep these runs, of which the last one was the last to ask for a commit."""
    log.attach(bus)
    for run in runs:
        log.watch(run, lambda _: "keep")
        bus.publish(Counted(0), run=run)
        await log.commit(run)


async def test_a_run_alone_in_asking_for_it_has_its_messages_stored_at_once(bus: EventBus) -> None:
    with closing(MemoryEngine()) as engine:
        log = MessageLog(engine, interval=60)
        await watched(log, bus, "r")
        for number in itertools.count(1):
            bus.publish(Counted(number), run="r")
            stored_at_once = log.commit("r")
            if stored_at_once.done():  # unless the thread has not come to rest yet
                break
            await stored_at_once

        assert numbers(engine, "r") == [*range(number + 1)]
        assert log.commit("r").done()  # there is nothing to do
        log.close()


async def test_where_runs_ask_in_turn_they_wait_for_one_transaction(bus: EventBus) -> None:
    with closing(MemoryEngine()) as engine:
        log = MessageLog(engine, interval=60)
        await watched(log, bus, "a", "b")
        waiting: list[asyncio.Future[None]] = []
        for number in (1, 2):
            for run in ("a", "b"):
                bus.publish(Counted(number), run=run)
                waiting.append(log.commit(run))

        assert not any(each.done() for each in waiting)
        await asyncio.gather(*waiting)
        assert (numbers(engine, "a"), numbers(engine, "b")) == ([0, 1, 2], [0, 1, 2])
        log.close()


@pytest.mark.parametrize(("count", "size"), [(1, 100_000), (100, 1)])
async def test_what_would_hold_the_loop_up_is_left_to_the_thread(
    count: int, size: int, bus: EventBus
) -> None:
    with closing(MemoryEngine()) as engine:
        log = MessageLog(engine, interval=60)
        await watched(log, bus, "r")
        for _ in range(count):
            bus.publish(Said("x" * size), run="r")
        waiting = log.commit("r")

        assert not waiting.done()
        await waiting
        assert len(stored(engine, "r")) == 1 + count
        log.close()


@pytest.mark.parametrize("how", ["not", "fails", "breaks", "is lost"])
async def test_what_cannot_be_stored_at_once_is_stored_once_by_the_thread(
    how: Literal["not", "fails", "breaks", "is lost"], bus: EventBus
) -> None:
    with closing(Balking()) as engine:
        log = MessageLog(engine, interval=60)
        await watched(log, bus, "r")
        for number in range(1, 10):
            engine.how = how if number % 2 else "well"
            bus.publish(Counted(number), run="r")
            waiting = log.commit("r")
            bus.publish(Counted(number), run="r")
            await waiting
        log.close()

        assert numbers(engine, "r") == [0, *[number // 2 for number in range(2, 20)]]


def test_a_run_does_not_go_on_before_the_log_hears_it():
    """The log subscribes when the first run is watched; a second one, in another thread, may come first."""
    subscribing, go_on = threading.Event(), threading.Event()

    class SlowBus(EventBus):
        __slots__ = ()

        def subscribe(self, *args, **options):
            subscribing.set()
            assert go_on.wait(10)
            return super().subscribe(*args, **options)

    with closing(MemoryEngine()) as engine, closing(MessageLog(engine)) as log:
        log.attach(SlowBus())
        first, second = (
            threading.Thread(target=log.watch, args=(run, lambda _: "keep")) for run in "ab"
        )
        first.start()
        assert subscribing.wait(10)
        second.start()
        second.join(0.1)
        is_waiting = second.is_alive()
        go_on.set()
        first.join(10)
        second.join(10)

    assert is_waiting
