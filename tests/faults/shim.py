"""The library of shim.c: built once per session of tests, and how a process is started with it."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMPILER = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")

WRITE, SYNC, TRUNCATE, OPEN = 1, 2, 4, 8
FOR_EVER = -1


def build(into: Path) -> Path:
    """Compile the library; nothing of it is kept beyond the session."""
    library = into / "shim.so"
    subprocess.run(
        [
            str(COMPILER),
            "-shared",
            "-fPIC",
            "-O2",
            "-o",
            str(library),
            str(HERE / "shim.c"),
            "-ldl",
            "-pthread",
        ],
        check=True,
        timeout=60,
    )
    return library


def environment(library: Path, folder: Path, trace: Path | None = None) -> dict[str, str]:
    """Return the variables with which a process is watched."""
    found = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "FAULTS_FOLDER": str(folder),
        "PYTHONPATH": str(HERE.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if trace is not None:
        found["FAULTS_TRACE"] = str(trace)
    return found


def arm(
    kinds: int, error: int = errno.EIO, *, skip: int = 0, times: int = FOR_EVER, half: bool = False
) -> None:
    """Let calls of this process fail, from the one after ``skip`` on; see ``faults_arm`` in shim.c."""
    ctypes.CDLL(None).faults_arm(kinds, error, ctypes.c_long(skip), ctypes.c_long(times), int(half))


def disarm() -> int:
    """Let calls succeed again; return how many were made to fail."""
    library = ctypes.CDLL(None)
    library.faults_hits.restype = ctypes.c_long
    hits = int(library.faults_hits())
    library.faults_arm(0, 0, ctypes.c_long(0), ctypes.c_long(0), 0)
    return hits


def run(module: str, *arguments: str, env: dict[str, str], timeout: float = 120) -> str:
    """Run a module of this package in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"faults.{module}", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
