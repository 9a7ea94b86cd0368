import errno
import random
import sqlite3
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from atlas.core.log.records import NewRecord, Snapshot
from atlas.core.log.sqlite import SqliteEngine
from atlas.errors import (
    ConfigurationError,
    LogCorruptedError,
    LogError,
    LogFormatError,
    LogUnavailableError,
    VersionConflictError,
)
from atlas.testing import ManualClock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs.db"


def new(stream, payload=b"{}", **more):
    return NewRecord(stream, more.pop("name", "thing.done@1"), payload, **more)


def filled(path, count=20, size=1):
    """Write a log with several streams and names; return what is in it."""
    with closing(SqliteEngine(path, durability="process")) as log:
        for i in range(count):
            log.append([new("ab"[i % 2], b"payload %d" % i * size, name=f"n@{i % 3}")]).wait()
        return log.read_all()


def edit(path, statement, *values):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


# -- the file --


def test_a_file_of_something_else_is_left_alone(path):
    path.write_text("These are my notes. " * 100)
    before = path.read_bytes()
    with pytest.raises(LogFormatError, match="no Atlas log"):
        SqliteEngine(path)

    assert path.read_bytes() == before


def test_a_database_of_another_program_is_left_alone(path):
    edit(path, "CREATE TABLE contacts (name)")
    before = path.read_bytes()
    with pytest.raises(LogFormatError, match="another program"):
        SqliteEngine(path)

    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["runs.db"]


def test_a_log_of_a_newer_atlas_says_so(path):
    filled(path, 1)
    edit(path, "PRAGMA user_version = 2")

    with pytest.raises(LogFormatError, match="newer Atlas"):
        SqliteEngine(path)


def test_a_directory_is_no_log(tmp_path):
    with pytest.raises(LogFormatError, match="is a directory"):
        SqliteEngine(tmp_path)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(LogUnavailableError, match="no directory"):
        SqliteEngine(tmp_path / "no" / "runs.db")


def test_reading_only_creates_nothing(path):
    with pytest.raises(LogUnavailableError, match="no log at"):
        SqliteEngine(path, read_only=True)

    assert not path.exists()


def test_reading_only_reads_and_refuses_to_write(path):
    records = filled(path)
    with closing(SqliteEngine(path, read_only=True)) as log:
        assert log.read_all() == records
        assert log.verify().ok
        with pytest.raises(LogUnavailableError, match="reading only"):
            log.append([new("a")])
        with pytest.raises(LogUnavailableError):
            log.save_snapshot(Snapshot("a", 1, "l", b""))


def test_a_file_that_was_replaced_takes_no_appends(path):
    with closing(SqliteEngine(path)) as log:
        log.append([new("a")]).wait()
        log._file._looked_at = 0.0
        path.rename(path.with_suffix(".old"))
        with pytest.raises(LogUnavailableError, match="moved, replaced or deleted"):
            log.append([new("a")]).wait()


def test_a_relative_path_stays_the_same_file_wherever_the_process_goes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with closing(SqliteEngine("runs.db")) as log:
        monkeypatch.chdir(tmp_path / "elsewhere")
        log.append([new("a")]).wait()

        assert log.head("a") == 1
        assert log.verify().ok
        assert log.address == "runs.db"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_file_that_is_gone_is_not_made_again(path):
    with closing(SqliteEngine(path)) as log:
        log.append([new("a")]).wait()
        path.unlink()
        log._file._looked_at = 0.0
        for use in (lambda: log.read("a"), lambda: log.append([new("a")]).wait()):
            with pytest.raises(LogUnavailableError, match="moved, replaced or deleted"):
                use()

    assert not path.exists()


def test_a_lock_held_too_long_is_named(path):
    with closing(SqliteEngine(path, busy_timeout=0.01)) as log:
        log.append([new("a")]).wait()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LogUnavailableError, match="Another process holds its lock"):
                log.append([new("a")]).wait()
            assert log.read("a")[0].version == 1
            other.execute("ROLLBACK")

        assert log.append([new("a")]).wait()[0].version == 2


