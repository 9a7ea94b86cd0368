"""What the tests of faults share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import shim as preloaded
from faults.killing import Writers

from support.postgres import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that watches and disturbs the calls of a process."""
    if preloaded.COMPILER is None:
        pytest.skip("no C compiler is installed, which tests/faults/shim.c needs")
    return preloaded.build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a folder that is fast: in memory where the machine has such a place."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def writers() -> Iterator[Writers]:
    """Return who starts writers, to be killed."""
    found = Writers()
    yield found
    found.close()
