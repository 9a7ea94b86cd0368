"""While a run is replayed its code cannot reach the world; all other code can."""

from __future__ import annotations

import asyncio
import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from atlas.core.effects import MemoryJournal, RunContext, effect
from atlas.errors import UndeclaredEffectError


@effect(pure=True)
async def nothing() -> None:
    pass


async def recording() -> list:
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await nothing()
    return journal.entries


def connect(path: Path) -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))


def bind(path: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))


def look_up(path: Path) -> None:
    socket.getaddrinfo("localhost", 80)


def write(path: Path) -> None:
    (path / "new").write_text("x")


def append(path: Path) -> None:
    with (path / "old").open("a"):
        pass


def remove(path: Path) -> None:
    (path / "old").unlink()


def rename(path: Path) -> None:
    (path / "old").rename(path / "other")


def make_folder(path: Path) -> None:
    (path / "folder").mkdir()


def start(path: Path) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)


def system(path: Path) -> None:
    os.system("true")


DEEDS = [connect, bind, look_up, write, append, remove, rename, make_folder, start, system]


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
async def test_undeclared_effects_are_refused_in_a_replay(deed, tmp_path: Path):
    (tmp_path / "old").write_text("old")
    async with RunContext("r", mode="replay", recorded=await recording()):
        await nothing()
        with pytest.raises(UndeclaredEffectError, match="no declared effect"):
            deed(tmp_path)

    assert [each.name for each in tmp_path.iterdir()] == ["old"]


async def test_reading_and_importing_work_in_a_replay(tmp_path: Path, monkeypatch):
    (tmp_path / "replay_guard_module.py").write_text("x = 5")
    monkeypatch.syspath_prepend(tmp_path)
    async with RunContext("r", mode="replay", recorded=await recording()):
        await nothing()
        assert (tmp_path / "replay_guard_module.py").read_text() == "x = 5"
        assert importlib.import_module("replay_guard_module").x == 5


async def test_the_host_is_not_hindered(tmp_path: Path):
    over = asyncio.Event()
    written = asyncio.Event()

    async def host() -> None:
        while not over.is_set():
            (tmp_path / "host").write_text("x")
            written.set()
            await asyncio.sleep(0)

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await asyncio.sleep(0.01)
    task = asyncio.create_task(host())
    async with RunContext("r", mode="replay", recorded=journal.entries, pace=1.0):
        await asyncio.sleep(0.01)
    over.set()
    await task

    assert written.is_set()


async def test_a_recording_run_is_not_hindered(tmp_path: Path):
    await recording()
    async with RunContext("r", strict=True):
        write(tmp_path)

    assert (tmp_path / "new").exists()


async def test_a_fork_is_hindered_until_it_is_live(tmp_path: Path):
    async with RunContext("f", mode="fork", recorded=await recording(), at=1):
        with pytest.raises(UndeclaredEffectError):
            write(tmp_path)
        await nothing()
        write(tmp_path)

    assert (tmp_path / "new").exists()
