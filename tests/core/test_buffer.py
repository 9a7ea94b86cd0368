"""StreamBuffer: what a producer, a reader and a latecomer can rely on."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from atlas.core.buffer import BufferReader, StreamBuffer
from atlas.errors import (
    BufferClosedError,
    BufferOverflowError,
    BufferTimeoutError,
    ConfigurationError,
    StreamBufferError,
)


def put_all(buffer: StreamBuffer, items) -> None:
    for item in items:
        assert buffer.put_nowait(item)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def collect(reader: BufferReader) -> list:
    return [item async for item in reader]


# -- reading ------------------------------------------------------------------------------------


async def test_a_reader_gets_every_item_in_order():
    buffer = StreamBuffer[str]()
    put_all(buffer, "abc")
    buffer.close()
    reader = buffer.read()

    assert await collect(reader) == ["a", "b", "c"]
    assert reader.ending == "closed"


async def test_every_reader_gets_every_item():
    buffer = StreamBuffer[int]()
    readers = [buffer.read() for _ in range(3)]
    put_all(buffer, range(5))
    buffer.close()

    assert [await collect(reader) for reader in readers] == [[0, 1, 2, 3, 4]] * 3


def test_a_reader_can_be_iterated_without_a_loop():
    buffer = StreamBuffer[str]()
    put_all(buffer, "ab")
    buffer.close()

    assert list(buffer.read()) == ["a", "b"]


async def test_a_waiting_reader_is_woken_by_a_put():
    buffer = StreamBuffer[str]()
    task = asyncio.create_task(anext(buffer.read()))
    await settle()
    assert not task.done()
    buffer.put_nowait("a")

    assert await task == "a"


async def test_a_batch_holds_all_that_is_there_and_is_empty_at_the_end():
    buffer = StreamBuffer[str]()
    reader = buffer.read()
    put_all(buffer, "abc")

    assert await reader.next_batch() == ["a", "b", "c"]
    buffer.close()
    assert await reader.next_batch() == []


async def test_falsy_items_are_items():
    buffer = StreamBuffer[object]()
    put_all(buffer, [None, 0, "", []])
    buffer.close()

    assert await collect(buffer.read()) == [None, 0, "", []]


async def test_a_second_consumer_on_one_reader_is_refused():
    buffer = StreamBuffer[str]()
    reader = buffer.read()
    task = asyncio.create_task(anext(reader))
    await settle()

    with pytest.raises(StreamBufferError, match="reader of its own"):
        await anext(reader)
    buffer.close()
    with pytest.raises(StopAsyncIteration):
        await task


async def test_items_are_released_once_every_reader_passed_them():
    class Item:
        pass

    import weakref

    buffer = StreamBuffer[Item]()
    fast, slow = buffer.read(), buffer.read()
    item = Item()
    alive = weakref.ref(item)
    buffer.put_nowait(item)
    del item
    await anext(fast)
    assert alive() is not None
    await anext(slow)

    assert alive() is None


# -- late readers ---------------------------------------------------------------------------------


async def test_a_late_reader_gets_the_accumulated_text_first_then_live_items():
    buffer = StreamBuffer[str]()
    first = buffer.read()
    put_all(buffer, "abc")
    await anext(first)
    late = buffer.read()
    put_all(buffer, "de")
    buffer.close()

    assert await collect(late) == ["abc", "d", "e"]
    assert "a" + "".join(await collect(first)) == buffer.accumulated == "abcde"


async def test_a_reader_after_the_end_gets_the_whole_text():
    buffer = StreamBuffer[str]()
    put_all(buffer, "abc")
    buffer.close()
    await collect(buffer.read())

    assert await collect(buffer.read()) == ["abc"]


async def test_a_late_reader_of_what_cannot_be_merged_gets_the_window_and_counts_the_rest():
    buffer = StreamBuffer[int]()
    fast, slow = buffer.read(), buffer.read()
    put_all(buffer, range(4))
    buffer.close()
    await collect(fast)
    await anext(slow)
    late = buffer.read()

    assert await collect(late) == [1, 2, 3]
    assert late.stats.missed == 1
    assert late.stats.delivered == 3


async def test_a_late_reader_of_anything_with_a_merge_gets_it_merged():
    buffer = StreamBuffer[int](merge=lambda a, b: a + b)
    first = buffer.read()
    put_all(buffer, [1, 2, 3])
    await first.next_batch()
    late = buffer.read()
    buffer.put_nowait(4)
    buffer.close()

    assert await collect(late) == [6, 4]
    assert late.stats.merged == 2


async def test_a_reader_may_begin_with_the_next_item():
    buffer = StreamBuffer[str]()
    put_all(buffer, "ab")
    live = buffer.read(from_start=False)
    put_all(buffer, "c")
    buffer.close()

    assert await collect(live) == ["c"]


async def test_what_arrives_before_the_first_reader_is_kept_as_it_came():
    buffer = StreamBuffer[str](capacity=3)
    put_all(buffer, "abc")

    assert not buffer.put_nowait("d")
    assert await buffer.read().next_batch() == ["a", "b", "c"]


def test_accumulated_is_none_at_first_and_refuses_what_cannot_be_merged():
    buffer = StreamBuffer[int]()
    assert buffer.accumulated is None
    buffer.put_nowait(1)

    with pytest.raises(StreamBufferError, match="merge"):
        _ = buffer.accumulated


def test_accumulated_text_survives_compaction():
    buffer = StreamBuffer[str](capacity=4, overflow="drop_oldest")
    words = [f"{number} " for number in range(2000)]
    for word in words:
        buffer.put_nowait(word)

    assert buffer.accumulated == "".join(words)
    assert buffer.accumulated is buffer.accumulated


def test_text_followed_by_something_else_is_named():
    buffer = StreamBuffer[object]()
    put_all(buffer, ["a", 1])

    with pytest.raises(StreamBufferError, match="began with text"):
        _ = buffer.accumulated


# -- policies -------------------------------------------------------------------------------------


async def test_block_holds_the_producer_until_the_low_water_mark():
    buffer = StreamBuffer[int](capacity=4, low_water=1)
    reader = buffer.read()
    put_all(buffer, range(4))
    assert not buffer.put_nowait(99)
    task = asyncio.create_task(buffer.put(4))
    await settle()

    assert [await anext(reader), await anext(reader)] == [0, 1]
    await settle()
    assert not task.done()
    assert await anext(reader) == 2
    await task
    assert await reader.next_batch() == [3, 4]


async def test_closing_a_slow_reader_frees_the_producer():
    buffer = StreamBuffer[int](capacity=2)
    fast, slow = buffer.read(), buffer.read()
    put_all(buffer, range(2))
    task = asyncio.create_task(buffer.put(2))
    await fast.next_batch()
    await settle()
    assert not task.done()
    slow.close()
    await task

    assert await fast.next_batch() == [2]
    assert slow.ending == "detached"


async def test_closing_a_reader_ends_the_consumer_that_waits_in_it():
    buffer = StreamBuffer[int]()
    reader = buffer.read()
    task = asyncio.create_task(collect(reader))
    await settle()
    reader.close()
    reader.close()

    assert await asyncio.wait_for(task, 10) == []


async def test_closing_the_only_reader_frees_the_producer():
    buffer = StreamBuffer[int](capacity=2)
    async with buffer.read():
        put_all(buffer, range(2))
        task = asyncio.create_task(buffer.put(2))
        await settle()
        assert not task.done()
    await task

    assert buffer.stats.pending == 1


def test_drop_oldest_keeps_the_newest():
    buffer = StreamBuffer[int](capacity=3, overflow="drop_oldest")
    reader = buffer.read()
    put_all(buffer, range(7))
    buffer.close()

    assert list(reader) == [4, 5, 6]
    assert reader.stats.dropped == 4


def test_drop_newest_keeps_the_oldest_and_says_so():
    buffer = StreamBuffer[int](capacity=3, overflow="drop_newest")
    reader = buffer.read()

    assert [buffer.put_nowait(n) for n in range(5)] == [True, True, True, False, False]
    buffer.close()
    assert list(reader) == [0, 1, 2]
    assert reader.stats.dropped == 2


def test_a_slow_reader_loses_only_its_own_items():
    buffer = StreamBuffer[int](capacity=2, overflow="drop_newest")
    fast, slow = buffer.read(), buffer.read()
    seen = []
    for number in range(4):
        buffer.put_nowait(number)
        seen.append(next(fast))
    buffer.close()

    assert seen == [0, 1, 2, 3]
    assert list(slow) == [0, 1]


def test_coalesce_merges_what_does_not_fit():
    buffer = StreamBuffer[str](capacity=3, overflow="coalesce")
    reader = buffer.read()
    put_all(buffer, "abcdef")
    assert len([next(reader), next(reader)]) == 2
    put_all(buffer, "g")

    assert next(reader) == "cdefg"
    assert reader.stats.merged == 4
    put_all(buffer, "h")
    assert next(reader) == "h"


def test_coalesce_needs_a_merge_for_what_is_not_text():
    buffer = StreamBuffer[int](overflow="coalesce")

    with pytest.raises(StreamBufferError, match="cannot be merged"):
        buffer.put_nowait(1)
    assert buffer.stats.accepted == 0


async def test_error_raises_and_no_reader_sees_the_item():
    buffer = StreamBuffer[int](capacity=2, overflow="error")
    fast, slow = buffer.read(), buffer.read()
    put_all(buffer, range(2))
    await fast.next_batch()

    with pytest.raises(BufferOverflowError) as caught:
        await buffer.put(2)
    assert caught.value.capacity == 2
    buffer.close()
    assert await collect(fast) == []
    assert await collect(slow) == [0, 1]


# -- marks ----------------------------------------------------------------------------------------


def test_the_marks_are_told_once_per_crossing():
    told = []
    buffer = StreamBuffer[int](
        capacity=8,
        high_water=4,
        low_water=1,
        on_high=lambda: told.append("high"),
        on_low=lambda: told.append("low"),
    )
    reader = buffer.read()
    put_all(buffer, range(6))
    assert told == ["high"]
    assert buffer.is_high
    for _ in range(4):
        next(reader)
    assert told == ["high"]
    next(reader)

    assert told == ["high", "low"]
    assert not buffer.is_high
    assert buffer.stats.high_water_hits == 1


async def test_put_waits_at_the_high_water_mark_though_there_is_capacity():
    buffer = StreamBuffer[int](capacity=8, high_water=2, low_water=0)
    reader = buffer.read()
    put_all(buffer, range(2))
    task = asyncio.create_task(buffer.put(2))
    await settle()
    assert not task.done()
    await anext(reader)
    await settle()
    assert not task.done()
    await anext(reader)
    await task

    assert await anext(reader) == 2


def test_a_failing_callback_costs_nobody_an_item(caplog):
    def fail() -> None:
        raise RuntimeError("callback")

    buffer = StreamBuffer[int](capacity=2, on_high=fail, on_low=fail)
    reader = buffer.read()
    with caplog.at_level(logging.ERROR):
        put_all(buffer, range(2))
        got = [next(reader), next(reader)]

    assert got == [0, 1]
    assert len(caplog.records) == 2


def test_a_callback_may_use_the_buffer():
    depths = []
    buffer: StreamBuffer[int]
    buffer = StreamBuffer(capacity=2, on_high=lambda: depths.append(buffer.stats.pending))
    put_all(buffer, range(2))

    assert depths == [2]


@pytest.mark.parametrize(
    "settings",
    [
        {"capacity": 0},
        {"overflow": "explode"},
        {"capacity": 4, "high_water": 5},
        {"high_water": 2, "low_water": 2},
        {"low_water": -1},
        {"rate": 0},
        {"rate": float("nan")},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ConfigurationError):
        StreamBuffer(**settings)


# -- pause, resume, cancel, ends ------------------------------------------------------------------


async def test_a_pause_holds_the_reader_and_thereby_the_producer():
    buffer = StreamBuffer[int](capacity=2)
    reader = buffer.read()
    buffer.pause()
    waiting = asyncio.create_task(anext(reader))
    await settle()
    put_all(buffer, range(2))
    producer = asyncio.create_task(buffer.put(2))
    await settle()

    assert not waiting.done()
    assert not producer.done()
    buffer.resume()
    assert await waiting == 0
    assert await anext(reader) == 1
    await producer


async def test_a_paused_reader_still_gets_everything_after_close():
    buffer = StreamBuffer[str]()
    reader = buffer.read()
    buffer.pause()
    put_all(buffer, "ab")
    buffer.close()
    task = asyncio.create_task(collect(reader))
    await settle()
    assert not task.done()
    buffer.resume()

    assert await task == ["a", "b"]


async def test_cancel_wakes_everyone_and_ends_the_readers():
    buffer = StreamBuffer[int](capacity=1)
    full, hungry = buffer.read(), buffer.read()
    put_all(buffer, [1])
    await anext(hungry)
    producer = asyncio.create_task(buffer.put(2))
    consumer = asyncio.create_task(collect(hungry))
    await settle()
    buffer.cancel()

    assert await consumer == []
    with pytest.raises(BufferClosedError, match="cancelled"):
        await producer
    assert await collect(full) == []
    assert full.ending == hungry.ending == buffer.ending == "cancelled"
    assert full.stats.dropped == 1


async def test_cancel_ends_also_paused_and_later_readers():
    buffer = StreamBuffer[str]()
    reader = buffer.read()
    put_all(buffer, "ab")
    buffer.pause()
    task = asyncio.create_task(collect(reader))
    await settle()
    buffer.cancel()

    assert await task == []
    assert await collect(buffer.read()) == []
    assert buffer.accumulated == "ab"


async def test_a_failure_is_raised_after_what_had_arrived():
    buffer = StreamBuffer[str]()
    readers = [buffer.read(), buffer.read()]
    put_all(buffer, "ab")
    buffer.fail(ConnectionError("cut"))

    for reader in readers:
        assert [await anext(reader), await anext(reader)] == ["a", "b"]
        for _ in range(2):
            with pytest.raises(ConnectionError, match="cut"):
                await anext(reader)
        assert reader.ending == "failed"
    with pytest.raises(BufferClosedError) as caught:
        buffer.put_nowait("c")
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_a_waiting_reader_is_woken_by_a_failure():
    buffer = StreamBuffer[str]()
    task = asyncio.create_task(buffer.read().next_batch())
    await settle()
    buffer.fail(ConnectionError("cut"))

    with pytest.raises(ConnectionError):
        await task


async def test_close_wakes_a_waiting_producer_with_an_error():
    buffer = StreamBuffer[int](capacity=1)
    reader = buffer.read()
    put_all(buffer, [1])
    producer = asyncio.create_task(buffer.put(2))
    await settle()
    buffer.close()

    with pytest.raises(BufferClosedError):
        await producer
    assert await collect(reader) == [1]


def test_the_first_end_counts():
    buffer = StreamBuffer[int]()
    buffer.close()
    buffer.fail(ConnectionError())

    assert buffer.ending == "closed"
    assert buffer.closed
    assert list(buffer.read()) == []


# -- cancellation of waiters ----------------------------------------------------------------------


async def test_a_read_cancelled_at_any_moment_loses_no_item():
    buffer = StreamBuffer[int]()
    reader = buffer.read()
    for moment in range(4):
        task = asyncio.create_task(anext(reader))
        for _ in range(moment):
            await asyncio.sleep(0)
        buffer.put_nowait(moment)
        task.cancel()
        try:
            got = await task
        except asyncio.CancelledError:
            got = await anext(reader)

        assert got == moment


async def test_a_cancelled_put_takes_its_item_back():
    buffer = StreamBuffer[int](capacity=1)
    reader = buffer.read()
    put_all(buffer, [1])
    cancelled = asyncio.create_task(buffer.put(2))
    other = asyncio.create_task(buffer.put(3))
    await settle()
    assert await anext(reader) == 1
    cancelled.cancel()
    await asyncio.wait([cancelled, other])
    buffer.close()

    assert cancelled.cancelled()
    assert await collect(reader) == [3]


# -- rate -----------------------------------------------------------------------------------------


class SteppedClock:
    """Advances by ``step`` whenever it is read."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def time_ns(self) -> int:
        return int(self.now * 1e9)

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


