"""Records that are kept at once and entered into the log later, on SQLite."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.core.log.records import NewRecord
from atlas.core.log.sqlite import SqliteEngine
from atlas.errors import (
    LogClosedError,
    LogCorruptedError,
    VersionConflictError,
)

NAME = "thing.done@1"


def new(stream: str, version: int | None, payload: bytes = b"{}", **more: object) -> NewRecord:
    wall_ns = more.pop("wall_ns", 1)
    return NewRecord(stream, str(more.pop("name", NAME)), payload, version, wall_ns, **more)  # type: ignore[arg-type]


def joined(payloads: Sequence[bytes]) -> bytes:
    return b"+".join(payloads)


def note(log: SqliteEngine, *records: NewRecord, join: object = None) -> bool:
    log._commits.took = 0.0  # however slow the disk is
    return log.note(records, join)  # type: ignore[arg-type]


def told(log: SqliteEngine) -> list[tuple[str, int, bytes | None]]:
    return [(each.stream, each.version, each.payload) for each in log.read_all()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def log(path: Path) -> Iterator[SqliteEngine]:
    """Give a log with a record in each of the streams a and b."""
    with closing(SqliteEngine(path, durability="process")) as log:
        log.append([new("a", 1, b"first"), new("b", 1, b"first")]).wait()
        yield log


def test_a_note_is_read_as_the_record_it_is_going_to_be(log: SqliteEngine) -> None:
    assert note(log, new("a", 4, b"second", wall_ns=77))

    assert log.head("a") == 4
    (record,) = log.read("a", after=1)
    assert (record.position, record.version, record.payload) == (3, 4, b"second")
    assert (record.name, record.wall_ns) == (NAME, 77)
    assert log.verify().ok


@pytest.mark.parametrize("end", ["read", "append", "flush", "close"])
def test_notes_that_follow_one_another_become_one_record_where_they_can(
    path: Path, log: SqliteEngine, end: str
) -> None:
    for version in (2, 3, 4):
        assert note(log, new("a", version, b"%d" % version), join=joined)
    if end == "read":
        assert log.head("a") == 4
    elif end == "append":
        log.append([new("b", 2, b"later")]).wait()
    elif end == "flush":
        log.flush()
    elif end == "close":
        log.close()
    with closing(SqliteEngine(path)) as other:
        assert told(other)[2:3] == [("a", 4, b"2+3+4")]
        assert other.verify().ok


def test_notes_of_other_names_and_large_ones_stay_records_of_their_own(log: SqliteEngine) -> None:
    log.append([new("a", 2, name="other@1")]).wait()
    large = b"x" * 40_000
    for version, name, payload in (
        (3, NAME, b"3"),
        (4, "other@1", b"4"),
        (5, "other@1", b"5"),
        (6, NAME, large),
        (7, NAME, large),
        (8, NAME, b"8"),
    ):
        assert note(log, new("a", version, payload, name=name), join=joined)

    assert [(each.name, each.version) for each in log.read("a", after=2)] == [
        (NAME, 3),
        ("other@1", 5),
        (NAME, 6),
        (NAME, 8),
    ]


def test_what_is_appended_later_comes_after_what_was_noted_in_any_stream(
    log: SqliteEngine,
) -> None:
    assert note(log, new("b", 2, wall_ns=5), new("a", 2, wall_ns=6))
    assert note(log, new("b", 3, wall_ns=7))
    log.append([new("c", 1)]).wait()

    assert [(stream, version) for stream, version, _ in told(log)[2:]] == [
        ("b", 2),
        ("b", 3),
        ("a", 2),
        ("c", 1),
    ]


@pytest.mark.parametrize(
    "record",
    [
        new("never", 1),
        new("a", 2, name="never@1"),
        new("a", 1),
        new("a", None),
        new("a", 2**41),
        NewRecord("a", NAME, b"{}", 2, None),
        NewRecord("a", NAME, b"{}", 2, 2**63),
        NewRecord("a", NAME, "{}", 2, 1),  # type: ignore[arg-type]
        NewRecord("a", NAME, b"{}", "2", 1),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_noted_is_left_to_an_append(log: SqliteEngine, record: NewRecord) -> None:
    assert not note(log, new("b", 2), record)

    assert [stream for stream, *_ in told(log)] == ["a", "b"]


def test_the_first_transaction_is_never_a_note(path: Path) -> None:
    with closing(SqliteEngine(path)) as log:
        assert not log.note([new("a", 1)])
        assert log.head("a") is None


def test_after_a_slow_commit_nothing_is_noted_until_one_was_quick(log: SqliteEngine) -> None:
    log._commits.took = 1.0
    assert not log.note([new("a", 2)])
    log.append([new("a", 2)]).wait()
    log._commits.took = 0.0
    assert log.note([new("a", 3)])


def test_notes_wait_for_no_other_process_and_are_made_again_after_it(
    path: Path, log: SqliteEngine
) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not note(log, new("a", 2))
        assert not note(log, new("a", 2), new("b", 2))
        other.rollback()

    assert note(log, new("a", 2))
    assert log.head("a") == 2


def test_the_journal_is_brought_into_the_file_now_and_then(path: Path, log: SqliteEngine) -> None:
    refused = 0
    for version in range(2, 2_002):
        if not note(log, new("a", version, b"x" * 400)):
            refused += 1
            log.append([new("a", version, b"x" * 400)]).wait()

    assert 0 < refused < 100
    assert path.with_name("runs.db-wal").stat().st_size < 3_000 * 4_096
    assert (log.head("a"), log.verify().ok) == (2_001, True)


# -- after a crash --

_DIES: str = """
    import os, sys
    from atlas.core.log.records import NewRecord
    from atlas.core.log.sqlite import SqliteEngine

    log = SqliteEngine(sys.argv[1], durability="process")
    log.append([NewRecord("a", "n@1", b"1")]).wait()
    for version in range(2, 7):
        log._commits.took = 0.0
        assert log.note([NewRecord("a", "n@1", b"%d" % version, version, version)])
    os._exit(0)
