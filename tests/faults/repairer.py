"""A process that repairs a damaged log: ``python -m faults.repairer FOLDER``.

It says what it has done in the file ``acks`` of that folder: ``damaged``, then ``repaired``.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

from atlas.core.log.records import NewRecord
from atlas.core.log.sqlite import SqliteEngine

GOOD = 39
"""How many records are before the first bad one."""


def payload(number: int) -> bytes:
    return b"record %d " % number * 60


def main() -> None:
    folder = Path(sys.argv[1])
    path = folder / "runs.db"
    acks = os.open(folder / "acks", os.O_WRONLY | os.O_CREAT)
    engine = SqliteEngine(path)
    for number in range(1, 61):
        engine.append([NewRecord("run", "step@1", payload(number))]).wait()
    engine.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("UPDATE events SET payload = x'00' WHERE position = ?", (GOOD + 1,))
    connection.commit()
    connection.close()
    os.write(acks, b"damaged\n")
    engine = SqliteEngine(path)
    engine.repair()
    os.write(acks, b"repaired\n")
    engine.close()


if __name__ == "__main__":
    main()
