"""Writers that are killed at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict

from faults.shim import HERE
from faults.writer import Job


class Writers:
    """Starts writers, and kills them."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.writer", "serve", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        theirs.close()

    def close(self) -> None:
        self._connection.close()
        self._server.wait()

    def start(self, job: Job) -> tuple[int, int]:
        """Start a writer; return its id, and where to read what it was told is stored."""
        told, say = os.pipe()
        socket.send_fds(self._connection, [json.dumps(asdict(job)).encode()], [say])
        os.close(say)
        return int(self._connection.recv(100)), told

    def start_and_kill(self, job: Job, chance: random.Random) -> bytes:
        """Start a writer, kill it after a random number of acknowledgements; return them."""
        writer, told = self.start(job)
        said, enough = b"", chance.choice((0, 1, chance.randrange(20), chance.randrange(200)))
        while said.count(b"\n") < enough and (more := os.read(told, 65536)):
            said += more
        if enough == 0:
            time.sleep(chance.uniform(0, 0.05))  # anywhere: also while the file is opened or made
        return said + put_down(writer, told)


def put_down(writer: int, told: int) -> bytes:
    """Kill a writer; return what it said last."""
    os.kill(writer, signal.SIGKILL)
    with open(told, "rb") as rest:  # ends when the process has
        return rest.read()
