"""A raw HTTP/1.1 server that plays awkward answers byte by byte, in a thread of its own.

It is written on a bare asyncio protocol so that nothing repairs what a script does wrong on
purpose. Scripts wait on gates, not on clocks, and the server sees when the client goes away::

    with WireServer() as server:
        gate = Gate()
        server.play(Answer(sse("data: 1"), gate, sse("data: 2"), CUT))
        ...                                  # a client reads the first event
        gate.open()
        assert server.connections[0].closed_by_client.wait(5)

Steps of an `Answer`: ``bytes`` (one HTTP chunk each), a `Gate`, `Repeat` (the same bytes many
times, or until the client leaves), and at the end one of `END` (proper end of the body; what a
script without an end gets), `CUT` (proper end, then the connection is closed), `DROP` (the socket
is closed in the middle of the body), `RESET` (as DROP, with a TCP reset) and `HANG` (nothing more
until the client leaves).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

__all__ = [
    "CUT",
    "DROP",
    "END",
    "HANG",
    "RESET",
    "Answer",
    "Connection",
    "Gate",
    "Repeat",
    "Request",
    "Step",
    "WireServer",
    "error_answer",
    "ndjson",
    "pieces",
    "sse",
]

PATIENCE = 10.0  # seconds after which a wait in a test is a failure


class Signal(enum.Enum):
    """How a body ends."""

    END = "end"
    CUT = "cut"
    DROP = "drop"
    RESET = "reset"
    HANG = "hang"


END, CUT, DROP, RESET, HANG = Signal


class Gate:
    """A place in a script where the server waits until the test opens it."""

    def __init__(self) -> None:
        self._opened: Future[None] = Future()
        self._reached: Future[None] = Future()

    def open(self) -> None:
        """Let the server go on; from any thread."""
        if not self._opened.done():
            self._opened.set_result(None)

    def wait_reached(self, timeout: float = PATIENCE) -> None:
        """Block until the server stands at the gate."""
        self._reached.result(timeout)

    async def reached(self, timeout: float = PATIENCE) -> None:
        """Wait until the server stands at the gate."""
        await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._reached)), timeout)

    async def pass_through(self) -> None:
        """Stand at the gate until it is open (the server's side)."""
        if not self._reached.done():
            self._reached.set_result(None)
        await asyncio.shield(asyncio.wrap_future(self._opened))


@dataclass(frozen=True)
class Repeat:
    """Write ``data`` ``times`` times, or until the client leaves; ``on_each`` is told the count."""

    data: bytes
    times: int | None = None
    on_each: Callable[[int], None] | None = None


Step: TypeAlias = bytes | Gate | Repeat | Signal


class Answer:
    """One scripted answer. ``framing`` is how the body's end is told to the client."""

    def __init__(
        self,
        *steps: Step,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str = "text/event-stream",
        framing: Literal["chunked", "length", "close"] = "chunked",
    ) -> None:
        self.steps = steps
        self.status = status
        self.headers = {"content-type": content_type, **(headers or {})}
        self.framing = framing

    def head(self) -> bytes:
        """Return the status line and headers as they go over the wire."""
        headers = dict(self.headers)
        if self.framing == "chunked":
            headers["transfer-encoding"] = "chunked"
        elif self.framing == "length":
            size = sum(len(step) for step in self.steps if isinstance(step, bytes))
            headers.setdefault("content-length", str(size))
        else:
            headers["connection"] = "close"
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def frame(self, data: bytes) -> bytes:
        """Return ``data`` as this answer's framing writes it."""
        if self.framing != "chunked":
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    # Any: a test reads whatever JSON its own request holds.
    def json(self) -> Any:
        """Return the body, decoded."""
        return json.loads(self.body)


@dataclass
class Connection:
    """One TCP connection, seen from the server."""

    closed_by_client: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(default_factory=list)
    frames_written: int = 0
    bytes_written: int = 0
    _gone: Future[None] = field(default_factory=Future)

    async def wait_closed(self, timeout: float = PATIENCE) -> None:
        """Wait until the client closed this connection; fails the test after ``timeout``."""
        await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._gone)), timeout)

    def mark_closed(self) -> None:
        """Record that the client closed the connection (the server's side)."""
        self.closed_by_client.set()
        if not self._gone.done():
            self._gone.set_result(None)


class WireServer:
    """Plays one queued `Answer` per request; see the module.

    Attributes:
        requests: Every request, in the order of arrival.
        connections: Every connection, in the order of arrival.
        unexpected: Requests for which no answer was queued (they get a 500).
    """

    def __init__(self, *, always: Answer | None = None) -> None:
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.unexpected: list[Request] = []
        self._always = always
        self._answers: deque[Answer] = deque()
        self._protocols: set[_Protocol] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="wire-server", daemon=True)
        self._ready: Future[int] = Future()
        self._stop = asyncio.Event()

    def play(self, *answers: Answer) -> None:
        """Queue answers, one for each request to come."""
        self._answers.extend(answers)

    def always(self, answer: Answer) -> None:
        """Answer like this whenever the queue is empty."""
        self._always = answer

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self._ready.result(PATIENCE)

    @property
    def url(self) -> str:
        """Base URL, without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many connections are open now, the client not having closed them."""
        return sum(not c.closed_by_client.is_set() for c in self.connections)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result(PATIENCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)

    def next_answer(self, request: Request) -> Answer:
        """Return what to answer to ``request`` (the protocol's side)."""
        self.requests.append(request)
        if self._answers:
            return self._answers.popleft()
        if self._always is not None:
            return self._always
        self.unexpected.append(request)
        return error_answer(500, {"error": {"message": "No answer is queued for this request."}})

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.get_running_loop().create_server(
            lambda: _Protocol(self, self._protocols), "127.0.0.1", 0
        )
        self._ready.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        tasks = [task for protocol in list(self._protocols) if (task := protocol.abort())]
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transports report that they are gone


