"""A log as a file of JSON lines, and back.

The first line says what the file is, the last one how many records there must have been. Each line
carries a check over itself and all lines before it, so that the first one that is not as it was
written is known. A content that is canonical JSON stands there as it is, for people and tools;
anything else in base64.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from os.path import isdir
from pathlib import Path

# Any: what a line of a file holds before it was looked at.
from typing import Any, TextIO

from atlas.core.log.engine import Engine, Progress
from atlas.core.log.records import NewRecord, Record
from atlas.core.schema.canonical import canonical_text
from atlas.core.temporal.events import ERASED
from atlas.core.temporal.history import CHUNK, History, base_stream, check_name, facts_stream
from atlas.core.temporal.times import Times, times_of
from atlas.core.temporal.values import is_storable
from atlas.errors import ConfigurationError, LogFormatError, LogUnavailableError

__all__ = ["Transfer", "export_log", "import_log", "storable_path", "whole_file"]

_FORMAT = 1
_LOG_STREAM, _TIMES = "$log", "$times/"


@dataclass(frozen=True, slots=True)
class Transfer:
    """What was exported or imported.

    Attributes:
        records: How many records.
        timelines: Those that they belong to.
        digest: SHA-256 over all lines: equal for equal files.
    """

    records: int
    timelines: tuple[str, ...]
    digest: str


class _Check:
    """The running hash over the lines of a file."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, content: dict[str, Any]) -> str:
        self._hash.update(canonical_text(content).encode("utf-8", "backslashreplace") + b"\n")
        return self._hash.hexdigest()


# -- writing --------------------------------------------------------------------------------------


def export_log(
    engine: Engine,
    target: str | PathLike[str] | TextIO,
    timelines: Sequence[str] | None,
    progress: Progress | None,
) -> Transfer:
    """Write records to a file; see `TemporalStore.export`."""
    wanted = None if timelines is None else _streams_of(engine, timelines)
    if isinstance(target, (str, PathLike)):
        with whole_file(target) as file:
            return _write(engine, file.write, wanted, progress)
    if not hasattr(target, "write"):
        raise ConfigurationError(f"{target!r} is nothing to write to; give a path or a text file.")
    return _write(engine, target.write, wanted, progress)


@contextlib.contextmanager
def whole_file(target: str | PathLike[str]) -> Iterator[TextIO]:
    """Give a text file to write to, which takes the place of a path when, and if, it is whole.

    What is no regular file (a pipe, a terminal, ``/dev/null``) is written to directly.

    Raises:
        ConfigurationError: That is no path of a file.
        LogUnavailableError: It cannot be written; what was there before is there still.
    """
    path = storable_path(target)
    try:
        if path.exists() and not path.is_file():
            with path.open("w", encoding="utf-8", newline="\n") as file:
                yield file
            return
        path = path.resolve()  # of a link, what it leads to
        part = path.with_name(f"{path.name}.part")
        try:
            with part.open("w", encoding="utf-8", newline="\n") as file:
                yield file
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):  # there may be no such folder at all
                part.unlink()
    except OSError as error:
        if isinstance(error, LogUnavailableError | BrokenPipeError):
            raise
        raise LogUnavailableError(
            f"{str(path)!r} cannot be written: {error.strerror or error}. Name a file in a folder "
            f"that you may write to, on a disk with room."
        ) from error


def storable_path(given: str | PathLike[str]) -> Path:
    """Return the path of a file.

    Raises:
        ConfigurationError: It is none.
    """
    path = Path(given)
    if not is_storable(str(path)):
        raise ConfigurationError(
            f"{str(given)!r} is no path: it has NUL or lone surrogates. Name a file without."
        )
    # Not Path.is_dir, which raises for a name that is too long.
    if not path.name or isdir(path):  # noqa: PTH112
        raise ConfigurationError(f"{str(given)!r} is a folder. Name a file in it.")
    return path


