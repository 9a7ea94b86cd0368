"""Damaged files: every bit that changed is found, its position is named, the good prefix is kept."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from atlas.core.log.records import NewRecord
from atlas.core.log.sqlite import SqliteEngine
from faults.counts import SEED, count
from faults.damage import (
    build,
    copies,
    examine,
    flip_anywhere,
    flip_bytes,
    flip_value,
    places,
)
from faults.stores import open_store


def test_every_flipped_bit_of_a_record_is_detected(memory: Path) -> None:
    records, chance = build(memory / "good.db"), random.Random(SEED)
    fresh, spots = copies(memory / "good.db", memory), places(memory / "good.db")
    wanted, findings, missed = count(200, 1_000), Counter[str](), []
    while sum(findings.values()) < wanted:
        copy = next(fresh)
        if not (what := flip_value(copy, chance.choice(spots), chance)):
            continue
        found = examine(copy, records)
        findings[found.how] += 1
        if not found.detected:
            missed.append(f"{what}: {found}")

    print(findings)
    assert missed == []
    assert findings["named"] >= wanted * 0.8


def test_no_flipped_bit_anywhere_in_the_file_is_read_as_something_else(memory: Path) -> None:
    """Also of indexes, headers of pages and free space: harmless, or found."""
    records, chance = build(memory / "good.db"), random.Random(SEED + 1)
    fresh, findings, wrong = copies(memory / "good.db", memory), Counter[str](), []
    for _ in range(count(100, 3_000)):
        what = flip_anywhere(copy := next(fresh), chance)
        found = examine(copy, records)
        findings[found.how] += 1
        if found.how in ("silent", "rough"):
            wrong.append(f"{what}: {found}")

    print(findings)
    assert wrong == []


def test_plain_sqlite_reads_flipped_payloads_without_a_word(memory: Path) -> None:
    """The control: this is what the chain is for."""
    store = open_store("raw-full", memory / "raw.db")
    for number in range(100):
        store.append([("run", f"payload number {number:04} of plain SQLite".encode())])
    store.close()
    fresh, chance, silent = copies(memory / "raw.db", memory), random.Random(SEED), 0
    for number in range(100):
        copy = next(fresh)
        assert flip_bytes(copy, f"payload number {number:04} of plain SQLite".encode(), chance)
        store = open_store("raw-full", copy)
        silent += store.verify() == "" and len(store.rows()) == 100
        store.close()

    assert silent == 100


def payload_table(path: Path) -> str:
    """Return the table that keeps the payloads of records."""
    return next(table for table, _, column in places(path) if column == "payload")


SWAPS = {
    "payloads of two rows": "UPDATE {t} SET payload = (SELECT payload FROM {t} WHERE rowid = 101 + 100 - {t}.rowid + 1) WHERE rowid IN (100, 102)",
    "a row deleted from the middle": "DELETE FROM {t} WHERE rowid = 100",
    "the first row deleted": "DELETE FROM {t} WHERE rowid = 1",
    "a payload emptied": "UPDATE {t} SET payload = x'' WHERE rowid = 100",
    "a payload taken away": "UPDATE {t} SET payload = NULL WHERE rowid = 100",
}


@pytest.mark.parametrize("swap", SWAPS)
def test_changed_rows_are_named_and_repair_keeps_what_was_before(swap: str, memory: Path) -> None:
    path = memory / "runs.db"
    records = build(path)
    connection = sqlite3.connect(path)
    connection.execute(SWAPS[swap].format(t=payload_table(path)))
    connection.commit()
    connection.close()

    found = examine(path, records)
    assert found.how == "named"
    assert found.position in (1, 2, 100, 101)

    engine = SqliteEngine(path)
    repair = engine.repair()
    kept = engine.read_all(until=found.position - 1)
    engine.append([NewRecord("run/alpha", "order.placed@1", b"goes on")]).wait()
    assert engine.verify().ok
    engine.close()
    assert kept == records[: found.position - 1]
    assert repair.kept == found.position - 1
    assert repair.set_aside > 0


FORMAT_NUMBER = range(60, 64)


def test_whatever_becomes_of_the_header_every_record_is_kept(memory: Path) -> None:
    """But for the number of the format: a file with another one may be of a newer Atlas."""
    records, chance = build(memory / "good.db"), random.Random(SEED)
    fresh, whole = copies(memory / "good.db", memory), (memory / "good.db").read_bytes()
    bits = [(at, bit) for at in range(100) for bit in range(8)]
    headers = [bytes(100), chance.randbytes(100)]
    for at, bit in chance.sample(bits, count(60, len(bits))):
        header = bytearray(whole[:100])
        header[at] ^= 1 << bit
        if at in FORMAT_NUMBER:
            (copy := next(fresh)).write_bytes(header + whole[100:])
            assert examine(copy, records).how == "refused"
        else:
            headers.append(bytes(header))
    for header in headers:
        (copy := next(fresh)).write_bytes(header + whole[100:])
        engine = SqliteEngine(copy)
        engine.repair()
        assert engine.read_all(until=len(records)) == records
        assert engine.verify().ok
        engine.close()
        for aside in memory.glob("copy.db.*"):
            aside.unlink()


def test_a_truncated_file_is_noticed(memory: Path) -> None:
    records, chance = build(memory / "good.db"), random.Random(SEED)
    fresh, size = copies(memory / "good.db", memory), (memory / "good.db").stat().st_size
    # SQLite itself takes a file of no byte, or of one, for a new one: nothing in it can tell.
    for length in [2, 99, 100, 512, 4_095, 4_096] + [
        chance.randrange(size) for _ in range(count(20, 200))
    ]:
        copy = next(fresh)
        copy.write_bytes(copy.read_bytes()[:length])
        found = examine(copy, records)
        assert found.detected, f"cut after {length} of {size} bytes: {found}"


def test_a_log_beside_the_journal_of_another_is_noticed(memory: Path) -> None:
    records = build(memory / "one.db")
    build(memory / "other.db", records=180)
    path = memory / "runs.db"
    writer = sqlite3.connect(memory / "other.db")
    writer.execute("PRAGMA wal_autocheckpoint=0")
    table = payload_table(memory / "other.db")
    writer.execute(f"UPDATE {table} SET wall_ns = wall_ns + 1 WHERE rowid < 50")
    writer.commit()
    path.write_bytes((memory / "one.db").read_bytes())
    (memory / "runs.db-wal").write_bytes((memory / "other.db-wal").read_bytes())
    writer.close()
    found = examine(path, records)

    assert found.detected