async def test_the_rate_limit_gives_out_items_by_the_clock():
    clock = SteppedClock(0.0)
    buffer = StreamBuffer[int](rate=10.0, clock=clock)
    reader = buffer.read()
    put_all(buffer, range(50))
    first = await reader.next_batch()
    clock.now += 0.1
    second = await reader.next_batch()
    clock.now += 60.0
    third = await reader.next_batch()

    assert (first, second, third) == ([0], [1], [2])


async def test_a_limited_reader_waits_for_its_next_item():
    clock = SteppedClock(0.004)
    buffer = StreamBuffer[int](rate=100.0, clock=clock)
    put_all(buffer, range(10))
    buffer.close()

    assert await collect(buffer.read()) == list(range(10))
    assert clock.now >= 0.05  # five items may come at once


async def test_a_limited_read_that_was_cancelled_does_not_delay_the_next_item():
    clock = SteppedClock(0.0)
    buffer = StreamBuffer[int](rate=0.001, clock=clock)
    reader = buffer.read()
    put_all(buffer, [1, 2])
    assert await anext(reader) == 1
    cancelled = asyncio.create_task(anext(reader))
    await settle()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    clock.now += 1000.0
    assert await anext(reader) == 2
    clock.now += 1000.0
    task = asyncio.create_task(anext(reader))
    await settle()
    buffer.put_nowait(3)

    assert await asyncio.wait_for(task, 10) == 3


