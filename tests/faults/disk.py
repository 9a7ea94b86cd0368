"""A disk that loses its power: from the calls that a process made, the files that could be left.

The rules are those of POSIX, not the kinder ones of a given file system:

- What was written to a file before an ``fsync`` of it *began* is on the disk when it has *ended*.
- Of what was written since, any part may be there, in any order, each sector of 512 bytes for itself.
- A name that was made, removed or changed is safe once the folder was synced; until then the changes
  of a folder may be missing, the later ones first.
"""

from __future__ import annotations

import random
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

HEAD = struct.Struct("<BiqqI")
SECTOR = 512
OPENED, CLOSED, WRITTEN, TRUNCATED, SYNCING, SYNCED, UNLINKED, RENAMED, LINKED = range(1, 10)
O_DIRECTORY, O_TRUNC = 0o200000, 0o1000

Mode: TypeAlias = Literal[
    "nothing", "everything", "beginning", "some", "shuffled", "torn", "garbled"
]
MODES: tuple[Mode, ...] = (
    "nothing",
    "everything",
    "beginning",
    "some",
    "shuffled",
    "torn",
    "garbled",
)


@dataclass(frozen=True, slots=True)
class Note:
    """A call that the traced process made."""

    what: int
    file: int
    offset: int
    extra: int
    data: bytes


def notes(trace: Path) -> list[Note]:
    """Read a trace written by shim.c."""
    blob, found, at = trace.read_bytes(), [], 0
    while at + HEAD.size <= len(blob):
        what, file, offset, extra, length = HEAD.unpack_from(blob, at)
        at += HEAD.size
        found.append(Note(what, file, offset, extra, blob[at : at + length]))
        at += length
    return found


@dataclass(slots=True)
class Change:
    """Something done to a file that no sync has covered yet; ``data`` None: its new length."""

    order: int
    offset: int
    data: bytes | None


@dataclass(slots=True, eq=False)
class File:
    """What surely is on the disk of a file, and what may be."""

    safe: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)
    syncing: deque[int] = field(default_factory=deque)

    def settle(self, upto: int) -> None:
        for change in [change for change in self.pending if change.order < upto]:
            apply(self.safe, change)
        self.pending = [change for change in self.pending if change.order >= upto]


@dataclass(slots=True)
class Naming:
    """A change of the folder, done at once or not at all: names now stand for files, or for none."""

    order: int
    names: dict[str, File | None]


def apply(content: bytearray, change: Change) -> None:
    if change.data is None:
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data


