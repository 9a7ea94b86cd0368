"""A process whose disk fails at the n-th call: ``python -m faults.disturbed '{"store": …}'``.

It is started with the library of shim.c and prints, for each n, what became of its appends (`Report`).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path

from faults import shim
from faults.checks import Acknowledged, judge, payload_of
from faults.stores import Store, open_store


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What to let fail, and when; see `faults.shim.arm`. ``dying``: the process dies while it fails.

    ``beginning``: it fails already when the log is made.
    """

    store: str
    folder: str
    kinds: int
    error: int
    skips: list[int]
    times: int = shim.FOR_EVER
    half: bool = False
    dying: bool = False
    beginning: bool = False


@dataclass(slots=True)
class Report:
    """What became of one log.

    Attributes:
        skip: How many calls succeeded before the first that failed.
        hits: How many calls failed.
        errors: Types of the errors that callers got, by what they had called.
        acknowledged: How many batches were acknowledged.
        refused: How many were not.
        back: Whether everything worked once the disk did.
        problems: What was wrong at last, in words.
    """

    skip: int
    hits: int = 0
    errors: dict[str, list[str]] = field(default_factory=dict)
    acknowledged: int = 0
    refused: int = 0
    back: bool = True
    problems: list[str] = field(default_factory=list)


class Disturbed:
    """A log, written to while its disk fails."""

    def __init__(self, disturbance: Disturbance, skip: int) -> None:
        self._disturbance = disturbance
        self._path = Path(disturbance.folder) / f"{skip}.db"
        self._said = Acknowledged()
        self._refused: set[str] = set()
        self._report = Report(skip)

    def run(self) -> Report:
        disturbance = self._disturbance
        store = open_store(disturbance.store, self._path)
        self._append(store, "before", 5)
        shim.arm(
            disturbance.kinds,
            disturbance.error,
            skip=self._report.skip,
            times=disturbance.times,
            half=disturbance.half,
        )
        self._while_failing(store)
        self._report.hits = shim.disarm()
        refused = len(self._refused)
        self._append(store, "after", 3)
        self._report.back = len(self._refused) == refused
        self._look(store, "in the same process")
        self._attempt("close", store.close)
        self._look(again := open_store(disturbance.store, self._path), "opened again")
        again.close()
        self._report.acknowledged = len(self._said.batches)
        self._report.refused = len(self._refused)
        return self._report

    def _while_failing(self, store: Store) -> None:
        self._append(store, "alone", 6)
        self._attempt("snapshot", lambda: store.snapshot("before"))
        threads = [
            threading.Thread(target=self._append, args=(store, f"thread{number}", 5))
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._attempt("erase", lambda: store.erase("nothing"))
        self._attempt("read", lambda: self._look(store, "while the disk failed", verify=False))

    def _append(self, store: Store, what: str, times: int) -> None:
        for number in range(times):
            name = f"{what}.{number}"
            batch = [(what, payload_of(name, index, 3, "x" * 900)) for index in range(3)]
            if self._attempt("append", lambda batch=batch: store.append(batch)):
                self._said.batches.add(name)
            else:
                self._refused.add(name)

    def _attempt(self, what: str, call: object) -> bool:
        assert callable(call)
        try:
            call()
        except Exception as error:
            kinds = self._report.errors.setdefault(what, [])
            if type(error).__name__ not in kinds:
                kinds.append(type(error).__name__)
            return False
        return True

    def _look(self, store: Store, when: str, *, verify: bool = True) -> None:
        rows = store.rows()
        verdict = judge(rows, self._said)
        seen = {json.loads(row.payload or b"{}").get("batch") for row in rows} & self._refused
        problem = store.verify() if verify else ""
        if problem or seen or not verdict.ok:
            self._report.problems.append(
                f"{when}: {problem} refused but there: {sorted(seen)} {verdict}"
            )

    def begin(self) -> Report:
        """Make a log while the disk fails, and again when it does not any more."""
        disturbance, opened = self._disturbance, list[Store]()
        shim.arm(
            disturbance.kinds,
            disturbance.error,
            skip=self._report.skip,
            times=disturbance.times,
        )
        self._attempt("open", lambda: opened.append(open_store(disturbance.store, self._path)))
        for store in opened:
            self._append(store, "early", 3)
        self._report.hits = shim.disarm()
        refused = len(self._refused)
        store = opened[0] if opened else open_store(disturbance.store, self._path)
        self._append(store, "after", 3)
        self._report.back = len(self._refused) == refused
        self._look(store, "in the same process")
        store.close()
        return self._report

    def die(self) -> None:
        """Write while the disk fails, say what was acknowledged and refused, and die at once."""
        disturbance = self._disturbance
        store = open_store(disturbance.store, self._path)
        self._append(store, "before", 5)
        shim.arm(disturbance.kinds, disturbance.error, skip=self._report.skip)
        self._append(store, "alone", 6)
        said = [str(self._path), sorted(self._said.batches), sorted(self._refused)]
        print(json.dumps(said), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    disturbance = Disturbance(**json.loads(sys.argv[1]))
    if disturbance.dying:
        for skip in disturbance.skips:
            if (victim := os.fork()) == 0:
                Disturbed(disturbance, skip).die()
            os.waitpid(victim, 0)
        return
    act = Disturbed.begin if disturbance.beginning else Disturbed.run
    reports = [act(Disturbed(disturbance, skip)) for skip in disturbance.skips]
    print(json.dumps([asdict(report) for report in reports]))


if __name__ == "__main__":
    main()