def test_a_thread_can_read_at_a_limited_rate():
    buffer = StreamBuffer[int](rate=2000.0)
    put_all(buffer, range(150))
    buffer.close()

    assert list(buffer.read()) == list(range(150))


async def test_cancel_ends_a_reader_that_waits_for_its_rate():
    buffer = StreamBuffer[int](rate=0.001)
    put_all(buffer, range(2))
    reader = buffer.read()
    await anext(reader)
    task = asyncio.create_task(collect(reader))
    await settle()
    buffer.cancel()

    assert await task == []


# -- threads --------------------------------------------------------------------------------------


def test_put_from_thread_gives_up_after_its_timeout():
    buffer = StreamBuffer[int](capacity=1)
    reader = buffer.read()
    buffer.put_from_thread(1)

    with pytest.raises(BufferTimeoutError) as caught:
        buffer.put_from_thread(2, timeout=0.01)
    assert caught.value.timeout == 0.01
    buffer.close()
    assert list(reader) == [1]


async def test_a_burst_from_a_thread_wakes_the_loop_once(monkeypatch):
    loop = asyncio.get_running_loop()
    buffer = StreamBuffer[int]()
    reader = buffer.read()
    task = asyncio.create_task(reader.next_batch())
    await settle()
    wakes = []
    original = loop.call_soon_threadsafe
    monkeypatch.setattr(
        loop, "call_soon_threadsafe", lambda *args: (wakes.append(args), original(*args))
    )
    thread = threading.Thread(target=put_all, args=(buffer, range(100)))
    thread.start()
    thread.join()

    assert len(wakes) == 1
    assert await task == list(range(100))


