"""A process that races others for the next version: ``python -m faults.racer STORE PATH NAME TIMES``.

It says ``ready``, waits for a line, then appends to the stream all share at the version it believes to
be next, and to one of its own, and prints as JSON what it was told is stored.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from faults.checks import payload_of
from faults.stores import open_store


def main() -> None:
    kind, path, name, times = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    store = open_store(kind, path)
    print("ready", flush=True)
    sys.stdin.readline()
    conflicts, stored = 0, []
    for number in range(times):
        batch = f"{name}.{number}"
        while not store.append_at("shared", store.head("shared") + 1, payload_of(batch, 0, 1)):
            conflicts += 1
        stored.append(batch)
        if number % 5 == 0:
            store.append(
                [(f"own.{name}", payload_of(f"{batch}.own", index, 3)) for index in range(3)]
            )
            stored.append(f"{batch}.own")
    store.close()
    print(json.dumps({"stored": stored, "conflicts": conflicts}))


if __name__ == "__main__":
    main()
