"""Laws of StreamBuffer, whatever its settings and however its users interleave."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atlas.core.buffer import BufferReader, OverflowPolicy, StreamBuffer
from atlas.errors import BufferClosedError, BufferOverflowError

POLICIES: list[OverflowPolicy] = ["block", "drop_oldest", "drop_newest", "coalesce", "error"]


def numbers() -> Iterator[str]:
    """Distinct tokens, so that any loss, repetition or change of order shows in the text."""
    number = 0
    while True:
        yield f"{number};"
        number += 1


def is_subsequence(text: str, whole: str) -> bool:
    tokens = iter(whole.split(";"))
    return all(token in tokens for token in text.split(";"))


def assert_adds_up(reader: BufferReader[str], accepted: int) -> None:
    stats = reader.stats
    total = stats.delivered + stats.dropped + stats.merged + stats.missed + stats.pending

    assert total == accepted
    assert min(stats.delivered, stats.dropped, stats.merged, stats.missed, stats.pending) >= 0


class BufferMachine(RuleBasedStateMachine):
    """One buffer of text, its readers, and a plain list of what each of them must have got."""

    policy: OverflowPolicy = "block"

    def __init__(self) -> None:
        super().__init__()
        self.tokens = numbers()
        self.buffer = StreamBuffer[str](capacity=4, high_water=3, low_water=1, overflow=self.policy)
        self.accepted: list[str] = []
        self.readers: list[tuple[BufferReader[str], list[str]]] = []

    @rule(count=st.integers(1, 6))
    def put(self, count: int) -> None:
        for _ in range(count):
            token = next(self.tokens)
            try:
                taken = self.buffer.put_nowait(token)
            except BufferOverflowError:
                assert self.policy == "error"
                continue
            except BufferClosedError:
                assert self.buffer.closed
                continue
            if taken or self.policy == "drop_newest":
                self.accepted.append(token)

    @precondition(lambda self: len(self.readers) < 4)
    @rule()
    def join(self) -> None:
        self.readers.append((self.buffer.read(), []))

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, 3), count=st.integers(1, 6))
    def read(self, which: int, count: int) -> None:
        reader, got = self.readers[which % len(self.readers)]
        for _ in range(count):
            if self.buffer.paused or (not reader.pending and not self.buffer.closed):
                return
            got.extend([item] if (item := next(reader, None)) is not None else [])

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, 3))
    def leave(self, which: int) -> None:
        reader, _ = self.readers.pop(which % len(self.readers))
        reader.close()
        assert next(reader, None) is None

    @rule()
    def pause_or_resume(self) -> None:
        (self.buffer.resume if self.buffer.paused else self.buffer.pause)()

    @precondition(lambda self: len(self.accepted) > 20)
    @rule()
    def close(self) -> None:
        self.buffer.close()

    @invariant()
    def every_item_is_accounted_for(self) -> None:
        assert self.buffer.stats.accepted == len(self.accepted)
        for reader, got in self.readers:
            assert_adds_up(reader, len(self.accepted))
            assert reader.stats.delivered == len(got)

    @invariant()
    def the_window_is_bounded(self) -> None:
        for reader, _ in self.readers:
            assert len(reader._items) + bool(reader._overflow) <= self.buffer.capacity

    @invariant()
    def the_accumulated_text_is_all_that_was_accepted(self) -> None:
        assert (self.buffer.accumulated or "") == "".join(self.accepted)

    def teardown(self) -> None:
        self.buffer.resume()
        self.buffer.close()
        whole = "".join(self.accepted)
        for reader, got in self.readers:
            text = "".join(got + list(reader))
            assert is_subsequence(text, whole)
            if reader.stats.dropped == 0:
                assert text == whole
            if self.policy in {"block", "coalesce", "error"}:
                assert reader.stats.dropped == 0
        assert "".join(self.buffer.read()) == whole


@pytest.mark.parametrize("policy", POLICIES)
def test_the_buffer_behaves_like_its_model(policy):
    machine = type(f"BufferMachine_{policy}", (BufferMachine,), {"policy": policy})
    machine.TestCase.settings = settings(
        max_examples=40, stateful_step_count=40, deadline=None, derandomize=True
    )
    machine.TestCase().runTest()


# -- interleavings of tasks -----------------------------------------------------------------------

ticks = st.integers(0, 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    capacity=st.integers(1, 5),
    producers=st.lists(st.lists(ticks, min_size=1, max_size=12), min_size=1, max_size=3),
    readers=st.lists(
        st.tuples(ticks, st.lists(st.tuples(ticks, st.booleans()), max_size=8)), max_size=4
    ),
)
def test_tasks_that_interleave_and_are_cancelled_lose_nothing(capacity, producers, readers):
    """Producers pause between puts; readers start late, and some of their reads are cancelled."""

    async def produce(buffer: StreamBuffer[str], name: int, waits: list[int]) -> None:
        for number, wait in enumerate(waits):
            await buffer.put(f"{name}.{number};")
            for _ in range(wait):
                await asyncio.sleep(0)

    async def consume(
        buffer: StreamBuffer[str], start: int, cancels: list[tuple[int, bool]]
    ) -> str:
        for _ in range(start):
            await asyncio.sleep(0)
        reader = buffer.read()
        parts: list[str] = []
        for wait, in_batches in cancels:
            read = asyncio.ensure_future(
                reader.next_batch() if in_batches else next_as_batch(reader)
            )
            for _ in range(wait):
                await asyncio.sleep(0)
            read.cancel()
            try:
                parts += await read
            except asyncio.CancelledError:
                continue
        parts += [item async for item in reader]
        return "".join(parts)

    async def next_as_batch(reader: BufferReader[str]) -> list[str]:
        return [item async for item in _first(reader)]

    async def main() -> None:
        buffer = StreamBuffer[str](capacity)
        reading = [asyncio.ensure_future(consume(buffer, *each)) for each in [(0, []), *readers]]
        await asyncio.gather(
            *(produce(buffer, name, waits) for name, waits in enumerate(producers))
        )
        buffer.close()
        texts = await asyncio.gather(*reading)

        assert set(texts) == {buffer.accumulated}
        for name, waits in enumerate(producers):
            mine = [token for token in texts[0].split(";") if token.startswith(f"{name}.")]
            assert mine == [f"{name}.{number}" for number in range(len(waits))]

    asyncio.run(asyncio.wait_for(main(), 30))


async def _first(reader: BufferReader[str]):
    async for item in reader:
        yield item
        return


# -- threads --------------------------------------------------------------------------------------


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Let the interpreter change threads so often that rare interleavings become common."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless_threads")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [1, 2, 8])
def test_threads_and_loops_agree_under_every_policy(policy, capacity):
    """Three producers and four readers, half of each on loops, and one that joins midway."""
    buffer = StreamBuffer[str](capacity, overflow=policy)
    midway = threading.Event()
    accepted = [0, 0, 0]

    def produce(name: int) -> None:
        for number in range(200):
            try:
                buffer.put_from_thread(f"{name}.{number};", timeout=60)
            except BufferOverflowError:
                continue
            accepted[name] += 1
            if number == 100:
                midway.set()

    async def produce_on_loop(name: int) -> None:
        for number in range(200):
            try:
                await buffer.put(f"{name}.{number};")
            except BufferOverflowError:
                await asyncio.sleep(0)
                continue
            accepted[name] += 1

    def read(reader: BufferReader[str]) -> str:
        return "".join(reader)

    async def read_on_loop(reader: BufferReader[str]) -> str:
        parts = []
        while batch := await reader.next_batch():
            parts += batch
        return "".join(parts)

    def read_late() -> tuple[BufferReader[str], str]:
        midway.wait(60)
        reader = buffer.read()
        return reader, "".join(reader)

    with ThreadPoolExecutor(8) as threads:
        readers = [buffer.read() for _ in range(3)]
        late = threads.submit(read_late)
        reading = [
            threads.submit(read, readers[0]),
            threads.submit(read, readers[1]),
            threads.submit(asyncio.run, read_on_loop(readers[2])),
        ]
        producing = [
            threads.submit(produce, 0),
            threads.submit(produce, 1),
            threads.submit(asyncio.run, produce_on_loop(2)),
        ]
        for future in producing:
            future.result(60)
        midway.set()
        buffer.close()
        texts = [future.result(60) for future in reading]
        late_reader, late_text = late.result(60)

    whole = buffer.accumulated or ""
    assert buffer.stats.accepted == sum(accepted) == whole.count(";")
    for reader, text in zip([*readers, late_reader], [*texts, late_text], strict=True):
        assert_adds_up(reader, sum(accepted))
        assert reader.stats.pending == 0
        assert text.count(";") == sum(accepted) - reader.stats.dropped
        assert is_subsequence(text, whole)
        if policy in {"block", "coalesce", "error"}:
            assert text == whole


@pytest.mark.parametrize("end", ["cancel", "close", "fail"])
def test_an_end_from_another_thread_wakes_everyone(end):
    buffer = StreamBuffer[int](1)
    full, hungry = buffer.read(), buffer.read()
    buffer.put_nowait(0)
    next(hungry)
    error = ConnectionError("cut")

    def put() -> object:
        try:
            return buffer.put_from_thread(1)
        except BufferClosedError as caught:
            return caught

    async def read() -> object:
        try:
            return [item async for item in hungry]
        except ConnectionError as caught:
            return caught

    with ThreadPoolExecutor(2) as threads:
        producing = threads.submit(put)
        reading = threads.submit(asyncio.run, read())
        while not buffer._blocked or not buffer._sleepers:
            pass
        {"cancel": buffer.cancel, "close": buffer.close, "fail": lambda: buffer.fail(error)}[end]()

        assert isinstance(producing.result(30), BufferClosedError)
        assert reading.result(30) == (error if end == "fail" else [])
    assert full.stats.dropped == (1 if end == "cancel" else 0)