def test_a_reader_whose_loop_is_gone_does_not_hurt_the_producer():
    buffer = StreamBuffer[int]()
    loop = asyncio.new_event_loop()
    task = loop.create_task(anext(buffer.read()))
    loop.call_soon(loop.stop)
    loop.run_forever()
    task.cancel()
    loop.close()
    errors = []

    def produce() -> None:
        try:
            buffer.put_nowait(1)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=produce)
    thread.start()
    thread.join()

    assert errors == []


def test_readers_on_many_loops_and_threads_see_what_many_producers_put():
    buffer = StreamBuffer[tuple[int, int]](capacity=16)
    seen: list[list[tuple[int, int]]] = []

    def read_in_thread(reader: BufferReader) -> None:
        seen.append(list(reader))

    def read_in_loop(reader: BufferReader) -> None:
        seen.append(asyncio.run(collect(reader)))

    def produce_in_thread(name: int) -> None:
        for number in range(500):
            buffer.put_from_thread((name, number))

    def produce_in_loop(name: int) -> None:
        async def main() -> None:
            for number in range(500):
                await buffer.put((name, number))

        asyncio.run(main())

    consumers = [
        threading.Thread(target=target, args=(buffer.read(),))
        for target in (read_in_thread, read_in_thread, read_in_loop, read_in_loop)
    ]
    producers = [
        threading.Thread(target=target, args=(name,))
        for name, target in enumerate((produce_in_thread, produce_in_loop) * 2)
    ]
    for thread in consumers + producers:
        thread.start()
    for thread in producers:
        thread.join(60)
    buffer.close()
    for thread in consumers:
        thread.join(60)

    assert len(seen) == 4
    assert seen.count(seen[0]) == 4
    for name in range(4):
        assert [n for who, n in seen[0] if who == name] == list(range(500))