def _streams_of(engine: Engine, timelines: Sequence[str]) -> set[str]:
    """Return the streams of timelines, of those they were forked from, and of what belongs to them."""
    if isinstance(timelines, str):
        raise ConfigurationError(
            f"timelines is {timelines!r}, a text; give a list of names, such as [{timelines!r}]."
        )
    found: set[str] = set()
    for name in timelines:
        if engine.head(check_name(name)) is None:
            raise ConfigurationError(f"There is no timeline {name!r} to be exported.")
        for segment in History(engine, name).segments:
            found |= {segment.stream, facts_stream(segment.stream)}
            found.update(engine.streams(base_stream(segment.stream)))
    return found


def _write(
    engine: Engine,
    write: Callable[[str], object],
    wanted: set[str] | None,
    progress: Progress | None,
) -> Transfer:
    check = _Check()
    count, streams, times = 0, dict[str, int](), dict[str, Times | None]()

    def line(content: dict[str, Any]) -> str:
        digest = check.add(content)
        text = canonical_text({**content, "check": digest[:16]})
        write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        return digest

    line({"atlas": "log", "format": _FORMAT})
    for record in _all(engine, progress):
        if wanted is None or record.stream in wanted:
            if record.stream not in streams:
                streams[record.stream] = 0
                times[record.stream] = times_of(engine, record.stream)
            # What was appended after an import may have been so by a clock that was behind.
            time_ns = max(_time_of(record, times[record.stream]), streams[record.stream])
            streams[record.stream] = time_ns
            line(_content(record, time_ns))
            count += 1
    digest = line({"end": count})
    return Transfer(count, _timelines(streams), digest)


def _all(engine: Engine, progress: Progress | None) -> Iterator[Record]:
    last, position = engine.last_position() or 0, 0
    while position < last:
        found = engine.read_all(after=position, until=last, limit=CHUNK)
        if not found:
            return
        for record in found:
            if record.stream != _LOG_STREAM and not record.stream.startswith(_TIMES):
                yield record
        position = found[-1].position
        if progress is not None:
            progress(position, last)


def _time_of(record: Record, times: Times | None) -> int:
    imported = None if times is None else times.time_of(record.version)
    return record.time_ns if imported is None else imported


def _content(record: Record, time_ns: int) -> dict[str, Any]:
    content: dict[str, Any] = {
        "stream": record.stream,
        "version": record.version,
        "name": record.name,
        "time_ns": time_ns,
        "wall_ns": record.wall_ns,
        "digest": record.digest.hex(),
    }
    if record.name == ERASED and record.payload is not None:
        content |= json.loads(record.payload)
        return content
    if record.payload is not None:
        content |= _payload(record.payload)
    return content


def _payload(payload: bytes) -> dict[str, Any]:
    try:
        value = json.loads(payload)
        if _canonical(value) == payload:
            return {"json": value}
    except (ValueError, RecursionError):
        pass  # it is no JSON, or not the one way to write it
    return {"base64": base64.b64encode(payload).decode()}


def _canonical(value: object) -> bytes:
    return canonical_text(value).encode("utf-8", "backslashreplace")


def _timelines(streams: Iterable[str]) -> tuple[str, ...]:
    return tuple(stream for stream in streams if not stream.startswith("$"))


# -- reading --------------------------------------------------------------------------------------


