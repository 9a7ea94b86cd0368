"""The log in PostgreSQL: the contract of every engine, and what a server can do to it."""

import selectors
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from atlas.core.log.controller import LOGS
from atlas.core.log.postgres import PostgresEngine
from atlas.core.log.records import Snapshot
from atlas.errors import (
    ConfigurationError,
    LogCorruptedError,
    LogFormatError,
    LogUnavailableError,
)

from support.engine_contract import EngineContract, SettableClock, model_of, new
from support.postgres import PostgresServer

TIMEOUT = 30.0


class TestPostgresEngine(EngineContract):
    @pytest.fixture
    def place(self, postgres_server: PostgresServer) -> Callable[..., PostgresEngine]:
        address = postgres_server.new_log()
        return lambda clock=None: PostgresEngine(address, clock=clock)


def test_it_behaves_like_a_list(postgres_server: PostgresServer) -> None:
    current: list[str] = []

    def place(*, clock: SettableClock, fresh: bool = False) -> PostgresEngine:
        if fresh:
            current[:] = [postgres_server.new_log()]
        return PostgresEngine(current[0], clock=clock)

    model_of(place, steps=12, examples=6)("runTest").debug()


@pytest.fixture
def address(postgres_server: PostgresServer) -> str:
    return postgres_server.new_log()


@pytest.fixture
def log(address: str) -> Iterator[PostgresEngine]:
    with closing(PostgresEngine(address)) as engine:
        yield engine


@pytest.fixture
def console(address: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the database's owner, who may do anything to the log's tables."""
    server, _, schema = address.partition("&schema=")
    with psycopg.connect(server, autocommit=True) as connection:
        # Of a log that is made by then, or later.
        connection.execute(f"SET search_path = {schema}")
        yield connection


# -- when the server goes away --


def test_what_was_acknowledged_survives_a_killed_server(
    postgres_server: PostgresServer, log: PostgresEngine
) -> None:
    acknowledged = [log.append([new("a")]).wait()[0].position for _ in range(5)]
    with ThreadPoolExecutor() as pool:
        following = pool.submit(log.wait_beyond, 5)
        postgres_server.kill()
        try:
            for use in (
                lambda: log.append([new("a")]).wait(),
                lambda: log.read("a"),
                lambda: log.erase("a"),
                log.verify,
            ):
                with pytest.raises(LogUnavailableError, match="cannot be used at the moment"):
                    use()
            assert log.wait_beyond(5, timeout=0) is False
        finally:
            postgres_server.start()

        assert [record.position for record in log.read("a")] == acknowledged
        assert log.append([new("a")]).wait()[0].position == 6
        assert following.result(TIMEOUT) is True
    assert log.verify().ok


def test_connections_that_were_cut_off_are_replaced(
    log: PostgresEngine, console: psycopg.Connection[Any]
) -> None:
    log.append([new("a")]).wait()
    for use in (lambda: log.append([new("a")]).wait(), lambda: log.read("a"), log.verify):
        console.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE application_name = 'atlas'"
        )
        assert use()

    assert log.head("a") == 2


class Relay:
    """Stands between a client and the server, and cuts the connection at the next commit.

    Args:
        server: The address of the server.
        directory: Where to listen.
        deliver: Whether the server gets the commit; its answer is swallowed in any case.
    """

    def __init__(self, server: str, directory: Path, *, deliver: bool) -> None:
        folder = server.partition("host=")[2].partition("&")[0]
        self._server = f"{folder}/.s.PGSQL.5432"
        self._deliver = deliver
        self.armed = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / ".s.PGSQL.5432"))
        self._listener.listen()
        self.address = server.replace(folder, str(directory))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._server)
                threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, selectors.DefaultSelector() as selector, suppress(OSError):
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    cut = self.armed and key.data is server and b"COMMIT\0" in data
                    if cut and not self._deliver:
                        self.armed = False
                        return
                    if not data:
                        return
                    key.data.sendall(data)
                    if cut:
                        self.armed = False
                        server.recv(65536)
                        return

    def close(self) -> None:
        """Let nobody connect any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize("delivered", [True, False])
def test_a_commit_that_was_not_answered_is_looked_up_and_done_once(
    address: str, short_directory: Path, delivered: bool
) -> None:
    with (
        closing(Relay(address, short_directory, deliver=delivered)) as relay,
        closing(PostgresEngine(relay.address)) as log,
    ):
        log.append([new("a", b"1")]).wait()
        relay.armed = True
        second = log.append([new("a", b"2")]).wait()
        relay.armed = True
        log.append([], tracking=("view", 5)).wait()

        assert not relay.armed
        assert second[0].position == 2
        assert [record.payload for record in log.read("a")] == [b"1", b"2"]
        assert log.tracked("view") == 5
        assert log.append([new("a", b"3")]).wait()[0].position == 3
        assert log.verify().ok


def test_a_commit_that_cannot_be_looked_up_is_said_to_be_in_doubt(
    address: str, short_directory: Path, log: PostgresEngine
) -> None:
    relay = Relay(address, short_directory, deliver=True)
    with closing(PostgresEngine(relay.address)) as far:
        relay.armed = True
        relay.close()
        with pytest.raises(LogUnavailableError, match="may be stored or not"):
            far.append([new("a")]).wait()

    assert log.wait_beyond(0, TIMEOUT)


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="atlas-") as directory:
        yield Path(directory)


