"""A process that writes to a log from several threads and tasks, and says what it was told is stored.

Started by the tests: ``python -m faults.writer '{"store": …}'`` with the fields of `Job`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from faults.checks import ERASABLE, payload_of
from faults.stores import Store, open_store


@dataclass(frozen=True, slots=True)
class Job:
    """What to write.

    Attributes:
        store: The kind of store, see `open_store`.
        path: The file.
        run: Part of the names of batches, so that several runs can write to one file.
        seed: Of the choices made.
        acks: The file that is told what was acknowledged; "": standard output.
        batches: How many batches each worker writes.
        sessions: How often the store is closed and opened again on the way.
        threads: Workers that block.
        tasks: Workers that await.
    """

    store: str
    path: str
    run: str
    seed: int
    acks: str = ""
    batches: int = 1_000_000
    sessions: int = 1
    threads: int = 2
    tasks: int = 3


class Writer:
    """One session of a job."""

    def __init__(self, job: Job, session: int, store: Store, acks: int) -> None:
        self._job = job
        self._name = f"{job.run}.{session}"
        self._seed = f"{job.seed} {session}"
        self._store = store
        self._acks = acks

    def work(self) -> None:
        job = self._job
        workers = [
            threading.Thread(target=self._blocking, args=(number,)) for number in range(job.threads)
        ]
        workers += [threading.Thread(target=lambda: asyncio.run(self._awaiting()))] * bool(
            job.tasks
        )
        workers += [threading.Thread(target=self._keeping_house)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _acknowledge(self, line: str) -> None:
        os.write(self._acks, f"{line}\n".encode())

    def _batch(
        self, worker: str, number: int, chance: random.Random
    ) -> tuple[str, list[tuple[str, bytes]]]:
        name = f"{self._name}.{worker}.{number}"
        size = chance.choice((1, 1, 1, 1, 2, 5, 20))
        streams = (f"own.{worker}", "shared")
        filling = "x" * chance.choice((0, 40, 200, 200, 2000))
        return name, [
            (chance.choice(streams), payload_of(name, index, size, filling))
            for index in range(size)
        ]

    def _blocking(self, worker: int) -> None:
        chance = random.Random(f"{self._seed} thread {worker}")
        for number in range(self._job.batches):
            name, batch = self._batch(f"thread{worker}", number, chance)
            self._store.append(batch)
            self._acknowledge(f"+ {name}")

    async def _awaiting(self) -> None:
        await asyncio.gather(*(self._task(number) for number in range(self._job.tasks)))

    async def _task(self, worker: int) -> None:
        chance = random.Random(f"{self._seed} task {worker}")
        for number in range(self._job.batches):
            name, batch = self._batch(f"task{worker}", number, chance)
            await self._store.append_async(batch)
            self._acknowledge(f"+ {name}")

    def _keeping_house(self) -> None:
        """Take snapshots and erase, now and then, while the others append."""
        for number in range(max(1, self._job.batches // 3)):
            name = f"{self._name}.house.{number}"
            stream = f"erase.{name}"
            self._store.append([(stream, b"secret" * 30)] * ERASABLE)
            self._acknowledge(f"+ {name}")
            self._store.snapshot(stream)
            if self._store.erase(stream):
                self._acknowledge(f"- {stream}")
            self._store.snapshot("shared")


def give_up(failure: threading.ExceptHookArgs) -> None:
    """End the process with the error of a worker, instead of going on without it."""
    threading.__excepthook__(failure)
    os._exit(70)


def main() -> None:
    threading.excepthook = give_up
    job = Job(**json.loads(sys.argv[1]))
    acks = os.open(job.acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if job.acks else 1
    for session in range(job.sessions):
        store = open_store(job.store, Path(job.path))
        Writer(job, session, store, acks).work()
        store.close()


if __name__ == "__main__":
    main()