def import_log(
    engine: Engine, source: str | PathLike[str] | TextIO, progress: Progress | None
) -> Transfer:
    """Read records from a file, then append them all at once; see `TemporalStore.import_`."""
    if isinstance(source, (str, PathLike)):
        path = storable_path(source)
        reader = _Reader(str(path))
        try:
            # What is no UTF-8 shows in the check of its line.
            with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                reader.read(file)
        except OSError as error:
            raise LogUnavailableError(
                f"{str(path)!r} cannot be read: {error}. Check the path; nothing was imported."
            ) from error
    else:
        if not hasattr(source, "read"):
            raise ConfigurationError(
                f"{source!r} is nothing to read from; give a path or a text file."
            )
        reader = _Reader(str(getattr(source, "name", "the file")))
        reader.read(source)
    if progress is not None:
        progress(0, len(reader.records))
    streams = reader.times
    records = [*reader.records, *(Times(*given).record(name) for name, given in streams.items())]
    # Nothing is stored unless there is nothing of any of these streams, and no line is broken.
    engine.append(records, expect=dict.fromkeys(streams, 0)).wait()
    if progress is not None:
        progress(len(reader.records), len(reader.records))
    return Transfer(len(reader.records), _timelines(streams), reader.digest)


class _Reader:
    """Reads lines, refuses the first that is not as it was written, and keeps the records."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._number = 0
        self._check = _Check()
        self.digest = ""
        self.records: list[NewRecord] = []
        self.times: dict[str, tuple[list[int], list[int]]] = {}

    def read(self, file: TextIO) -> None:
        is_over = False
        try:
            for self._number, text in enumerate(file, 1):
                content = self._checked(text)
                if is_over:
                    raise self._broken("comes after the end")
                if self._number == 1:
                    self._begin(content)
                elif "end" in content:
                    is_over = True
                    self._end(content)
                else:
                    self._add(content)
        except UnicodeDecodeError as error:
            self._number += 1
            raise self._broken(f"is no text: {error}") from error
        if not is_over:
            self._number += 1
            raise self._broken("is missing: the file was cut off")

    def _checked(self, text: str) -> dict[str, Any]:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._broken(f"is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise self._broken("is no object")
        given = content.pop("check", None)
        try:
            self.digest = self._check.add(content)
        except (ValueError, RecursionError) as error:
            raise self._broken(f"cannot be checked: {error}") from error
        if given != self.digest[:16]:
            raise self._broken(f"has the check {given!r} instead of {self.digest[:16]!r}")
        return content

    def _begin(self, content: dict[str, Any]) -> None:
        if content.get("atlas") != "log":
            raise self._broken("does not say that this is an exported log")
        if content.get("format") != _FORMAT:
            raise self._broken(
                f"says format {content.get('format')!r}, and this Atlas reads {_FORMAT}"
            )

    def _end(self, content: dict[str, Any]) -> None:
        if content["end"] != len(self.records):
            raise self._broken(f"says {content['end']!r} records, there are {len(self.records)}")

    def _add(self, content: dict[str, Any]) -> None:
        try:
            stream, version, time_ns = content["stream"], content["version"], content["time_ns"]
            name, payload = self._stored(content)
            versions, times = self.times.setdefault(stream, ([], []))
            if type(version) is not int or version <= (versions[-1] if versions else 0):
                raise self._broken(f"has version {version!r} after {versions[-1:]!r}")
            if stream == _LOG_STREAM or stream.startswith(_TIMES):
                raise self._broken(f"is for the stream {stream!r}, which is not to be imported")
            versions.append(version)
            times.append(int(time_ns))
            self.records.append(NewRecord(stream, name, payload, version, int(content["wall_ns"])))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, LogFormatError):
                raise
            raise self._broken(f"is no record: {error!r}") from error

    def _stored(self, content: dict[str, Any]) -> tuple[str, bytes]:
        if "json" in content:
            payload = _canonical(content["json"])
        elif "base64" in content:
            payload = base64.b64decode(content["base64"], validate=True)
        else:
            # What was erased can be no record of this name: the engine would hash other bytes.
            return ERASED, _canonical({"digest": content["digest"], "name": content["name"]})
        if hashlib.sha256(payload).hexdigest() != content["digest"]:
            raise self._broken("has a content that its digest does not fit")
        return content["name"], payload

    def _broken(self, what: str) -> LogFormatError:
        return LogFormatError(
            f"Line {self._number} of {self._name} {what}. Nothing was imported; export it again."
        )