def test_one_append_that_the_server_refuses_does_not_fail_those_beside_it(
    log: PostgresEngine, console: psycopg.Connection[Any]
) -> None:
    console.execute("ALTER TABLE atlas_records ADD CHECK (name <> 'bad')")
    appends = [log.append([new("a", name=name)]) for name in ("good", "bad", "good")]
    with pytest.raises(LogUnavailableError, match="check constraint"):
        appends[1].wait()

    assert [append.wait()[0].position for append in (appends[0], appends[2])] == [1, 2]
    assert log.verify().ok


# -- several at once --


def test_many_may_make_the_same_log_at_once(address: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        logs = list(pool.map(PostgresEngine, [address] * 6))
        positions = list(pool.map(lambda log: log.append([new("a")]).wait()[0].position, logs))

    assert sorted(positions) == list(range(1, 7))
    for log in logs:
        log.close()


def test_notices_carry_a_position_and_nothing_else(
    log: PostgresEngine, console: psycopg.Connection[Any], address: str
) -> None:
    console.execute(f'LISTEN "{address.partition("&schema=")[2]}.atlas_"')
    log.append([new("secret stream", b"secret payload"), new("b")]).wait()

    assert [n.payload for n in console.notifies(timeout=TIMEOUT, stop_after=1)] == ["2"]


def test_logs_of_other_names_share_a_database(address: str) -> None:
    with (
        closing(PostgresEngine(address, prefix="one_")) as one,
        closing(PostgresEngine(address + "&prefix=two_")) as two,
    ):
        one.append([new("a")]).wait()

        assert two.last_position() is None
        assert two.append([new("b")]).wait()[0].position == 1


def test_a_log_that_is_only_read_is_neither_made_nor_changed(
    address: str, console: psycopg.Connection[Any]
) -> None:
    with pytest.raises(LogUnavailableError, match="There is no log at"):
        PostgresEngine(address, read_only=True)
    schema = address.partition("&schema=")[2]
    named = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
    assert console.execute(named, (schema,)).fetchone() is None
    with closing(PostgresEngine(address)) as log:
        log.append([new("a")]).wait()
    with closing(PostgresEngine(address, read_only=True)) as log:
        assert log.last_position() == 1
        assert log.verify().ok
        for change in (
            lambda: log.append([new("a")]),
            lambda: log.erase("a"),
            lambda: log.save_snapshot(Snapshot("a", 1, "l", b"")),
            lambda: log.drop_snapshots("a"),
            log.repair,
        ):
            with pytest.raises(LogUnavailableError, match="for reading only"):
                change()


def test_a_log_is_opened_by_its_address(address: str) -> None:
    log = LOGS.open_log(address)

    assert isinstance(log, PostgresEngine)
    assert LOGS.open_log(address) is log
    LOGS.close_log(log)
    LOGS.close_log(log)


# -- damage --


@pytest.fixture
def damaged(log: PostgresEngine, console: psycopg.Connection[Any]) -> PostgresEngine:
    log.append([new("ab"[i % 2], b"%d" % i) for i in range(6)]).wait()
    log.save_snapshot(Snapshot("a", 1, "sum", b"0"))
    return log


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        ("UPDATE atlas_records SET payload = '9' WHERE position = 4", 4),
        ("UPDATE atlas_records SET payload = NULL WHERE position = 4", 4),
        ("UPDATE atlas_records SET digest = '9' WHERE position = 4", 4),
        ("UPDATE atlas_records SET name = 'other' WHERE position = 4", 4),
        ("UPDATE atlas_records SET stream = 'c' WHERE position = 4", 4),
        ("UPDATE atlas_records SET wall_ns = wall_ns + 1 WHERE position = 4", 4),
        ("UPDATE atlas_records SET position = -4 WHERE position = 4", -4),
        ("DELETE FROM atlas_records WHERE position = 4", 5),
        ("DELETE FROM atlas_records WHERE position = 6", 6),
        ("UPDATE atlas_log SET position = 4", 7),
        ("UPDATE atlas_log SET chain = ''", 7),
    ],
)
def test_damage_is_found_and_set_aside(
    damaged: PostgresEngine, console: psycopg.Connection[Any], change: str, bad: int
) -> None:
    console.execute(change)
    found = damaged.verify()
    repaired = damaged.repair()
    aside = console.execute("SELECT count(*) FROM atlas_set_aside").fetchone()

    assert found.bad_position == bad
    assert found.problem
    assert aside == (repaired.set_aside,)
    assert repaired.saved_to.endswith(".atlas_set_aside") == bool(repaired.set_aside)
    assert damaged.verify().ok
    assert damaged.snapshot("a", "sum") is None
    assert damaged.append([new("a")]).wait()[0].position == 8
    assert damaged.verify().ok


