"""The files beside the log that hold indexes, and who may open them: one writer, many readers.

Chroma is opened only when its files are as they were left, or when a process that tried it first has
survived: a damaged index can end the process that opens it. It is opened late, for it takes seconds,
and small collections are searched faster without it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from atlas.errors import StoreError
from atlas.knowledge.catalogue import Catalogue
from atlas.knowledge.collection import Collection, Rebuilt
from atlas.knowledge.locks import FolderLock
from atlas.knowledge.store import KnowledgeStore

if TYPE_CHECKING:
    from atlas.knowledge.chroma import ChromaStore

__all__ = ["IndexFiles"]

# Smaller collections are searched vector by vector.
_WORTH_A_STORE = 5_000
_READ_AT_ONCE = 1 << 20
_GRAPH = re.compile(r"\.(bin|pickle)$")

State = Literal["intact", "touched", "damaged"]


class IndexFiles:
    """The store of a knowledge base and its state on disk.

    Args:
        folder: Where the knowledge base is; None: in memory, with nothing on disk.
        store: A store that somebody else opened and will close; it is filled and asked like ours.
    """

    def __init__(self, folder: Path | None, store: KnowledgeStore | None) -> None:
        self._folder = folder
        self._given = store
        self._store: ChromaStore | None = None
        self._lock = FolderLock(folder) if folder is not None else None
        self._unusable = False
        self._marks: dict[str, str] = {}

    @property
    def is_writer(self) -> bool:
        """Whether this process may write."""
        return self._lock is None or self._lock.is_held

    def become_writer(self, timeout: float) -> None:
        """Get the right to write.

        Raises:
            StoreError: Another process has it, and keeps it longer than ``timeout`` seconds.
        """
        assert self._lock is not None
        self._lock.acquire(timeout)
        # What was opened for reading may be out of date.
        self._close_store()
        self._unusable = False

    def wants_store(self, catalogue: Catalogue) -> bool:
        """Return whether a collection is searched faster by a store."""
        if self._given is not None:
            return True
        return self._folder is not None and not self._unusable and catalogue.rows >= _WORTH_A_STORE

    def open_for_reading(self, held: Collection) -> None:
        """Let a collection be searched by the store, if it can be had and is in step."""
        if self._given is not None or self.is_writer:
            self.open_for_writing(held)
            return
        assert self._folder is not None
        assert self._lock is not None
        self._unusable = True  # one try; what is missing is found without it
        if not self._lock.try_acquire():
            return
        # Nobody writes while it is opened; what others write after that is found without it.
        try:
            marks, state = self._left_behind()
            mark = held.catalogue.mark(held.catalogue.rows).hex()
            if marks.get(held.info.name) != mark or state == "damaged":
                return
            if self._store is None and (state == "intact" or self._is_sound()):
                self._store = self._opened()
            if self._store is not None and (state == "intact" or held.is_in_step_with(self._store)):
                self._marks = marks
                held.use(self._store)
                self._unusable = False
        except StoreError:
            return
        finally:
            self._lock.release()

    def open_for_writing(self, held: Collection) -> tuple[str, Rebuilt] | None:
        """Open the store and bring it in step with the log.

        Returns:
            What had to be done, and why; None when it was in step.
        """
        if self._given is not None:
            done = held.sync(self._given)
            return ("it was not in step with the log", done) if done.added or done.removed else None
        if self._folder is None:
            return None
        reason = "it was not closed properly"
        if self._store is None:
            self._marks, state = self._left_behind()
            if state != "intact":
                self._marks = {}
            if state == "damaged" or (state == "touched" and not self._is_sound()):
                reason = "it was damaged"
                _delete(self._folder / "chroma")
            self._state.unlink(missing_ok=True)
            self._store = self._opened()
        mark = held.catalogue.mark(held.catalogue.rows).hex()
        if self._marks.get(held.info.name) == mark:
            held.use(self._store)
            return None
        fresh = held.info.name not in {info.name for info in self._store.collections()}
        done = held.sync(self._store)
        if not (done.added or done.removed):
            return None
        return ("it was missing" if fresh and reason != "it was damaged" else reason), done

    def close(self, catalogues: Mapping[str, Catalogue]) -> None:
        """Close the store, note how it was left, and let others write.

        Args:
            catalogues: The collections that are open.
        """
        if self._lock is None:
            return
        opened, wrote = self._store is not None, self._lock.is_held
        tidy = self._tidy_up() if wrote else True
        self._close_store()
        if opened and wrote:
            self._marks |= {
                name: catalogue.mark(catalogue.rows).hex() for name, catalogue in catalogues.items()
            }
        # Chroma changes its files also when it is only read.
        if (
            opened
            and tidy
            and self._lock.try_acquire()
            and (wrote or self._left_behind()[0] == self._marks)
        ):
            self._note(self._marks)
        self._lock.release()

    # -- inside --

    @property
    def _state(self) -> Path:
        assert self._folder is not None
        return self._folder / "index.json"

    def _opened(self) -> ChromaStore:
        # Here, because it imports some hundred packages.
        from atlas.knowledge.chroma import ChromaStore  # noqa: PLC0415

        assert self._folder is not None
        return ChromaStore(self._folder / "chroma")

    def _is_sound(self) -> bool:
        from atlas.knowledge.chroma import probe  # noqa: PLC0415 - as above

        assert self._folder is not None
        return probe(self._folder / "chroma") != "damaged"

    def _tidy_up(self) -> bool:
        """Close the store with no more on disk than is needed; return whether it took part in it."""
        store, self._store = self._store, None
        try:
            if store is not None:
                store.tidy_up()
        except StoreError:
            # Nothing is noted of it, so it is looked into before it is opened again.
            return False
        return True

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _note(self, marks: Mapping[str, str]) -> None:
        """Write down what the store holds, and what its files look like."""
        assert self._folder is not None
        state = {"marks": marks, "files": _fingerprint(self._folder / "chroma")}
        unfinished = self._state.with_suffix(".new")
        unfinished.write_text(json.dumps(state, indent=1), encoding="utf-8")
        unfinished.replace(self._state)

    def _left_behind(self) -> tuple[dict[str, str], State]:
        """Return what the store holds, and what has become of its files since it was closed."""
        assert self._folder is not None
        try:
            state = json.loads(self._state.read_text(encoding="utf-8"))
            marks, files = dict(state["marks"]), dict(state["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}, "touched"  # its last writer has not closed it
        now = _fingerprint(self._folder / "chroma")
        different = {name for name in files.keys() | now.keys() if files.get(name) != now.get(name)}
        if not different:
            return marks, "intact"
        # Reading changes Chroma's database, but never the files of its graphs.
        return marks, "damaged" if any(map(_GRAPH.search, different)) else "touched"


def _fingerprint(folder: Path) -> dict[str, list[int]]:
    """Return the size and the checksum of each file in a folder."""
    return {
        str(path.relative_to(folder)): [path.stat().st_size, _checksum(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_READ_AT_ONCE):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _delete(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