class _Protocol(asyncio.Protocol):
    def __init__(self, server: WireServer, open_ones: set[_Protocol]) -> None:
        self._server = server
        self._open_ones = open_ones
        self._connection = Connection()
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport

    def abort(self) -> asyncio.Task[None] | None:
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    # -- what asyncio calls -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open_ones.add(self)
        self._server.connections.append(self._connection)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._buffer.startswith(b"\x16\x03"):  # a TLS client has come to the wrong door
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            self._transport.close()
        elif self._task is None:
            self._answer_next()

    def eof_received(self) -> None:
        self._left()

    def connection_lost(self, error: Exception | None) -> None:
        self._open_ones.discard(self)
        self._left()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # -- playing ----------------------------------------------------------------------------

    def _left(self) -> None:
        self._connection.mark_closed()
        if self._task is not None:
            self._task.cancel()

    def _answer_next(self) -> None:
        request = self._take_request()
        if request is None:
            return
        self._connection.requests.append(request)
        answer = self._server.next_answer(request)
        self._task = asyncio.get_running_loop().create_task(self._play(answer))
        self._task.add_done_callback(self._played)

    def _played(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and not self._transport.is_closing():
            task.result()
            self._answer_next()

    def _take_request(self) -> Request | None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        method, _, target = first.partition(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            taken = _take_chunks(rest)
            if taken is None:
                return None
            body, self._buffer = taken
        else:
            size = int(headers.get("content-length", 0))
            if len(rest) < size:
                return None
            body, self._buffer = rest[:size], rest[size:]
        return Request(method, target.partition(" ")[0], headers, body)

    async def _play(self, answer: Answer) -> None:
        self._transport.write(answer.head())
        end = END
        for step in answer.steps:
            if isinstance(step, Signal):
                end = step
                break
            await self._step(answer, step)
        await self._end(answer, end)

    async def _step(self, answer: Answer, step: bytes | Gate | Repeat) -> None:
        if isinstance(step, Gate):
            await step.pass_through()
        elif isinstance(step, bytes):
            await self._write(answer, step)
        else:
            count = 0
            while step.times is None or count < step.times:
                await self._write(answer, step.data)
                count += 1
                if step.on_each is not None:
                    step.on_each(count)
                if count % 64 == 0:
                    await asyncio.sleep(0)  # lets the loop see that the client left

    async def _write(self, answer: Answer, data: bytes) -> None:
        await self._writable.wait()
        # Counted first: the test's thread may read the bytes, and look, before this one goes on.
        self._connection.frames_written += 1
        self._connection.bytes_written += len(data)
        self._transport.write(answer.frame(data))

    async def _end(self, answer: Answer, end: Signal) -> None:
        if end is HANG:
            await asyncio.get_running_loop().create_future()
        if end is RESET:
            linger = struct.pack("ii", 1, 0)
            raw = self._transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
            return
        if end in (END, CUT) and answer.framing == "chunked":
            self._transport.write(b"0\r\n\r\n")
        if end is not END or answer.framing == "close":
            self._transport.close()


def _take_chunks(data: bytes) -> tuple[bytes, bytes] | None:
    body = b""
    while True:
        size_line, found, data = data.partition(b"\r\n")
        size = int(size_line or b"0", 16)
        if not found or len(data) < size + 2:
            return None
        body, data = body + data[:size], data[size + 2 :]
        if size == 0:
            return body, data


# -- building bodies ------------------------------------------------------------------------------


# Any: whatever JSON a vendor sends.
def sse(*events: Any, event: str | None = None, end: str = "\n") -> bytes:
    """Return events as one piece of an event stream; text as it is, anything else as JSON."""
    lines = []
    for data in events:
        if event is not None:
            lines.append(f"event: {event}")
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
        lines += [f"data: {line}" for line in text.split("\n")]
        lines.append("")
    return end.join([*lines, ""]).encode()


# Any: whatever JSON a vendor sends.
def ndjson(*objects: Any) -> bytes:
    """Return objects as lines of newline-delimited JSON."""
    return b"".join(json.dumps(o, ensure_ascii=False).encode() + b"\n" for o in objects)


def pieces(data: bytes, size: int = 1) -> list[bytes]:
    """Cut ``data`` into pieces of ``size`` bytes, characters and line ends not respected."""
    return [data[i : i + size] for i in range(0, len(data), size)]


# Any: whatever JSON a vendor sends.
def error_answer(status: int, body: Any, *, headers: Mapping[str, str] | None = None) -> Answer:
    """Return an error answer with a JSON body, or with the given bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(
        data, status=status, headers=headers, content_type="application/json", framing="length"
    )
