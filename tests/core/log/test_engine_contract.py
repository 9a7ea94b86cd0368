from pathlib import Path

import pytest

from atlas.core.log.memory import MemoryEngine
from atlas.core.log.sqlite import SqliteEngine

from support.engine_contract import EngineContract, model_of


class TestMemoryEngine(EngineContract):
    persistent = False

    @pytest.fixture
    def place(self):
        return lambda clock=None: MemoryEngine(clock=clock)


class TestSqliteEngine(EngineContract):
    @pytest.fixture
    def place(self, tmp_path):
        return lambda clock=None: SqliteEngine(tmp_path / "runs.db", clock=clock)


class TestSqliteEngineWithoutSync(EngineContract):
    @pytest.fixture
    def place(self, tmp_path):
        return lambda clock=None: SqliteEngine(tmp_path / "runs.db", clock=clock, durability="lazy")


def _in_memory(clock=None, *, fresh=False):
    return MemoryEngine(clock=clock)


class _InFiles:
    """Opens a file of its own for each example."""

    folder: Path
    number = 0

    def __call__(self, clock=None, *, fresh=False):
        self.number += fresh
        path = self.folder / f"{self.number}.db"
        return SqliteEngine(path, clock=clock, durability="process")


_in_files = _InFiles()


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    _in_files.folder = tmp_path_factory.mktemp("models")


TestMemoryModel = model_of(_in_memory, persistent=False)
TestSqliteModel = model_of(_in_files)
