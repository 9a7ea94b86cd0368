"""A process that writes to a log from several threads and tasks, and says what it was told is stored.

Started by the tests: ``python -m faults.writer '{"store": …}'`` with the fields of `Job`, or as a server
of such processes (`serve`).
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass

from atlas.errors import LogUnavailableError
from faults.checks import ERASABLE, payload_of, secret_of
from faults.stores import Store, open_store


@dataclass(frozen=True, slots=True)
class Job:
    """What to write.

    Attributes:
        store: The kind of store, see `open_store`.
        path: The file, or the address of a database.
        run: Part of the names of batches, so that several runs can write to one file.
        seed: Of the choices made.
        acks: The file that is told what was acknowledged, where the writer is not served.
        batches: How many batches each worker writes.
        sessions: How often the store is closed and opened again on the way.
        threads: Workers that block.
        tasks: Workers that await.
        alone: Whether no other process has the file open.
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
    alone: bool = True


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
        """Take snapshots, erase and fork, now and then, while the others append."""
        for number in range(max(1, self._job.batches // 3)):
            name = f"{self._name}.house.{number}"
            stream = f"erase.{name}"
            self._store.append([(stream, secret_of(stream))] * ERASABLE)
            self._acknowledge(f"+ {name}")
            self._store.snapshot(stream)
            if self._erase(stream):
                self._acknowledge(f"- {stream}")
            self._store.snapshot("shared")
            if self._store.fork(f"fork.{name}"):
                self._acknowledge(f"/ fork.{name}")

    def _erase(self, stream: str) -> bool:
        try:
            return self._store.erase(stream)
        except LogUnavailableError:
            if self._job.alone:
                raise
            return False  # another process reads, so that the bytes stay in the journal for now


def give_up(failure: threading.ExceptHookArgs) -> None:
    """End the process with the error of a worker, instead of going on without it."""
    threading.__excepthook__(failure)
    os._exit(70)


def run(job: Job, acks: int) -> None:
    for session in range(job.sessions):
        store = open_store(job.store, job.path)
        Writer(job, session, store, acks).work()
        store.close()


def bury() -> None:
    """Let go of those that died: not before, so that nobody kills another process of the same id."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def serve(connection: socket.socket) -> None:
    """Fork a writer for each job that comes with a place for its acknowledgements; answer its id.

    So a writer starts in a millisecond, and not with the imports of a second.
    """
    importlib.import_module("atlas.core.temporal_store")
    while True:
        text, files, _, _ = socket.recv_fds(connection, 65536, 1)
        if not text:
            return
        bury()
        if (writer := os.fork()) == 0:
            run(Job(**json.loads(text)), files[0])
            os._exit(0)
        os.close(files[0])
        connection.send(str(writer).encode())


def main() -> None:
    threading.excepthook = give_up
    if sys.argv[1] == "serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
        return
    job = Job(**json.loads(sys.argv[1]))
    run(job, os.open(job.acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND))


if __name__ == "__main__":
    main()
