"""Damage to the file of a log: one bit of what is stored, a row, a page, the end, another file."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.core.log.sqlite import SqliteEngine
from atlas.errors import LogCorruptedError, LogError

STREAMS = ("run/alpha", "run/beta", "board", "conversation 7")


def build(path: Path, records: int = 240) -> list[Record]:
    """Write a log that no other process holds, in one file; return its records."""
    chance = random.Random(records)
    engine = SqliteEngine(path)
    for number in range(records):
        filling = chance.randbytes(chance.choice((10, 60, 60, 300, 3_000))).hex()
        engine.append(
            [
                NewRecord(
                    chance.choice(STREAMS),
                    chance.choice(("order.placed@1", "order.paid@2", "reply.received@1")),
                    f'{{"number": {number}, "text": "{filling}"}}'.encode(),
                    wall_ns=1_700_000_000_000_000_000 + chance.randrange(10**15),
                )
            ]
        ).wait()
    engine.save_snapshot(Snapshot("board", 3, "sum", chance.randbytes(200)))
    found = engine.read_all()
    engine.close()
    assert not path.with_name(f"{path.name}-wal").exists(), "the log was not closed cleanly"
    return found


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a damaged log.

    Attributes:
        how: "named": verify told the position; "refused": it could not be opened or read, with a typed
            error; "harmless": everything is as it was; "silent": something else is read, and nobody
            said so; "rough": an error that no caller expects.
        position: The position that verify named.
        text: What was said.
    """

    how: str
    position: int | None = None
    text: str = ""

    @property
    def detected(self) -> bool:
        return self.how in ("named", "refused")


def examine(path: Path, records: list[Record]) -> Finding:
    """Open a damaged log, verify it and read it in every way there is."""
    try:
        engine = SqliteEngine(path)
    except LogError as error:
        return Finding("refused", text=repr(error))
    except Exception as error:
        return Finding("rough", text=repr(error))
    try:
        found = engine.verify()
        if not found.ok:
            return Finding("named", found.bad_position, found.problem)
        same = views(engine) == expected(records)
    except LogCorruptedError as error:
        return Finding("refused", error.position, repr(error))
    except LogError as error:
        return Finding("refused", text=repr(error))
    except Exception as error:
        return Finding("rough", text=repr(error))
    finally:
        close(engine)
    return Finding("harmless" if same else "silent")


def close(engine: SqliteEngine) -> None:
    with contextlib.suppress(LogError):
        engine.close()


def views(engine: SqliteEngine) -> list[object]:
    """Return all that can be read, through every index."""
    records = engine.read_all()
    times = [record.time_ns for record in records[::20]]
    names = sorted({record.name for record in records})
    return [
        records,
        {stream: engine.read(stream) for stream in STREAMS},
        {stream: engine.head(stream) for stream in STREAMS},
        sorted(engine.streams()),
        [engine.position_at(time) for time in times],
        [engine.read_all(names=[name]) for name in names],
    ]


def expected(records: list[Record]) -> list[object]:
    by_stream = {stream: [r for r in records if r.stream == stream] for stream in STREAMS}
    names = sorted({record.name for record in records})
    return [
        records,
        by_stream,
        {stream: of[-1].version for stream, of in by_stream.items()},
        sorted(STREAMS),
        [record.position for record in records[::20]],
        [[record for record in records if record.name == name] for name in names],
    ]


def flipped(value: bytes, chance: random.Random) -> bytes:
    """Return the bytes with one bit changed."""
    at, bit = chance.randrange(len(value)), chance.randrange(8)
    return value[:at] + bytes([value[at] ^ (1 << bit)]) + value[at + 1 :]


Place = tuple[str, int, str]
"""A table, a rowid and a column."""


def places(path: Path, ignore: tuple[str, ...] = ("snapshot", "tracking")) -> list[Place]:
    """Return where a file keeps values, other than in caches and what belongs to SQLite."""
    connection = sqlite3.connect(path)
    tables = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    found = []
    for table in tables:
        if table.startswith("sqlite_") or any(word in table for word in ignore):
            continue
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        rowids = [row[0] for row in connection.execute(f"SELECT rowid FROM {table}")]
        found += [(table, rowid, column) for rowid in rowids for column in columns]
    connection.close()
    return found


def flip_value(path: Path, place: Place, chance: random.Random) -> str:
    """Flip a bit of a value: in the bytes of the file for text and blobs, in the table for numbers.

    Returns:
        What was flipped; "" when the value cannot be found as such in the file.
    """
    table, rowid, column = place
    connection = sqlite3.connect(path)
    (value,) = connection.execute(
        f"SELECT {column} FROM {table} WHERE rowid = ?", (rowid,)
    ).fetchone()
    if isinstance(value, int):
        flipped_value = value ^ (1 << chance.randrange(max(1, value.bit_length())))
        try:
            connection.execute(
                f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (flipped_value, rowid)
            )
        except sqlite3.IntegrityError:
            connection.close()
            return ""
        connection.commit()
        connection.close()
        return f"{table}.{column} of row {rowid}: {value} became {flipped_value}"
    connection.close()
    stored = value.encode() if isinstance(value, str) else value
    return flip_bytes(path, stored, chance) and f"a bit of {table}.{column} of row {rowid}"


def flip_bytes(path: Path, stored: bytes | None, chance: random.Random) -> str:
    """Flip a bit of these bytes where the file has them in one piece."""
    content = path.read_bytes()
    if not stored or (at := content.find(stored)) < 0:
        return ""
    path.write_bytes(content[:at] + flipped(stored, chance) + content[at + len(stored) :])
    return f"byte {at}"


def flip_anywhere(path: Path, chance: random.Random) -> str:
    """Flip any bit of the file."""
    content = bytearray(path.read_bytes())
    at, bit = chance.randrange(len(content)), chance.randrange(8)
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {at}"


def copies(original: Path, folder: Path) -> Iterator[Path]:
    """Yield fresh copies of a file, one at a time."""
    copy = folder / "copy.db"
    while True:
        for leftover in folder.glob("copy.db*"):
            leftover.unlink()
        shutil.copyfile(original, copy)
        yield copy
