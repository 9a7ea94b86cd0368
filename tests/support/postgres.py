"""A private PostgreSQL server for tests: own data directory, own socket, gone with the test run."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

_TIMEOUT = 30.0
_SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{directory}'
fsync = off
max_connections = 60
shared_buffers = 16MB
lc_messages = 'C'
logging_collector = off
log_destination = 'stderr'
log_line_prefix = ''
"""


def _binaries() -> Path | None:
    """Return the directory of PostgreSQL's server programs; None when it is not installed."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).resolve().parent

    def number(path: Path) -> float:
        return float(path.parent.name) if path.parent.name.replace(".", "").isdigit() else 0.0

    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=number)
    usable = [path for path in candidates if (path / "initdb").exists()]
    return usable[-1] if usable else None


def _account() -> str | None:
    """Return whom to run the server as: PostgreSQL refuses to be root. None: as we are."""
    if os.geteuid() != 0:
        return None

    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class PostgresServer:
    """A server that can be killed and started again; `address` names one of its databases.

    ``fsync`` is off: killed processes lose nothing by that, only power cuts do.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._account = _account()
        # Not below pytest's own directory: another account may not enter that one, and the path of
        # a socket may have no more than 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="atlas-pg-"))
        self._data = self._directory / "data"
        self._process: subprocess.Popen[str] | None = None
        self._log: list[str] = []
        self._logs = 0
        if self._account:
            shutil.chown(self._directory, self._account)

    @property
    def address(self) -> str:
        """Where the server's own database is."""
        return f"postgresql://atlas@/postgres?host={self._directory}"

    def new_log(self) -> str:
        """Return the address of a log that nobody uses yet."""
        self._logs += 1
        return f"{self.address}&schema=log_{self._logs}"

    def create(self) -> None:
        """Make the data directory."""
        command = [self._binaries / "initdb", "-D", self._data, "-U", "atlas", "-A", "trust"]
        options = ["--no-sync", "--no-instructions", "-E", "UTF8", "--locale=C"]
        done = subprocess.run(
            [*command, *options],
            user=self._account,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        settings = self._data / "postgresql.auto.conf"
        settings.write_text(_SETTINGS.format(directory=self._directory))

    def start(self) -> None:
        """Start the server; return when it takes connections."""
        ready = threading.Event()
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._data],
            user=self._account,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._follow, args=(self._process, ready), daemon=True).start()
        assert ready.wait(_TIMEOUT), "".join(self._log)
        assert self._process.poll() is None, "".join(self._log)

    def _follow(self, process: "subprocess.Popen[str]", ready: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._log.append(line)
                if "ready to accept connections" in line:
                    ready.set()
        ready.set()  # it died: whoever waits sees why in the log

    def kill(self) -> None:
        """Kill the server with SIGKILL, the postmaster first; return when no process is left."""
        self._end(signal.SIGKILL)

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is None:
            return

        family = []
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(with_signal)
        self._process.wait(_TIMEOUT)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(with_signal)
        _, alive = psutil.wait_procs(family, timeout=_TIMEOUT)
        assert not alive, alive
        self._process = None

    def remove(self) -> None:
        """Leave nothing behind."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self._directory)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server for the whole run; skips where PostgreSQL is not installed."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("needs PostgreSQL's server programs (Debian: apt-get install postgresql)")
    server = PostgresServer(binaries)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.remove()