class Disk:
    """Follows a trace, and can be asked at any moment what a power cut would leave.

    Names that end in one of ``outside`` are not on this disk: the list of what was acknowledged, and
    memory that processes share through a file.
    """

    def __init__(self, folder: Path, outside: tuple[str, ...] = ("acks", "-shm")) -> None:
        self.folder = str(folder)
        self.outside = outside
        self.acknowledged = bytearray()
        self._names: dict[str, File] = {}
        self._safe_names: dict[str, File] = {}
        self._renaming: list[Naming] = []
        self._folder_syncing: deque[int] = deque()
        self._open: dict[int, File | str | None] = {}
        self._order = 0

    def follow(self, note: Note) -> None:
        self._order += 1
        if note.what == OPENED:
            self._opened(note)
        elif note.what == CLOSED:
            self._open.pop(note.file, None)
        elif note.what in (WRITTEN, TRUNCATED):
            self._changed(note)
        elif note.what in (SYNCING, SYNCED):
            self._synced(note)
        elif note.what == UNLINKED:
            self._name({self._short(note.data.decode()): None})
        elif note.what in (RENAMED, LINKED):
            old, new = (self._short(path) for path in note.data.decode().split("\0"))
            gone: dict[str, File | None] = {} if note.what == LINKED else {old: None}
            self._name(gone | {new: self._names[old]})

    def _short(self, path: str) -> str:
        return path[len(self.folder) + 1 :]

    def _name(self, names: dict[str, File | None]) -> None:
        naming = Naming(self._order, names)
        rename(self._names, naming)
        self._renaming.append(naming)

    def _opened(self, note: Note) -> None:
        path = note.data.decode()
        name = self._short(path)
        if path == self.folder or note.extra & O_DIRECTORY:
            self._open[note.file] = "folder"
        elif name.endswith(self.outside):
            self._open[note.file] = "acks" if name.endswith("acks") else None
        else:
            if name not in self._names:
                self._name({name: File()})
            file = self._open[note.file] = self._names[name]
            if note.extra & O_TRUNC:
                file.pending.append(Change(self._order, 0, None))

    def _changed(self, note: Note) -> None:
        file = self._open.get(note.file)
        if file == "acks":
            self.acknowledged += note.data
        elif isinstance(file, File):
            data = note.data if note.what == WRITTEN else None
            file.pending.append(Change(self._order, note.offset, data))

    def _synced(self, note: Note) -> None:
        file = self._open.get(note.file)
        if file == "folder":
            if note.what == SYNCING:
                self._folder_syncing.append(self._order)
            else:
                self._settle_names(self._folder_syncing.popleft())
        elif isinstance(file, File):
            if note.what == SYNCING:
                file.syncing.append(self._order)
            else:
                file.settle(file.syncing.popleft())

    def _settle_names(self, upto: int) -> None:
        for naming in [naming for naming in self._renaming if naming.order < upto]:
            rename(self._safe_names, naming)
        self._renaming = [naming for naming in self._renaming if naming.order >= upto]

    def image(self, mode: Mode, chance: random.Random) -> dict[str, bytes]:
        """Return the files that a power cut at this moment leaves: one possibility of many."""
        names = dict(self._safe_names)
        kept = {"nothing": 0, "everything": len(self._renaming)}.get(
            mode, chance.randint(0, len(self._renaming))
        )
        for naming in self._renaming[:kept]:
            rename(names, naming)
        return {name: bytes(left(file, mode, chance)) for name, file in names.items()}


def rename(names: dict[str, File], naming: Naming) -> None:
    for name, file in naming.names.items():
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


def left(file: File, mode: Mode, chance: random.Random) -> bytearray:
    content = bytearray(file.safe)
    for change in survivors(file.pending, mode, chance):
        apply(content, change)
    return content


def survivors(pending: list[Change], mode: Mode, chance: random.Random) -> list[Change]:
    if mode == "nothing":
        return []
    if mode == "everything":
        return pending
    if mode == "beginning":
        return pending[: chance.randint(0, len(pending))]
    if mode in ("torn", "garbled"):
        pieces = [piece for change in pending for piece in sectors(change)]
        kept = [piece for piece in pieces if chance.random() < 0.5]
        return [garbled(piece, chance) for piece in kept] if mode == "garbled" else kept
    kept = [change for change in pending if chance.random() < 0.5]
    if mode == "shuffled":
        chance.shuffle(kept)
    return kept


def sectors(change: Change) -> Iterator[Change]:
    """Cut a write where the sectors of the disk end."""
    if change.data is None:
        yield change
        return
    at, end = change.offset, change.offset + len(change.data)
    while at < end:
        stop = min(end, (at // SECTOR + 1) * SECTOR)
        yield Change(change.order, at, change.data[at - change.offset : stop - change.offset])
        at = stop


def garbled(piece: Change, chance: random.Random) -> Change:
    """Return the sector as the disk may leave it that was writing it as the power went."""
    if piece.data is None or chance.random() < 0.9:
        return piece
    return Change(piece.order, piece.offset, chance.randbytes(len(piece.data)))


def lay(image: dict[str, bytes], folder: Path) -> None:
    """Write the files of an image."""
    folder.mkdir(parents=True)
    for name, content in image.items():
        (folder / name).write_bytes(content)