def test_a_damaged_payload_is_not_read_as_if_it_were_right(
    damaged: PostgresEngine, console: psycopg.Connection[Any]
) -> None:
    console.execute("UPDATE atlas_records SET payload = '9' WHERE position = 3")
    console.execute("UPDATE atlas_snapshots SET version = 2")

    for read in (lambda: damaged.read("a"), damaged.read_all):
        with pytest.raises(LogCorruptedError, match="position 3") as caught:
            read()
        assert caught.value.position == 3
    assert damaged.snapshot("a", "sum") is None


def test_nothing_is_appended_to_a_log_that_lost_its_end(
    damaged: PostgresEngine, console: psycopg.Connection[Any], address: str
) -> None:
    console.execute("DELETE FROM atlas_records WHERE position = 6")
    with closing(PostgresEngine(address)) as log, pytest.raises(LogCorruptedError, match="repair"):
        log.append([new("a")]).wait()


def test_erased_payloads_are_in_no_table(
    log: PostgresEngine, console: psycopg.Connection[Any]
) -> None:
    log.append([new("a", b"secret"), new("b", b"kept")]).wait()
    log.erase("a")
    dead = console.execute("SELECT payload FROM atlas_records ORDER BY position LIMIT 2").fetchall()

    assert dead == [(None,), (b"kept",)]


# -- addresses --


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://atlas:hush@localhost:notaport/db",
        "postgresql://atlas:hush@localhost/db?no_such_option=1",
        "postgresql://atlas:hush@localhost/db?schema=a.b",
        "postgresql://atlas:hush@localhost/db?prefix=A",
        "mysql://atlas:hush@localhost/db",
    ],
)
def test_an_address_that_makes_no_sense_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PostgresEngine(address)

    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("where", ["atlas:hush@/postgres?", "atlas@/postgres?password=hush&"])
def test_a_password_is_never_shown(postgres_server: PostgresServer, where: str) -> None:
    address = postgres_server.new_log().replace("atlas@/postgres?", where)
    with closing(PostgresEngine(address)) as log:
        postgres_server.kill()
        try:
            with pytest.raises(LogUnavailableError) as caught:
                log.append([new("a")]).wait()
        finally:
            postgres_server.start()

        assert "hush" not in log.address
        assert "hush" not in str(caught.value)
        assert "hush" not in repr(vars(log))


def test_a_log_of_a_newer_format_is_refused(
    log: PostgresEngine, console: psycopg.Connection[Any], address: str
) -> None:
    console.execute("UPDATE atlas_log SET format = 99")

    with pytest.raises(LogFormatError, match="format 99"):
        PostgresEngine(address)


def test_a_name_too_long_for_an_index_is_refused(log: PostgresEngine) -> None:
    log.append([new("ä" * 1000)]).wait()
    with pytest.raises(ValueError, match="2000 bytes"):
        log.append([new("ä" * 1001)])

    assert log.last_position() == 1


@pytest.mark.parametrize(("durability", "setting"), [("power", "on"), ("process", "off")])
def test_durability_is_a_setting_of_the_connection(
    address: str, console: psycopg.Connection[Any], durability: Any, setting: str
) -> None:
    with closing(PostgresEngine(address, durability=durability)) as log:
        assert log._number("SELECT (current_setting('synchronous_commit') = 'on')::int") == (
            setting == "on"
        )
