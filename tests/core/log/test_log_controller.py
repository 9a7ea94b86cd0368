from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import pytest

from atlas.core.log.addresses import without_password
from atlas.core.log.controller import LogController
from atlas.core.log.memory import MemoryEngine
from atlas.core.log.records import NewRecord
from atlas.core.log.sqlite import SqliteEngine
from atlas.errors import (
    CloseFailedError,
    ConfigurationError,
    LogClosedError,
    LogUnavailableError,
    VersionConflictError,
)
from atlas.testing import ManualClock


@pytest.fixture
def logs():
    with LogController() as controller:
        yield controller


def test_every_way_to_write_a_path_is_one_log(logs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    addresses = [
        "runs.db",
        Path("runs.db"),
        "./runs.db",
        str(tmp_path / "runs.db"),
        str(tmp_path / "link" / "runs.db"),
        "sqlite:///runs.db",
        f"sqlite:///{tmp_path}/runs.db",
    ]
    engines = [logs.open_log(address) for address in addresses]

    assert isinstance(engines[0], SqliteEngine)
    assert all(engine is engines[0] for engine in engines)
    assert logs.open_log("other.db") is not engines[0]


def test_the_last_user_closes_the_log(logs, tmp_path):
    first = logs.open_log(tmp_path / "runs.db")
    second = logs.open_log(tmp_path / "runs.db")
    logs.close_log(first)
    second.append([NewRecord("a", "n", b"")]).wait()
    logs.close_log(second)

    with pytest.raises(LogClosedError):
        first.last_position()
    with pytest.raises(ConfigurationError, match="closed already"):
        logs.close_log(first)
    again = logs.open_log(tmp_path / "runs.db")
    assert again is not first
    assert again.last_position() == 1


def test_memory_is_not_shared(logs):
    first, second = logs.open_log(":memory:"), logs.open_log(":memory:")

    assert isinstance(first, MemoryEngine)
    assert first is not second
    logs.close_log(first)
    assert second.last_position() is None


def test_a_log_is_not_opened_with_other_options(logs, tmp_path):
    clock = ManualClock()
    log = logs.open_log(tmp_path / "runs.db", durability="process", clock=clock)

    assert logs.open_log(tmp_path / "runs.db") is log
    assert logs.open_log(tmp_path / "runs.db", durability="process") is log
    with pytest.raises(ConfigurationError, match="durability='process'"):
        logs.open_log(tmp_path / "runs.db", durability="power")


def test_a_failure_to_open_leaves_nothing_behind(logs, tmp_path):
    with pytest.raises(LogUnavailableError):
        logs.open_log(tmp_path / "no" / "runs.db")
    (tmp_path / "no").mkdir()

    assert logs.open_log(tmp_path / "no" / "runs.db").last_position() is None


def test_closing_closes_all_and_tells_what_failed(tmp_path):
    logs = LogController()
    good, bad = logs.open_log(tmp_path / "good.db"), logs.open_log(tmp_path / "bad.db")
    good.append([NewRecord("a", "n", b"")])
    bad.append([NewRecord("a", "n", b"")], expect={"a": 5})
    with pytest.raises(CloseFailedError) as caught:
        logs.close()
    logs.close()

    assert [type(error) for error in caught.value.errors] == [VersionConflictError]
    with LogController() as again:
        assert again.open_log(tmp_path / "good.db").last_position() == 1


def test_threads_share_one_engine(logs, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        engines = list(pool.map(lambda _: logs.open_log(tmp_path / "runs.db"), range(16)))

    assert len(set(map(id, engines))) == 1


@pytest.mark.parametrize(
    "address",
    ["", "mysql://root:geheim@host/db", "sqlite://host/x.db", "sqlite:///", "sqlite:///a?b"],
)
def test_an_address_that_makes_no_sense_says_what_would(logs, address):
    with pytest.raises(ConfigurationError, match=r"'runs\.db'") as caught:
        logs.open_log(address)

    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://ada:geheim@host:5432/db", "postgresql://ada:***@host:5432/db"),
        ("postgresql://ada@host/db", "postgresql://ada@host/db"),
        ("postgresql://ada:@host/db", "postgresql://ada:***@host/db"),
        ("postgresql://host/db?user=ada&password=geheim&x=1", "postgresql://host/db?user=ada&password=***&x=1"),
        ("postgresql://ada:ge:he%40im@host/db", "postgresql://ada:***@host/db"),
        ("runs.db", "runs.db"),
        ("C:\\logs\\runs.db", "C:\\logs\\runs.db"),
    ],
)  # fmt: skip
def test_passwords_are_not_shown(address, shown):
    assert without_password(address) == shown


def test_a_server_that_is_not_there_is_told_without_its_password(logs, unused_port):
    with pytest.raises((ConfigurationError, LogUnavailableError)) as caught:
        logs.open_log(f"postgresql://ada:geheim@127.0.0.1:{unused_port}/db").last_position()

    assert "geheim" not in str(caught.value)


class Interrupted(PathLike):
    """A path, at the reading of which something else happens, as when the garbage collector runs."""

    def __init__(self, path, happens):
        self._path = path
        self._happens = happens

    def __fspath__(self):
        happens, self._happens = self._happens, lambda: None
        happens()
        return str(self._path)


def test_a_log_that_the_garbage_collector_closes_while_another_is_opened_holds_nobody_up(
    logs, tmp_path
):
    left = logs.open_log(tmp_path / "left.db")
    opened = logs.open_log(Interrupted(tmp_path / "other.db", lambda: logs.close_log(left)))

    opened.append([NewRecord("a", "n", b"")]).wait()
    with pytest.raises(LogClosedError):
        left.last_position()


def test_trouble_with_a_log_that_was_left_is_logged_and_not_raised_at_others(
    logs, tmp_path, caplog
):
    left = logs.open_log(tmp_path / "left.db")
    logs.close_log(left)

    logs.open_log(Interrupted(tmp_path / "other.db", lambda: logs.close_log(left)))

    assert "was closed already" in caplog.text
