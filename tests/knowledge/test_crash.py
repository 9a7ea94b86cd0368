"""kill -9 in the middle of an ingest: opened again it goes on, nothing twice, nothing by half.

The moments differ: after a number of documents and a number of microseconds, both drawn with a seed;
half of them hit an ingest of single documents, half one of all of them. ``ATLAS_KILLS`` says how many
moments are tried without Chroma (default 6), ``ATLAS_CHROMA_KILLS`` how many with it (default 2).
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KILLS = int(os.environ.get("ATLAS_KILLS", "6"))
CHROMA_KILLS = int(os.environ.get("ATLAS_CHROMA_KILLS", "2"))

_spec = importlib.util.spec_from_file_location("crashing", HERE / "crashing.py")
assert _spec is not None
assert _spec.loader is not None
crashing = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(crashing)


def killed(path: Path, store: str, way: str, moments: random.Random) -> None:
    """Run the process, and kill it some time after it has come so far."""
    documents, pause = moments.randrange(crashing.DOCUMENTS), moments.random() * 0.03
    process = subprocess.Popen(
        [sys.executable, str(HERE / "crashing.py"), str(path), store, way],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        text=True,
    )
    assert process.stdout is not None
    with process:
        for _ in range(documents + 1):
            process.stdout.readline()
        end = time.perf_counter() + pause
        while time.perf_counter() < end:
            pass
        process.kill()


def check(path: Path, *, chroma: bool) -> int:
    """Open it again, look at what is there, go on; return how many documents had been stored."""
    with crashing.opened(str(path), chroma=chroma) as kb:
        try:
            before = kb.documents()
        except LookupError:
            before = []
        else:
            for mode in ("keyword", "dense", "hybrid"):
                hits = kb.search_sync("sea ships", k=2_000, mode=mode)
                places = Counter((hit.source, hit.start) for hit in hits)
                assert set(places.values()) <= {1}
                assert Counter(s for s, _ in places) == {d.source: crashing.PARTS for d in before}

        # One more than the process had, so that there is something to write in any case.
        every = crashing.DOCUMENTS + 1
        done = kb.ingest_sync(*(crashing.paper(number) for number in range(every)))

        assert done.unchanged == len(before)
        assert done.ingested == every - len(before)
        assert {each.number for each in kb.documents()} == {1}
        held = kb._collections["main"]
        assert held.dense.store is not None
        assert len(held.dense.store.ids("main")) == every * crashing.PARTS
        assert len(kb.search_sync("sea", k=2_000)) == every * crashing.PARTS
    return len(before)


@pytest.mark.timeout(3_600)
def test_after_a_kill_nothing_is_twice_missing_or_half(tmp_path: Path) -> None:
    moments = random.Random(6)
    stored = []
    for number in range(KILLS):
        path = tmp_path / str(number)
        killed(path, "memory", ("each", "all")[number % 2], moments)
        stored.append(check(path, chroma=False))

    assert any(0 < count < crashing.DOCUMENTS for count in stored)


@pytest.mark.timeout(3_600)
def test_after_a_kill_chroma_is_brought_in_step(tmp_path: Path) -> None:
    moments = random.Random(7)
    for number in range(CHROMA_KILLS):
        path = tmp_path / str(number)
        killed(path, "chroma", ("each", "all")[number % 2], moments)

        check(path, chroma=True)
