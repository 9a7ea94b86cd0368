"""Power cuts: what a disk may be left with at any moment must open, and hold what was acknowledged.

A process writes to a log while shim.c notes its calls; disk.py makes the files that a power cut could
leave after any of them.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from faults import shim as preloaded
from faults.checks import Acknowledged, examined, secret_of
from faults.counts import SEED, count
from faults.disk import MODES, SYNCED, SYNCING, Disk, lay, notes
from faults.stores import open_store
from faults.writer import Job


@dataclass(slots=True)
class Outcome:
    """What became of the images of a store."""

    images: int = 0
    without_log: int = 0
    losing: int = 0
    broken: list[str] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)


def traced(store: str, seed: int, shim: Path, memory: Path) -> tuple[Path, Path]:
    """Let a process write; return the folder it wrote to and the trace of its calls."""
    folder, trace = memory / f"{store}-{seed}", memory / f"{store}-{seed}.trace"
    folder.mkdir()
    job = Job(
        store=store,
        path=str(folder / "runs.db"),
        run=f"power{seed}",
        seed=seed,
        acks=str(folder / "acks"),
        batches=30,
        sessions=2,
    )
    preloaded.run("writer", json.dumps(asdict(job)), env=preloaded.environment(shim, folder, trace))
    return folder, trace


def cuts(kinds: list[int], wanted: int, chance: random.Random) -> list[int]:
    """Choose moments: most of them around syncs, where the promises are made."""
    around = [
        at + step for at, what in enumerate(kinds) if what in (SYNCING, SYNCED) for step in (0, 1)
    ]
    chosen = [chance.choice(around) for _ in range(wanted * 2 // 3)]
    chosen += [chance.randrange(len(kinds) + 1) for _ in range(wanted - len(chosen))]
    return sorted(chosen)


def images(
    folder: Path, trace: Path, wanted: int, chance: random.Random
) -> Iterator[tuple[str, dict[str, bytes], bytes]]:
    """Yield power cuts: a description, the files left, and what was acknowledged before."""
    calls = notes(trace)
    disk, done = Disk(folder), 0
    for cut in cuts([call.what for call in calls], wanted, chance):
        for call in calls[done:cut]:
            disk.follow(call)
        done = cut
        mode = chance.choice(MODES)
        yield f"{mode} after call {cut}", disk.image(mode, chance), bytes(disk.acknowledged)


def cut_power(store: str, *, traces: int, per_trace: int, shim: Path, memory: Path) -> Outcome:
    outcome = Outcome()
    for seed in range(SEED, SEED + traces):
        chance = random.Random(seed)
        folder, trace = traced(store, seed, shim, memory)
        for what, files, acks in images(folder, trace, per_trace, chance):
            left = memory / "left"
            lay(files, left)
            examine(store, f"seed {seed}, {what}", left, acks, outcome)
            shutil.rmtree(left)
        shutil.rmtree(folder)
        trace.unlink()
    return outcome


def examine(store: str, what: str, left: Path, acks: bytes, outcome: Outcome) -> None:
    """Open what is left and add to the outcome what was found."""
    acknowledged = Acknowledged()
    acknowledged.read(acks)
    outcome.images += 1
    outcome.modes[what.split(", ")[1].split(" ", maxsplit=1)[0]] += 1
    files = b"".join(file.read_bytes() for file in left.iterdir())
    try:
        with closing(open_store(store, left / "runs.db")) as opened:
            problem = opened.verify()
            verdict = examined(opened, acknowledged)
            opened.append([("after", b'{"batch": "after", "index": 0, "of": 1}')])
    except Exception as error:
        outcome.broken.append(f"{what}: {error!r}")
        return
    outcome.losing += bool(verdict.lost)
    outcome.without_log += not verdict.records
    bad = (verdict.torn, verdict.twins, verdict.kept, verdict.disordered)
    if store == "atlas-power":
        remains = [stream for stream in acknowledged.erased if secret_of(stream) in files]
        problem += f"erased, but on the disk: {remains}" * bool(remains)
    if problem or any(bad):
        outcome.broken.append(f"{what}: {problem} {verdict}")


@pytest.mark.parametrize("store", ["raw-full", "atlas-power"])
def test_the_notes_of_a_process_tell_the_files_it_left(
    store: str, shim: Path, memory: Path
) -> None:
    folder, trace = traced(store, SEED, shim, memory)
    disk = Disk(folder)
    for call in notes(trace):
        disk.follow(call)
    told = disk.image("everything", random.Random(0))
    there = {path.name: path.read_bytes() for path in folder.iterdir()}

    assert bytes(disk.acknowledged) == there.pop("acks")
    assert told == {name: content for name, content in there.items() if not name.endswith("-shm")}


def test_a_power_cut_loses_nothing_acknowledged_and_tears_nothing(shim: Path, memory: Path) -> None:
    outcome = cut_power(
        "atlas-power", traces=count(2, 25), per_trace=count(50, 100), shim=shim, memory=memory
    )

    print(outcome)
    assert outcome.broken == []
    assert outcome.losing == 0
    assert outcome.images == count(100, 2_500)
    assert set(outcome.modes) == set(MODES)


@pytest.mark.parametrize("store", ["atlas-process", "atlas-lazy"])
def test_less_durable_logs_may_lose_the_end_to_a_power_cut_but_nothing_else(
    store: str, shim: Path, memory: Path
) -> None:
    outcome = cut_power(
        store, traces=count(1, 5), per_trace=count(20, 100), shim=shim, memory=memory
    )

    print(outcome)
    assert outcome.broken == []
    assert outcome.losing > 0, "the images do not show what a missing sync costs"


def test_the_same_images_lose_what_plain_sqlite_did_not_sync(shim: Path, memory: Path) -> None:
    outcome = cut_power("raw-normal", traces=1, per_trace=count(20, 100), shim=shim, memory=memory)

    assert outcome.losing > 0


def test_the_same_images_break_a_file_that_is_never_synced(shim: Path, memory: Path) -> None:
    outcome = cut_power("raw-off", traces=1, per_trace=count(30, 100), shim=shim, memory=memory)

    assert outcome.losing > 0
    assert outcome.broken != []


def test_plain_sqlite_that_syncs_each_commit_survives_the_same_images(
    shim: Path, memory: Path
) -> None:
    outcome = cut_power("raw-full", traces=1, per_trace=count(20, 100), shim=shim, memory=memory)

    assert outcome.broken == []
    assert outcome.losing == 0