def test_many_engines_create_one_file_at_once(path):
    def write(number):
        with closing(SqliteEngine(path)) as log:
            return log.append([new(f"s{number}")]).wait()[0].position

    with ThreadPoolExecutor(8) as pool:
        positions = list(pool.map(write, range(8)))

    assert sorted(positions) == list(range(1, 9))


def test_processes_write_to_one_file(path, tmp_path):
    script = tmp_path / "writer.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from atlas.core.log.records import NewRecord
            from atlas.core.log.sqlite import SqliteEngine
            from atlas.errors import VersionConflictError
            log = SqliteEngine(sys.argv[1], durability="process", busy_timeout=60)
            conflicts = 0
            for i in range(60):
                head = log.head("shared") or 0
                try:
                    log.append([NewRecord("shared", "n", b"")], expect={"shared": head}).wait()
                except VersionConflictError:
                    conflicts += 1
                log.append([NewRecord(f"own{sys.argv[2]}", "n", b""), NewRecord(f"new{sys.argv[2]}.{i}", "n", b"")])
            log.close()
            print(conflicts)
            """
        )
    )
    with closing(SqliteEngine(path)) as log, ThreadPoolExecutor() as pool:
        followed = pool.submit(log.wait_beyond, 10, 60)
        writers = [
            subprocess.Popen(
                [sys.executable, str(script), str(path), str(n)], stdout=subprocess.PIPE
            )
            for n in range(3)
        ]
        conflicts = sum(int(writer.communicate()[0]) for writer in writers)

        assert followed.result() is True
        assert log.last_position() == 3 * 60 * 3 - conflicts
        assert log.head("shared") == 180 - conflicts
        assert [log.head(f"own{n}") for n in range(3)] == [60] * 3
        assert log.verify().ok


def test_a_full_disk_fails_whole_appends_and_passes(path, tmp_path):
    script = tmp_path / "full.py"
    script.write_text(
        textwrap.dedent(
            """
            import resource, sys
            from atlas.core.log.records import NewRecord
            from atlas.core.log.sqlite import SqliteEngine
            from atlas.errors import LogUnavailableError
            log = SqliteEngine(sys.argv[1])
            log.append([NewRecord("a", "n", b"before")]).wait()
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
            big = NewRecord("a", "n", b"x" * 400_000)
            small = log.append([NewRecord("b", "n", b"small")])
            failing = log.append([NewRecord("c", "n", b"with it"), big])
            for _ in range(3):
                try:
                    failing.wait()
                except LogUnavailableError as error:
                    text = str(error)
                failing = log.append([big])
            assert "Nothing of what failed is stored" in text, text
            assert small.wait()[0].position == 2
            assert [r.payload for r in log.read_all()] == [b"before", b"small"]
            try:
                failing.wait()
            except LogUnavailableError:
                pass
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert log.append([big]).wait()[0].position == 3
            assert log.streams() == ["a", "b"]
            assert log.verify().ok
            log.close()
            """
        )
    )

    subprocess.run([sys.executable, str(script), str(path)], check=True)


# -- damage --


COLUMNS = [
    "position", "stream_id", "version", "name_id", "time_ns", "wall_ns", "digest", "chain", "payload",
]  # fmt: skip


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("position", [1, 10, 20])
def test_a_changed_column_is_found(path, column, position):
    filled(path)
    with closing(sqlite3.connect(path)) as connection:
        ((value,),) = connection.execute(
            f"SELECT {column} FROM events WHERE position = ?", (position,)
        )
        blob = isinstance(value, bytes)
        changed = bytes([value[0] ^ 1]) + value[1:] if blob else value ^ 64
        connection.execute(
            f"UPDATE events SET {column} = ? WHERE position = ?", (changed, position)
        )
        connection.commit()
    with closing(SqliteEngine(path)) as log:
        found = log.verify()

        assert found.bad_position == position
        assert found.problem


@pytest.mark.parametrize(
    ("statement", "bad"),
    [
        ("DELETE FROM events WHERE position = 7", 7),
        ("DELETE FROM events WHERE position >= 19", 19),
        ("DELETE FROM events", 1),
        ("UPDATE events SET payload = NULL WHERE position = 7", 7),
        ("UPDATE events SET payload = 'text' WHERE position = 7", 7),
        ("UPDATE events SET version = 'x' WHERE position = 7", 7),
        ("UPDATE events SET position = 500 WHERE position = 7", 7),
        ("UPDATE streams SET stream = 'c' WHERE stream = 'b'", 2),
        ("UPDATE streams SET stream = x'ff' WHERE stream = 'b'", 2),
        ("DELETE FROM streams WHERE stream = 'b'", 2),
        ("UPDATE names SET name = 'n@7' WHERE name = 'n@2'", 3),
        ("UPDATE tip SET position = 21", 21),
        ("UPDATE tip SET chain = x'00'", 21),
        ("DELETE FROM tip", 21),
    ],
)
def test_what_somebody_did_to_the_tables_is_found_and_mended(path, statement, bad):
    records = filled(path)
    edit(path, statement)
    with closing(SqliteEngine(path)) as log:
        assert log.verify().bad_position == bad
        done = log.repair()

        assert done.kept == bad - 1
        assert log.read_all(until=bad - 1) == records[: bad - 1]
        (note,) = log.read_all(after=bad - 1)
        assert note.name == "$repaired"
        assert note.position > 20
        assert log.verify().ok
        (record,) = log.append([new("a")]).wait()
        assert record.position == note.position + 1
        assert log.verify().ok
        assert log.repair().saved_to == ""
    assert path.with_name("runs.db.set-aside-1").exists()
    assert done.saved_to == str(path.with_name("runs.db.set-aside-1"))


def test_a_second_repair_keeps_what_the_first_set_aside(path):
    for number in (1, 2):
        if number == 1:
            filled(path)
        edit(path, "UPDATE events SET payload = x'00' WHERE position = ?", 12 - number)
        with closing(SqliteEngine(path)) as log:
            done = log.repair()
            assert done.saved_to.endswith(f"set-aside-{number}")
            assert done.kept == 11 - number
            log.append([new("a")]).wait()
            assert log.verify().ok

    assert path.with_name("runs.db.set-aside-1").exists()


def test_reading_a_changed_payload_names_the_position(path):
    filled(path)
    edit(path, "UPDATE events SET payload = x'00' WHERE position = 5")
    with closing(SqliteEngine(path)) as log:
        for read in (lambda: log.read("a"), log.read_all):
            with pytest.raises(LogCorruptedError) as caught:
                read()
            assert caught.value.position == 5

        assert log.read("b")
        assert len(log.read("a", until=2)) == 2


def test_appending_after_a_lost_end_is_refused(path):
    filled(path)
    edit(path, "DELETE FROM events WHERE position = 20")
    with closing(SqliteEngine(path)) as log:
        with pytest.raises(LogCorruptedError) as caught:
            log.append([new("a")]).wait()
        assert caught.value.position == 20

        log.repair()
        assert log.append([new("a")]).wait()[0].position == 22


def test_a_damaged_snapshot_is_as_if_it_were_not_there(path):
    with closing(SqliteEngine(path)) as log:
        log.save_snapshot(Snapshot("a", 1, "l", b"state"))
    for change in ("payload = x'00'", "version = 2", "label = 'm'", "stream = 'b'", "digest = 'x'"):
        edit(path, f"UPDATE snapshots SET {change}")
        with closing(SqliteEngine(path)) as log:
            found = [log.snapshot(s, label) for s in "ab" for label in "lm"]
            assert found == [None] * 4


def test_no_flipped_bit_changes_anything_unnoticed(path, tmp_path):
    records = filled(path, 150, size=30)
    whole = path.read_bytes()
    rng = random.Random(4)
    noticed = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        flipped = tmp_path / "flipped.db"
        flipped.write_bytes(damaged)
        noticed += _is_noticed(flipped, records)
        for leftover in tmp_path.glob("flipped.db*"):
            leftover.unlink()

    # The rest hit bytes that mean nothing.
    assert noticed > 20


def _is_noticed(path, records):
    try:
        log = SqliteEngine(path)
    except LogError:
        return True
    with closing(log):
        found = log.verify()
        if found.ok:
            assert log.read_all() == records
            assert log.read("a") == [r for r in records if r.stream == "a"]
            assert log.streams() == ["a", "b"]
            return False
        kept = log.repair().kept
        assert log.read_all(until=kept) == records[:kept]
        assert log.verify().ok
        return True


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_a_truncated_file_keeps_what_can_be_read(path, keep):
    records = filled(path, 400)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with closing(SqliteEngine(path)) as log:
        assert not log.verify().ok
        done = log.repair()

        assert log.read_all(until=done.kept) == records[: done.kept]
        assert log.append([new("a")]).wait()
        assert log.verify().ok
    assert Path(done.saved_to).read_bytes() == whole[: int(len(whole) * keep)]


# Of the header, what says which format a log has cannot be told from a newer Atlas.
HEADER = [at for at in range(100) if not 60 <= at < 64]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_to_the_header_every_record_is_kept(path, seed):
    records = filled(path, 400)
    whole = path.read_bytes()
    rng = random.Random(seed)
    for spoiled in (
        bytes(100),
        rng.randbytes(100),
        *(_flipped(whole[:100], rng.choice(HEADER), 1 << rng.randrange(8)) for _ in range(20)),
    ):
        for leftover in path.parent.glob(f"{path.name}*"):
            leftover.unlink()
        path.write_bytes(spoiled + whole[100:])
        with closing(SqliteEngine(path)) as log:
            is_harmless = log.verify().ok
            done = log.repair()

            assert done.kept == 400
            assert log.read_all(until=400) == records
            assert log.append([new("a")]).wait()
            assert log.verify().ok
        assert is_harmless or Path(done.saved_to).read_bytes() == spoiled + whole[100:]


def test_a_header_that_is_damaged_is_named(path):
    filled(path, 3)
    whole = path.read_bytes()
    path.write_bytes(bytes(16) + whole[16:])
    with closing(SqliteEngine(path)) as log:
        found = log.verify()
        with pytest.raises(LogCorruptedError, match="repair"):
            log.read_all()

    assert not found.ok
    assert (found.records, found.bad_position) == (3, 0)
    assert "cannot read" in found.problem


def test_a_header_that_is_damaged_does_not_hide_what_is_in_the_journal(path):
    with closing(SqliteEngine(path)) as log:
        log.append([new("a")]).wait()
    keeper = sqlite3.connect(path)
    keeper.execute("SELECT count(*) FROM events").fetchone()
    with closing(SqliteEngine(path)) as log:
        log.append([new("a")]).wait()
    journal = Path(f"{path}-wal").read_bytes()
    keeper.close()
    path.write_bytes(bytes(100) + path.read_bytes()[100:])
    Path(f"{path}-wal").write_bytes(journal)
    with closing(SqliteEngine(path)) as log:
        log.repair()

        assert [record.position for record in log.read("a")] == [1, 2]


def _flipped(header, at, bits):
    return header[:at] + bytes([header[at] ^ bits]) + header[at + 1 :]


def test_what_no_log_can_hold_is_not_looked_for(path):
    filled(path, 3)
    with closing(SqliteEngine(path)) as log:
        for ask in (
            lambda: log.read("\ud800"),
            lambda: log.streams("\ud800"),
            lambda: log.read_all(after=2**63),
        ):
            with pytest.raises(ConfigurationError, match="can be found by that"):
                ask()


def test_a_log_beside_which_nothing_can_be_written_says_so(path, monkeypatch):
    filled(path, 3)
    path.write_bytes(bytes(100) + path.read_bytes()[100:])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(SqliteEngine(path)) as log:
        monkeypatch.setattr("shutil.copy", full)
        for look in (log.verify, log.repair):
            with pytest.raises(LogUnavailableError, match="No space left"):
                look()
        monkeypatch.undo()

        assert log.repair().kept == 3


# -- erasing --


def test_erased_bytes_are_nowhere_in_the_files(path):
    rng = random.Random(1)
    with closing(SqliteEngine(path)) as log:
        for i in range(600):
            secret = b"SECRET-%s-%04d" % (b"ab"[i % 2 : i % 2 + 1], i)
            log.append([new("ab"[i % 2], secret * rng.choice([1, 5, 50, 900]))])
            if i % 20 == 0:
                for stream in "ab":
                    log.save_snapshot(
                        Snapshot(
                            stream,
                            i + 1,
                            "l",
                            b"SECRET-%s!" % stream.encode() * rng.choice([3, 30, 600]),
                        )
                    )
        log.flush()
        log.erase("a")

        assert _bytes_of(path).count(b"SECRET-a") == 0
        assert _bytes_of(path).count(b"SECRET-b") > 300
        assert log.verify().erased == 300
        log.erase("b")
        assert _bytes_of(path).count(b"SECRET") == 0
    assert _bytes_of(path).count(b"SECRET") == 0


def test_what_nobody_waited_for_is_erased_too(path):
    with closing(SqliteEngine(path)) as log:
        log.append([new("a", b"SECRET")])

        assert log.erase("a") == 1
        assert _bytes_of(path).count(b"SECRET") == 0


def test_replaced_snapshots_are_nowhere_in_the_files_after_erasing(path):
    with closing(SqliteEngine(path)) as log:
        for i in range(200):
            log.append([new("a")]).wait()
            log.save_snapshot(Snapshot("a", i % 7, "l", b"SECRET %d " % i * 40))
        log.erase("a")

        assert _bytes_of(path).count(b"SECRET") == 0


def _bytes_of(path):
    return b"".join(p.read_bytes() for p in path.parent.iterdir())


def test_erasing_tells_when_a_reader_keeps_the_journal(path):
    with closing(SqliteEngine(path, busy_timeout=0.01)) as log:
        log.append([new("a", b"SECRET")]).wait()
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM events").fetchall()
            with pytest.raises(LogUnavailableError, match="erase again"):
                log.erase("a")
            assert log.read("a")[0].payload is None
            reader.execute("ROLLBACK")

        assert log.erase("a") == 0
        assert _bytes_of(path).count(b"SECRET") == 0


# -- ends --


def test_what_was_appended_is_stored_when_a_program_just_ends(path, tmp_path):
    script = tmp_path / "ends.py"
    script.write_text(
        "import sys\n"
        "from atlas.core.log.records import NewRecord\n"
        "from atlas.core.log.sqlite import SqliteEngine\n"
        "log = SqliteEngine(sys.argv[1], durability='lazy')\n"
        "log.append([NewRecord('a', 'n', b'')])\n"
    )
    subprocess.run([sys.executable, str(script), str(path)], check=True)
    with closing(SqliteEngine(path)) as log:
        assert log.head("a") == 1


def test_a_refused_append_does_not_make_a_stream(path):
    with closing(SqliteEngine(path)) as log:
        log.append([new("a", version=1)]).wait()
        with pytest.raises(VersionConflictError):
            log.append([new("b"), new("a", version=1)]).wait()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT stream FROM streams").fetchall() == [("a",)]


class InterruptingClock(ManualClock):
    """Interrupts whoever asks for the time, at chosen calls."""

    def __init__(self, at):
        super().__init__()
        self.at = at
        self.calls = 0

    def time_ns(self):
        self.calls += 1
        if self.calls in self.at:
            raise KeyboardInterrupt
        return super().time_ns()


def test_an_interrupted_append_is_stored_once(path):
    # The first call is made by `append`, the second within the transaction.
    with closing(SqliteEngine(path, clock=InterruptingClock(at={2, 3}))) as log:
        append = log.append([new("a")])
        with pytest.raises(KeyboardInterrupt):
            append.wait()
        with pytest.raises(KeyboardInterrupt):
            append.wait()

        assert append.wait()[0].position == 1
        assert log.last_position() == 1
        assert log.verify().ok


def test_waiting_on_a_closed_log_ends_at_once(path):
    log = SqliteEngine(path)
    log.close()

    assert log.wait_beyond(0) is False


def test_an_empty_file_is_no_log_yet_for_readers_and_becomes_one_for_writers(tmp_path):
    path = tmp_path / "empty.db"
    path.touch()

    with pytest.raises(LogUnavailableError, match="no log at .* yet: the file is empty"):
        SqliteEngine(path, read_only=True)

    log = SqliteEngine(path)
    assert log.last_position() is None
    log.close()