"""


@pytest.fixture
def crashed(path: Path) -> Path:
    """Return the log of a process that noted versions 2 to 6 and was gone at once."""
    program = textwrap.dedent(_DIES)
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    return path


@pytest.mark.parametrize("read_only", [False, True])
def test_the_notes_of_a_process_that_died_are_there(crashed: Path, *, read_only: bool) -> None:
    with closing(SqliteEngine(crashed, read_only=read_only)) as log:
        assert [(each.version, each.payload) for each in log.read("a")] == [
            (version, b"%d" % version) for version in range(1, 7)
        ]
        assert log.verify() == log.verify()
        found = log.verify()
        assert (found.ok, found.records, found.notes) == (True, *((1, 5) if read_only else (6, 0)))


def test_they_are_entered_before_anything_is_appended(crashed: Path) -> None:
    with closing(SqliteEngine(crashed)) as log:
        (record,) = log.append([NewRecord("a", "n@1", b"7")]).wait()

    assert (record.version, record.position) == (7, 7)


def test_they_are_found_by_one_who_had_the_log_open_all_the_time(path: Path) -> None:
    with closing(SqliteEngine(path)) as log:
        assert log.head("a") is None
        program = textwrap.dedent(_DIES)
        subprocess.run([sys.executable, "-c", program, str(path)], check=True)

        assert log.head("a") == 6


@pytest.mark.parametrize("read_only", [False, True])
def test_a_reader_who_cannot_enter_them_sees_them_all_the_same(
    crashed: Path, *, read_only: bool
) -> None:
    with (
        closing(sqlite3.connect(crashed)) as other,
        closing(SqliteEngine(crashed, read_only=read_only, busy_timeout=0.01)) as log,
    ):
        other.execute("BEGIN IMMEDIATE")
        found = log.read("a")
        assert [(each.version, each.payload) for each in found] == [
            (at, b"%d" % at) for at in range(1, 7)
        ]
        assert log.read("a") == found
        assert log.read("a", after=2, until=5, limit=2, newest_first=True) == found[4:2:-1]
        assert (log.head("a"), log.head("b"), log.streams()) == (6, None, ["a"])
        # who only reads cannot tell which position they are going to have
        by_position = found[:1] if read_only else found
        assert (log.last_position(), log.read_all()) == (len(by_position), by_position)
        assert log.position_at(found[-1].time_ns) == len(by_position)
        assert other.execute("SELECT count(*) FROM notes").fetchone() == (5,)
        other.rollback()
        assert len(log.read_all()) == (1 if read_only else 6)
    with closing(SqliteEngine(crashed)) as log:
        assert log.head("a") == 6
        assert log.verify().ok


# -- several processes --


def test_what_another_engine_reads_or_writes_includes_the_notes_of_this_one(
    path: Path, log: SqliteEngine
) -> None:
    with closing(SqliteEngine(path, durability="process")) as other:
        assert note(log, new("a", 2), join=joined)
        assert other.head("a") == 2
        assert note(log, new("b", 2), new("b", 3), join=joined)
        (record,) = other.append([new("b", None)]).wait()

        assert record.version == 4
        # refused once, as it does not know yet what was entered meanwhile
        assert not note(log, new("a", 3))
        log.append([new("a", 3)], expect={"a": 2}).wait()
        assert note(log, new("a", 4))
        assert [(each.version) for each in other.read("a")] == [1, 2, 3, 4]


def test_who_only_looks_at_a_stream_does_not_disturb_who_writes_it(
    path: Path, log: SqliteEngine
) -> None:
    with closing(SqliteEngine(path, durability="process")) as other:
        for version in (2, 3, 4):
            assert note(log, new("a", version, b"%d" % version), join=joined)
            assert [each.version for each in other.read("a")] == [*range(1, version + 1)]
            assert other.head("a") == version
        assert [each.version for each in log.read("a")] == [1, 4]


def test_of_two_who_go_on_with_a_stream_only_one_can(path: Path, log: SqliteEngine) -> None:
    with closing(SqliteEngine(path, durability="process")) as other:
        other.append([new("c", 1)]).wait()
        assert other.head("a") == 1
        assert not note(other, new("a", 2))  # it has appended nothing there yet
        other.append([new("a", 2)], expect={"a": 1}).wait()
        assert not note(log, new("a", 5))
        with pytest.raises(VersionConflictError):
            log.append([new("a", 5)], expect={"a": 1}).wait()
        assert note(other, new("a", 3))
        with pytest.raises(VersionConflictError):
            log.append([new("a", 5)], expect={"a": 2}).wait()

        assert [each.version for each in log.read("a")] == [1, 2, 3]


def test_two_who_know_the_same_of_a_stream_cannot_both_note(path: Path, log: SqliteEngine) -> None:
    with closing(SqliteEngine(path, durability="process")) as other:
        other.append([new("a", 2)]).wait()
        log.append([new("a", 3)]).wait()
        other.append([new("a", 4)]).wait()
        log.append([new("b", 2)], expect={"a": 4}).wait()
        assert note(log, new("a", 9))
        assert not note(other, new("a", 5))

        assert [each.version for each in log.read("a")] == [1, 2, 3, 4, 9]


# -- damage --


def _edit(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE notes SET payload = x'30' WHERE version = 4",
        "UPDATE notes SET checksum = 30 WHERE version = 4",
        "UPDATE notes SET version = 3 WHERE version = 4",
        "UPDATE notes SET wall_ns = 3 WHERE version = 4",
        "UPDATE notes SET name_id = 3 WHERE version = 4",
        "UPDATE notes SET id = id + 7 WHERE version = 4",
        "UPDATE notes SET payload = 5 WHERE version = 4",
        "DELETE FROM notes WHERE version = 4",
    ],
)
def test_a_damaged_note_is_told_and_repaired(crashed: Path, damage: str) -> None:
    _edit(crashed, damage)
    with closing(SqliteEngine(crashed)) as log:
        found = log.verify()
        assert (found.ok, found.bad_position) == (False, 2)
        assert "note" in found.problem
        with pytest.raises(LogCorruptedError, match="repair"):
            log.read("a")
        with pytest.raises(LogCorruptedError):
            log.append([NewRecord("b", "n@1", b"")]).wait()

        log.repair()

        assert log.verify().ok
        kept = [each.version for each in log.read("a")]
        assert kept == ([1] if "payload = 5" in damage else [1, 2, 3])


def test_the_notes_of_a_stream_whose_record_is_damaged_are_set_aside(crashed: Path) -> None:
    _edit(crashed, "UPDATE events SET payload = x'32' WHERE position = 1")
    with closing(SqliteEngine(crashed)) as log:
        repaired = log.repair()

        assert (repaired.kept, repaired.set_aside) == (0, 6)
        assert log.read("a") == []
        assert log.verify().ok


def test_erasing_destroys_what_was_noted(path: Path, log: SqliteEngine) -> None:
    for version in range(2, 40):
        assert note(log, new("a", version, b"the secret %d" % version * 20), join=joined)
    log.erase("a")
    assert note(log, new("b", 2, b"the secret of b"))
    log.erase("b")

    assert b"the secret" not in path.read_bytes()
    assert b"the secret" not in path.with_name("runs.db-wal").read_bytes()
    assert log.verify().ok


# -- files of before --


def test_a_log_that_was_written_without_notes_is_read_and_gets_them(path: Path) -> None:
    with closing(SqliteEngine(path)) as log:
        log.append([new("a", 1)]).wait()
    _edit(path, "DROP TABLE notes")
    with closing(SqliteEngine(path, read_only=True)) as log:
        assert log.head("a") == 1
        assert log.verify().ok
    with closing(SqliteEngine(path, durability="process")) as log:
        log.append([new("a", 2)]).wait()
        assert note(log, new("a", 3))
        assert log.head("a") == 3


# -- the end --


def test_a_closed_log_takes_no_notes(log: SqliteEngine) -> None:
    log.close()
    with pytest.raises(LogClosedError):
        log.note([new("a", 2)])


def test_a_log_that_is_closed_while_it_cannot_be_written_keeps_its_notes(
    path: Path,
) -> None:
    with closing(sqlite3.connect(path)) as other:
        log = SqliteEngine(path, durability="process", busy_timeout=0.01)
        log.append([new("a", 1)]).wait()
        assert note(log, new("a", 2))
        other.execute("BEGIN IMMEDIATE")
        log.close()
        other.rollback()
    with closing(SqliteEngine(path)) as log:
        assert log.head("a") == 2


# -- whatever happens --

_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["note", "note", "note", "append", "read", "flush", "reopen", "two"]),
        st.sampled_from("ab"),
        st.integers(0, 1),
        st.integers(1, 3),
    ),
    max_size=40,
)


@given(_STEPS)
@settings(max_examples=60, deadline=None)
def test_whatever_two_engines_do_every_stream_holds_what_was_accepted_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("notes") / "runs.db"
    engines = [SqliteEngine(path, durability="process") for _ in range(2)]
    wanted: dict[str, list[bytes]] = {"a": [], "b": []}
    heads = {"a": 0, "b": 0}
    try:
        for number, (what, stream, which, span) in enumerate(steps):
            log, payload = engines[which], b"%d" % number
            version = heads[stream] + span
            if what == "read":
                assert (log.head(stream) or 0) == heads[stream]
            elif what == "flush":
                log.flush()
            elif what == "reopen":
                log.close()
                engines[which] = SqliteEngine(path, durability="process")
            elif what == "two":
                other = "b" if stream == "a" else "a"
                pair = (new(stream, version, payload), new(other, heads[other] + 1, payload))
                if note(log, *pair, join=joined):
                    heads[stream], heads[other] = version, heads[other] + 1
                    wanted[stream].append(payload)
                    wanted[other].append(payload)
            elif what == "append" or not note(log, new(stream, version, payload), join=joined):
                log.append([new(stream, version, payload)], expect={stream: heads[stream]}).wait()
                heads[stream] = version
                wanted[stream].append(payload)
            else:
                heads[stream] = version
                wanted[stream].append(payload)
        for log in engines:
            for stream, payloads in wanted.items():
                found = [each.payload or b"" for each in log.read(stream)]
                assert b"+".join(found).split(b"+") == (payloads or [b""])
                assert (log.head(stream) or 0) == heads[stream]
            assert log.verify().ok
    finally:
        for log in engines:
            log.close()
