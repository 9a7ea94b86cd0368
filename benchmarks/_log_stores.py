"""What ``benchmarks/log.py`` compares: each stores the same events, as its own documentation shows.

A contestant appends a batch so that it survives what the contestant promises, and returns then. Those
that cannot store a batch at once store its events one by one. ``pip install --group peers`` brings the
peers; without them they are named as missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas.core.log.engine import Durability, Engine
from atlas.core.log.records import NewRecord
from atlas.core.log.sqlite import SqliteEngine

EVENT = (
    b'{"conversation":"conv-01HZX3V7Q2","turn":17,"role":"assistant","model":"local/small","text":"'
    + b"A line of text that a model may well have written here. " * 2
    + b'","usage":{"prompt":412,"completion":37},"finish":"stop","trace":"0af7651916cd43dd8448eb211c80"}'
)
PEERS = {
    "eventsourcing": "eventsourcing",
    "LangGraph SqliteSaver": "langgraph.checkpoint.sqlite",
    "DBOS": "dbos",
}


@dataclass(slots=True)
class Contestant:
    """A store under measurement.

    Attributes:
        append: Stores this many events and returns when they are safe.
        path: The file, to weigh it.
        batches: Whether it stores a batch at once.
        slow: Whether a round of it is so long that fewer appends must do.
    """

    append: Callable[[int], object]
    path: Path
    batches: bool = True
    slow: bool = False


def missing_peers() -> list[str]:
    return [name for name, module in PEERS.items() if not installed(module)]


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def weight(path: Path) -> int:
    """Return the bytes of a database and what belongs to it."""
    return sum(found.stat().st_size for found in path.parent.glob(f"{path.name}*"))


def sync_seconds(folder: Path) -> float:
    """Return what the disk takes at the moment to sync a page that was appended to a file."""
    with (folder / "synced").open("ab") as file:
        file.write(bytes(4096))
        file.flush()
        started = time.perf_counter()
        os.fsync(file.fileno())
        return time.perf_counter() - started


class RawLog:
    """The least that SQLite needs for a log of streams: one table, an index, one commit per append."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute(f"PRAGMA synchronous={synchronous}")
        self.connection.execute(
            "CREATE TABLE events (position INTEGER PRIMARY KEY, stream TEXT, version INTEGER,"
            " time_ns INTEGER, name TEXT, payload BLOB, UNIQUE (stream, version))"
        )
        self._version = itertools.count(1)

    def append(self, size: int) -> None:
        rows = [("run", next(self._version), 0, "bench@1", EVENT) for _ in range(size)]
        execute = self.connection.execute
        execute("BEGIN IMMEDIATE")
        self.connection.executemany(
            "INSERT INTO events (stream, version, time_ns, name, payload) VALUES (?,?,?,?,?)", rows
        )
        execute("COMMIT")


@contextlib.contextmanager
def raw(folder: Path, synchronous: str) -> Iterator[Contestant]:
    path = folder / f"raw-{synchronous}.db"
    log = RawLog(path, synchronous)
    yield Contestant(log.append, path)
    log.connection.close()


def new_records(size: int) -> list[NewRecord]:
    return [NewRecord("run", "bench@1", EVENT) for _ in range(size)]


@contextlib.contextmanager
def opened(path: Path, durability: Durability = "power") -> Iterator[Engine]:
    engine = SqliteEngine(path, durability=durability)
    yield engine
    engine.close()


@contextlib.contextmanager
def atlas(folder: Path, durability: Durability) -> Iterator[Contestant]:
    path = folder / f"atlas-{durability}.db"
    with opened(path, durability) as engine:
        yield Contestant(lambda size: engine.append(new_records(size)).wait(), path)


@contextlib.contextmanager
def eventsourcing(folder: Path) -> Iterator[Contestant]:
    from eventsourcing.persistence import StoredEvent
    from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

    path = folder / "eventsourcing.db"
    datastore = SQLiteDatastore(str(path))
    recorder = SQLiteApplicationRecorder(datastore)
    recorder.create_table()
    originator, version = uuid.uuid4(), itertools.count(1)

    def append(size: int) -> None:
        recorder.insert_events(
            [StoredEvent(originator, next(version), "bench:Event", EVENT) for _ in range(size)]
        )

    yield Contestant(append, path)
    datastore.close()


@contextlib.contextmanager
def langgraph(folder: Path) -> Iterator[Contestant]:
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.base.id import uuid6
    from langgraph.checkpoint.sqlite import SqliteSaver

    path, step = folder / "langgraph.db", itertools.count()
    text = EVENT.decode()
    with SqliteSaver.from_conn_string(str(path)) as saver:
        config: Any = {"configurable": {"thread_id": "run", "checkpoint_ns": ""}}

        def append(size: int) -> None:
            nonlocal config
            for _ in range(size):
                number = next(step)
                checkpoint = {
                    **empty_checkpoint(),
                    "id": str(uuid6(clock_seq=number)),
                    "channel_values": {"event": text},
                }
                metadata: Any = {"source": "loop", "step": number, "parents": {}}
                config = saver.put(config, checkpoint, metadata, {"event": number})
                saver.put_writes(config, [("event", text)], f"task{number}")

        yield Contestant(append, path, batches=False)


@contextlib.contextmanager
def dbos(folder: Path) -> Iterator[Contestant]:
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("DBOS__VMID", "bench")
    from dbos import DBOS

    path, text = folder / "dbos.db", EVENT.decode()
    DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{path}",
            "log_level": "CRITICAL",
        }
    )

    @DBOS.step()
    def step() -> str:
        return text

    @DBOS.workflow()
    def run(size: int) -> None:
        for _ in range(size):
            step()

    DBOS.launch()
    yield Contestant(run, path, batches=False, slow=True)
    DBOS.destroy()


@contextlib.contextmanager
def contestants(folder: Path) -> Iterator[dict[str, Contestant]]:
    """Open all that are installed; the first is what the others are measured against."""
    with contextlib.ExitStack() as stack:
        found = {
            "raw sqlite3 FULL": stack.enter_context(raw(folder, "FULL")),
            "Atlas (power)": stack.enter_context(atlas(folder, "power")),
            "raw sqlite3 NORMAL": stack.enter_context(raw(folder, "NORMAL")),
            "Atlas (process)": stack.enter_context(atlas(folder, "process")),
        }
        openers = {"eventsourcing": eventsourcing, "LangGraph SqliteSaver": langgraph, "DBOS": dbos}
        for name, opener in openers.items():
            if installed(PEERS[name]):
                found[name] = stack.enter_context(opener(folder))
        yield found
