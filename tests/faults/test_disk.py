"""Full disks and failing ones: a clear error, nothing half there, and back to work afterwards."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from faults import shim as preloaded
from faults.checks import Acknowledged, judge
from faults.counts import count
from faults.disturbed import Disturbance, Report
from faults.stores import open_store

FAULTS = {
    "full": (preloaded.WRITE, errno.ENOSPC, preloaded.FOR_EVER, True),
    "full once": (preloaded.WRITE, errno.ENOSPC, 1, False),
    "writes fail": (preloaded.WRITE, errno.EIO, preloaded.FOR_EVER, False),
    "syncs fail": (preloaded.SYNC, errno.EIO, preloaded.FOR_EVER, False),
    "one sync fails": (preloaded.SYNC, errno.EIO, 1, False),
    "no file opens": (preloaded.OPEN, errno.EMFILE, preloaded.FOR_EVER, False),
    "everything fails": (
        preloaded.WRITE | preloaded.SYNC | preloaded.TRUNCATE,
        errno.EIO,
        preloaded.FOR_EVER,
        False,
    ),
}


def disturb(store: str, fault: str, skips: list[int], shim: Path, folder: Path) -> list[Report]:
    kinds, error, times, half = FAULTS[fault]
    disturbance = Disturbance(store, str(folder), kinds, error, skips, times, half)
    printed = preloaded.run(
        "disturbed",
        json.dumps(asdict(disturbance)),
        env=preloaded.environment(shim, folder),
        timeout=600,
    )
    return [Report(**report) for report in json.loads(printed)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_disk_is_an_error_and_nothing_is_half_there(
    fault: str, shim: Path, memory: Path
) -> None:
    skips = list(range(count(3, 60))) + [count(17, 100)]
    reports = disturb("atlas-power", fault, skips, shim, memory)

    assert [problem for report in reports for problem in report.problems] == []
    assert all(report.back for report in reports), "it did not work again in the same process"
    errors = {kind for report in reports for kinds in report.errors.values() for kind in kinds}
    assert errors == {"LogUnavailableError"}
    assert reports[0].hits > 0
    assert reports[0].refused > 0 or "open" in fault


@pytest.mark.parametrize("times", [1, preloaded.FOR_EVER])
@pytest.mark.parametrize(
    "kinds", [preloaded.WRITE, preloaded.SYNC, preloaded.OPEN, preloaded.TRUNCATE]
)
def test_a_log_that_cannot_be_made_is_an_error_and_can_be_made_later(
    kinds: int, times: int, shim: Path, memory: Path
) -> None:
    error = errno.EMFILE if kinds == preloaded.OPEN else errno.EIO
    disturbance = Disturbance(
        "atlas-power", str(memory), kinds, error, list(range(count(10, 40))), times, beginning=True
    )
    env = preloaded.environment(shim, memory)
    printed = preloaded.run("disturbed", json.dumps(asdict(disturbance)), env=env, timeout=600)
    reports = [Report(**report) for report in json.loads(printed)]

    assert [problem for report in reports for problem in report.problems] == []
    assert [report.skip for report in reports if not report.back] == []
    assert {kind for report in reports for kinds in report.errors.values() for kind in kinds} == {
        "LogUnavailableError"
    }


@pytest.mark.parametrize("kinds", [preloaded.WRITE, preloaded.SYNC])
def test_a_process_that_dies_while_the_disk_fails_leaves_what_was_acknowledged(
    kinds: int, shim: Path, memory: Path
) -> None:
    disturbance = Disturbance(
        "atlas-power", str(memory), kinds, errno.EIO, list(range(count(8, 60))), dying=True
    )
    env = preloaded.environment(shim, memory)
    printed = preloaded.run("disturbed", json.dumps(asdict(disturbance)), env=env, timeout=600)
    for line in printed.splitlines():
        path, acknowledged, _refused = json.loads(line)
        store = open_store("atlas-power", Path(path))
        rows, problem = store.rows(), store.verify()
        store.close()
        verdict = judge(rows, Acknowledged(set(acknowledged)))
        assert problem == ""
        assert verdict.ok, verdict
        there = {json.loads(row.payload or b"")["batch"] for row in rows}
        assert there <= set(acknowledged)

    assert printed.count("\n") == len(disturbance.skips)


def test_the_same_faults_find_out_a_store_that_acknowledges_too_early(
    shim: Path, memory: Path
) -> None:
    reports = disturb("early-ack", "full", [0, 1, 2, 3], shim, memory)

    assert any("lost=['" in problem for report in reports for problem in report.problems)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a real disk of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("limit", ["a full disk", "a limit of the file size"])
def test_a_log_that_has_no_room_says_so_and_goes_on_when_there_is_some(
    limit: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    full = limit == "a full disk"
    folder = request.getfixturevalue("small_disk") if full else tmp_path
    (folder / "ballast").write_bytes(b"x" * 400_000 * full)
    printed = preloaded.run(
        "cramped",
        str(folder),
        "0" if full else "600000",
        env={**os.environ, "PYTHONPATH": str(preloaded.HERE.parent)},
    )
    report = json.loads(printed)

    assert report["error"] == "LogUnavailableError"
    assert report["problems"] == []
    assert report["back"]
