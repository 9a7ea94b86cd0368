"""A process that appends until there is no room: ``python -m faults.cramped FOLDER LIMIT``.

LIMIT is the largest file it may write, in bytes; 0: as the disk allows, which is full in the end. There
is room again when the limit is lifted, or ``ballast`` is gone.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from faults.checks import Acknowledged, judge, payload_of
from faults.stores import Store, open_store


def fill(store: Store, said: Acknowledged) -> str:
    """Append until that fails; return the type of the error."""
    for number in range(10_000):
        name = f"fill.{number}"
        batch = [("fill", payload_of(name, index, 4, "x" * 2_000)) for index in range(4)]
        try:
            store.append(batch)
        except Exception as error:
            return type(error).__name__
        said.batches.add(name)
    return "none"


def look(store: Store, said: Acknowledged) -> list[str]:
    verdict, problem = judge(store.rows(), said), store.verify()
    missing_or_more = verdict.records != 4 * len(said.batches)
    return [f"{verdict} {problem}"] if problem or missing_or_more or not verdict.ok else []


def main() -> None:
    folder, limit = Path(sys.argv[1]), int(sys.argv[2])
    said = Acknowledged()
    store = open_store("atlas-power", folder / "runs.db")
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    error = fill(store, said)
    problems = look(store, said)
    (folder / "ballast").unlink()
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    store.append([("fill", payload_of("after", index, 4)) for index in range(4)])
    said.batches.add("after")
    problems += look(store, said)
    store.close()
    store = open_store("atlas-power", folder / "runs.db")
    problems += look(store, said)
    store.close()
    print(json.dumps({"error": error, "problems": problems, "back": True}))


if __name__ == "__main__":
    main()
