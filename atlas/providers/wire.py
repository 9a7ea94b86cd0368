"""Incremental decoders for the two ways in which vendors stream: SSE and NDJSON.

Both take bytes as they come off the socket, cut anywhere (inside a line end, inside a character),
and return what is complete so far. They know nothing of HTTP or of any vendor. Cost is linear in
the bytes fed, however small the pieces; memory is bounded by ``limit``.

Decoding happens line by line, never with ``str.splitlines``: that splits at U+0085, U+2028 and
U+2029 too, which are ordinary characters inside a token.
"""

from __future__ import annotations

from typing import NamedTuple

from atlas.errors import InvalidResponseError

__all__ = ["DEFAULT_LIMIT", "NdjsonDecoder", "SseDecoder", "SseEvent"]

DEFAULT_LIMIT = 16 * 1024 * 1024
"""Bytes that one line, or the data of one event, may have: far above any real event."""

_BOM = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One dispatched event: its data (lines joined by a line feed, may be empty), type and id."""

    data: str
    event: str = "message"
    id: str = ""


class _LineBuffer:
    """The unfinished last line, kept in pieces so that a long line costs linear time."""

    __slots__ = ("_limit", "_pieces", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    def append(self, piece: bytes) -> None:
        self._size += len(piece)
        self.check(self._size)
        self._pieces.append(piece)

    def take(self) -> bytes:
        line = b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        return line

    def check(self, size: int) -> None:
        if size > self._limit:
            raise InvalidResponseError(
                f"The stream has a line or event of more than {self._limit} bytes without an end; "
                f"the server does not speak the protocol expected of it."
            )

    def __bool__(self) -> bool:
        return bool(self._pieces)


class SseDecoder:
    r"""Decode a ``text/event-stream`` as the WHATWG specification says.

    Lines end in LF, CR or CRLF, cut anywhere between two feeds; one leading byte order mark is
    dropped; comments (pings) and unknown fields are ignored; ``data`` lines are joined by ``\n``;
    an event without data is not dispatched; bytes that are not UTF-8 become U+FFFD.

    Not thread-safe; one instance decodes one stream.

    Args:
        limit: Bytes that one line, or the data of one event, may have.

    Attributes:
        last_event_id: The last ``id`` seen; it stays in force for the events after it.
        retry: The reconnection time in milliseconds that the server asked for, or None.
    """

    __slots__ = (
        "_data",
        "_data_size",
        "_event",
        "_limit",
        "_line",
        "_skip_lf",
        "_started",
        "last_event_id",
        "retry",
    )

    def __init__(self, *, limit: int = DEFAULT_LIMIT) -> None:
        self.last_event_id: str = ""
        self.retry: int | None = None
        self._limit = limit
        self._line = _LineBuffer(limit)
        self._data: list[str] = []
        self._data_size = 0
        self._event = ""
        self._skip_lf = False
        self._started = False

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Take the next bytes and return the events that they complete, in order.

        Raises:
            InvalidResponseError: A line or an event's data is longer than ``limit``.
        """
        if self._skip_lf or b"\r" in chunk:
            chunk = self._only_lf(chunk)
        lines = chunk.split(b"\n")
        if self._is_one_event(lines):  # nearly every chunk of a model's answer
            return [
                SseEvent(lines[0][6:].decode("utf-8", "replace"), "message", self.last_event_id)
            ]
        if len(lines) == 1:
            if chunk:
                self._line.append(chunk)
            return []
        if self._line:
            self._line.append(lines[0])
            lines[0] = self._line.take()
        rest = lines.pop()
        if rest:
            self._line.append(rest)
        return self._interpret(lines)

    def finish(self) -> SseEvent | None:
        """Return the event that the end of the stream cut off, if there is one.

        The specification discards it. An adapter may still look for its vendor's end marker in it,
        since some servers leave out the last blank line.
        """
        events = self._interpret([self._line.take(), b""])
        return events[0] if events else None

    def _is_one_event(self, lines: list[bytes]) -> bool:
        """Whether the lines are one whole event of one data line, and nothing waits before it."""
        return (
            len(lines) == 3
            and self._started
            and not lines[1]
            and not lines[2]
            and lines[0].startswith(b"data: ")
            and not (self._line or self._data or self._event)
            and len(lines[0]) <= self._limit
        )

    def _interpret(self, lines: list[bytes]) -> list[SseEvent]:
        if not self._started:
            self._started = True
            lines[0] = lines[0].removeprefix(_BOM)
        events: list[SseEvent] = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                self._append(line[6:] if line.startswith(b" ", 5) else line[5:])
            elif line:
                self._field(line)
            else:
                if data:
                    text = data[0] if len(data) == 1 else "\n".join(data)
                    events.append(SseEvent(text, self._event or "message", self.last_event_id))
                    data.clear()
                    self._data_size = 0
                self._event = ""
        return events

    def _append(self, text: bytes) -> None:
        self._data_size += len(text) + 1  # the line end that joins them counts: it bounds the list
        self._line.check(self._data_size)
        self._data.append(text.decode("utf-8", "replace"))

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"data":
            self._append(b"")
        elif name == b"id" and b"\0" not in value:
            self.last_event_id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) < 16:
            self.retry = int(value)

    def _only_lf(self, chunk: bytes) -> bytes:
        if not chunk:
            return chunk
        if self._skip_lf and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._skip_lf = False
            if not chunk:
                return chunk
        self._skip_lf = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


class NdjsonDecoder:
    r"""Split newline-delimited JSON into its lines, as text; parsing them is the caller's.

    Only ``\n`` ends a line (a ``\r`` before it is JSON white space), blank lines are skipped, and
    one leading byte order mark is dropped. Not thread-safe; one instance decodes one stream.

    Args:
        limit: Bytes that one line may have.
    """

    __slots__ = ("_line", "_started")

    def __init__(self, *, limit: int = DEFAULT_LIMIT) -> None:
        self._line = _LineBuffer(limit)
        self._started = False

    def feed(self, chunk: bytes) -> list[str]:
        """Take the next bytes and return the lines that they complete, in order.

        Raises:
            InvalidResponseError: A line is longer than ``limit``.
        """
        if b"\n" not in chunk:
            if chunk:
                self._line.append(chunk)
            return []
        lines = chunk.split(b"\n")
        if self._line:
            self._line.append(lines[0])
            lines[0] = self._line.take()
        rest = lines.pop()
        if rest:
            self._line.append(rest)
        return self._texts(lines)

    def finish(self) -> str | None:
        """Return the last line when the stream ended without a line end after it, else None.

        It may be a whole object from a server that leaves out the last line end, or one cut off.
        """
        texts = self._texts([self._line.take()])
        return texts[0] if texts else None

    def _texts(self, lines: list[bytes]) -> list[str]:
        if not self._started:
            self._started = True
            lines[0] = lines[0].removeprefix(_BOM)
        return [line.decode("utf-8", "replace") for line in lines if line and not line.isspace()]
