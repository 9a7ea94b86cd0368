"""A power cut while a log is repaired: the good prefix is never out of reach."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from atlas.core.log.records import NewRecord
from atlas.core.log.sqlite import SqliteEngine
from faults import shim as preloaded
from faults.counts import SEED, count
from faults.disk import MODES, Disk, lay, notes
from faults.repairer import GOOD, payload

SAID = {0: b"", 1: b"damaged\n", 2: b"damaged\nrepaired\n"}


def check(folder: Path, *, repaired: bool) -> None:
    """Open what was left; repair it if it needs that; all that was good is there."""
    engine = SqliteEngine(folder / "runs.db")
    found = engine.verify()
    assert found.ok or not repaired, found
    engine.repair()
    engine.append([NewRecord("run", "step@1", b"goes on")]).wait()
    records = engine.read("run")
    assert engine.verify().ok
    engine.close()
    assert [record.payload for record in records[:-1]] == [payload(n) for n in range(1, GOOD + 1)]
    assert list(folder.glob("runs.db.set-aside-*")), "the damaged file is not kept"


def test_a_power_cut_during_a_repair_leaves_a_log_that_can_be_repaired(
    shim: Path, memory: Path
) -> None:
    folder, trace = memory / "log", memory / "trace"
    folder.mkdir()
    preloaded.run("repairer", str(folder), env=preloaded.environment(shim, folder, trace))
    calls, chance, done, disk = notes(trace), random.Random(SEED), 0, Disk(folder)
    while disk.acknowledged != SAID[1]:
        disk.follow(calls[done])
        done += 1
    cuts = sorted(chance.randrange(done, len(calls) + 1) for _ in range(count(30, 400)))
    for cut in cuts:
        for call in calls[done:cut]:
            disk.follow(call)
        done = cut
        mode = chance.choice(MODES)
        left = memory / "left"
        lay(disk.image(mode, chance), left)
        try:
            check(left, repaired=disk.acknowledged == SAID[2])
        except Exception as error:
            error.add_note(f"{mode} after call {cut} of {len(calls)}, seed {SEED}")
            raise
        shutil.rmtree(left)

    assert disk.acknowledged in SAID.values()