# -- races, forced --------------------------------------------------------------------------------


class MeddledBuffer(StreamBuffer):
    """Lets another thread's step happen at a moment of the test's choice."""

    def __init__(self, *args, **options) -> None:
        self.before_put = self.after_lag = lambda: None
        super().__init__(*args, **options)

    def put_nowait(self, item) -> bool:
        meddle, self.before_put = self.before_put, lambda: None
        meddle()
        return super().put_nowait(item)

    def _lag(self) -> int:
        lag = super()._lag()
        meddle, self.after_lag = self.after_lag, lambda: None
        meddle()
        return lag


async def test_an_item_dropped_because_others_were_quicker_is_not_put_again():
    buffer = MeddledBuffer(capacity=4, overflow="drop_newest")
    reader = buffer.read()
    put_all(buffer, [0])
    buffer.before_put = lambda: put_all(buffer, [1, 2, 3])
    buffer.put_from_thread(9)

    assert buffer.stats.accepted == 5
    assert await reader.next_batch() == [0, 1, 2, 3]


async def test_reads_that_come_just_before_the_mark_is_raised_are_not_overlooked():
    buffer = MeddledBuffer(capacity=2)
    reader = buffer.read()
    put_all(buffer, [0])
    got = []
    buffer.after_lag = lambda: setattr(
        buffer, "after_lag", lambda: got.extend([next(reader), next(reader)])
    )
    put_all(buffer, [1])

    assert got == [0, 1]
    assert not buffer.is_high
    await asyncio.wait_for(buffer.put(2), 10)


async def test_cancelled_waiters_leave_nothing_behind():
    buffer = StreamBuffer[int](capacity=1)
    reader = buffer.read()
    reads = [asyncio.create_task(anext(buffer.read())) for _ in range(3)]
    await settle()
    for task in reads:
        task.cancel()
    await asyncio.wait(reads)
    assert buffer._sleepers == []
    put_all(buffer, [1])
    puts = [asyncio.create_task(buffer.put(2)) for _ in range(3)]
    await settle()
    for task in puts:
        task.cancel()
    await asyncio.wait(puts)

    assert buffer._sleepers == buffer._blocked == buffer._parked == []
    assert await anext(reader) == 1


async def test_a_paused_reader_is_not_woken_by_every_item():
    buffer = StreamBuffer[int]()
    reader = buffer.read()
    task = asyncio.create_task(anext(reader))
    await settle()
    buffer.pause()
    sleeper = reader._waiting
    put_all(buffer, [1, 2])
    await settle()

    assert reader._waiting is sleeper
    buffer.resume()
    assert await task == 1
