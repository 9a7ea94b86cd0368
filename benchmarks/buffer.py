"""Hand-off through a StreamBuffer against `asyncio.Queue` and `queue.Queue`: ``python benchmarks/buffer.py``.

Each line is one way of using the two; the contestants take turns in one process and the medians
are compared, so that a busy machine slows both. A ratio above 1.0 means that StreamBuffer is faster.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import queue
import statistics
import sys
import threading
import time
from collections.abc import Callable

from atlas.core.buffer import StreamBuffer

CAPACITY = 256


def queue_nowait(count: int) -> None:
    async def main() -> None:
        q: asyncio.Queue[str] = asyncio.Queue(CAPACITY)
        for _ in range(count):
            q.put_nowait("token")
            await q.get()

    asyncio.run(main())


def buffer_nowait(count: int) -> None:
    async def main() -> None:
        buffer = StreamBuffer[str](CAPACITY)
        with buffer.read() as reader:
            get = reader.__anext__  # what `async for` calls
            for _ in range(count):
                buffer.put_nowait("token")
                await get()

    asyncio.run(main())


def queue_tasks(count: int) -> None:
    async def main() -> None:
        q: asyncio.Queue[str] = asyncio.Queue(CAPACITY)

        async def produce() -> None:
            for _ in range(count):
                await q.put("token")

        task = asyncio.create_task(produce())
        for _ in range(count):
            await q.get()
        await task

    asyncio.run(main())


def buffer_tasks(count: int) -> None:
    async def main() -> None:
        buffer = StreamBuffer[str](CAPACITY)

        async def produce() -> None:
            for _ in range(count):
                await buffer.put("token")
            buffer.close()

        task = asyncio.create_task(produce())
        async for _ in buffer.read():
            pass
        await task

    asyncio.run(main())


def buffer_batches(count: int) -> None:
    async def main() -> None:
        buffer = StreamBuffer[str](CAPACITY)

        async def produce() -> None:
            for _ in range(count):
                await buffer.put("token")
            buffer.close()

        task = asyncio.create_task(produce())
        reader = buffer.read()
        while batch := await reader.next_batch():
            for _ in batch:
                pass
        await task

    asyncio.run(main())


def queue_awake(count: int) -> None:
    """The consumer sleeps before every token, as it does behind a real model."""

    async def main() -> None:
        q: asyncio.Queue[str] = asyncio.Queue(CAPACITY)

        async def produce() -> None:
            for _ in range(count):
                await q.put("token")
                await asyncio.sleep(0)

        task = asyncio.create_task(produce())
        for _ in range(count):
            await q.get()
        await task

    asyncio.run(main())


def buffer_awake(count: int) -> None:
    async def main() -> None:
        buffer = StreamBuffer[str](CAPACITY)

        async def produce() -> None:
            for _ in range(count):
                await buffer.put("token")
                await asyncio.sleep(0)
            buffer.close()

        task = asyncio.create_task(produce())
        async for _ in buffer.read():
            pass
        await task

    asyncio.run(main())


def queue_threads(count: int) -> None:
    q: queue.Queue[str] = queue.Queue(CAPACITY)

    def produce() -> None:
        for _ in range(count):
            q.put("token")

    thread = threading.Thread(target=produce)
    thread.start()
    for _ in range(count):
        q.get()
    thread.join()


def buffer_threads(count: int) -> None:
    buffer = StreamBuffer[str](CAPACITY)

    def produce() -> None:
        for _ in range(count):
            buffer.put_from_thread("token")
        buffer.close()

    thread = threading.Thread(target=produce)
    thread.start()
    for _ in buffer.read():
        pass
    thread.join()


def queue_thread_to_loop(count: int) -> None:
    """What one writes today: a thread hands each token to the loop with call_soon_threadsafe."""

    async def main() -> None:
        q: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def produce() -> None:
            for _ in range(count):
                loop.call_soon_threadsafe(q.put_nowait, "token")

        thread = threading.Thread(target=produce)
        thread.start()
        for _ in range(count):
            await q.get()
        thread.join()

    asyncio.run(main())


def buffer_thread_to_loop(count: int) -> None:
    async def main() -> None:
        buffer = StreamBuffer[str](CAPACITY)

        def produce() -> None:
            for _ in range(count):
                buffer.put_from_thread("token")
            buffer.close()

        thread = threading.Thread(target=produce)
        thread.start()
        async for _ in buffer.read():
            pass
        thread.join()

    asyncio.run(main())


PAIRS: dict[str, tuple[Callable[[int], None], Callable[[int], None]]] = {
    "put_nowait, get: one task": (queue_nowait, buffer_nowait),
    "await put, await get: two tasks": (queue_tasks, buffer_tasks),
    "await put, next_batch: two tasks": (queue_tasks, buffer_batches),
    "await put, consumer asleep each time": (queue_awake, buffer_awake),
    "thread to thread (queue.Queue)": (queue_threads, buffer_threads),
    "thread to loop (call_soon_threadsafe)": (queue_thread_to_loop, buffer_thread_to_loop),
}


def seconds(run: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start


def compare(count: int, rounds: int) -> dict[str, dict[str, float]]:
    results = {}
    for name, pair in PAIRS.items():
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for contestant, taken in zip(pair, times, strict=True):
                taken.append(seconds(contestant, count))
        theirs, ours = (statistics.median(taken) / count * 1e9 for taken in times)
        results[name] = {"queue_ns": theirs, "buffer_ns": ours, "ratio": theirs / ours}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="tokens per run")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = compare(options.count, options.rounds)
    if options.json:
        print(json.dumps(results))
        return
    print(
        f"Python {sys.version.split()[0]}; {options.count} tokens, median of {options.rounds} runs"
    )
    print(f"{'':40}{'queue':>10}{'buffer':>10}{'ratio':>8}")
    for name, row in results.items():
        print(
            f"{name:40}{row['queue_ns']:>7.0f} ns{row['buffer_ns']:>7.0f} ns{row['ratio']:>7.2f}x"
        )


if __name__ == "__main__":
    main()
