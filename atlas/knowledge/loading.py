"""Reading documents: from files, folders, patterns and URLs, each format by the library that knows it.

A format is a function from bytes to a `Document`, in a module that is imported when a file needs it.
Plain formats (text, Markdown, reStructuredText, CSV, JSON, source code) keep their text as it is, so
that a span leads to the same place in the file; the others are turned into text.
"""

from __future__ import annotations

import glob
import gzip
import mimetypes
import os
import re
import unicodedata
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from io import BytesIO
from pathlib import Path, PurePath
from typing import Final, Protocol, cast
from urllib.parse import urlsplit

from atlas.errors import DocumentError, MissingDependencyError
from atlas.knowledge.documents import Document, Field
from atlas.knowledge.language import language_of

__all__ = ["FORMATS", "LARGEST", "Loader", "Reader", "find_sources", "is_url"]

LARGEST: Final = 64 * 2**20
"""Bytes of the largest file that is read if nothing else is said."""


class Reader(Protocol):
    """Turns the content of a file into a document; raises ValueError for a broken one."""

    def __call__(self, source: str, content: bytes) -> Document:
        """Return the document whose file has this content."""
        ...


FORMATS: Final[Mapping[str, str]] = {
    **dict.fromkeys((".txt", ".text", ".log", ".adoc", ".asciidoc", ""), "plain:read_text"),
    **dict.fromkeys((".md", ".markdown", ".mkd"), "markdown:read_markdown"),
    **dict.fromkeys((".rst", ".rest"), "restructured:read_restructured"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html:read_html"),
    ".pdf": "pdf:read_pdf",
    ".docx": "docx:read_docx",
    **dict.fromkeys((".csv", ".tsv"), "tables:read_table"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "tables:read_json"),
    **dict.fromkeys(
        (
            ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".java", ".js", ".jsx",
            ".mjs", ".ts", ".tsx", ".kt", ".lua", ".php", ".pl", ".pm", ".r", ".rb", ".rs", ".scala",
            ".sh", ".bash", ".sql", ".swift", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".xml", ".css",
        ),
        "code:read_code",
    ),
    "manual": "manual:read_manual_page",
}  # fmt: skip
"""By suffix, the reader of a format: ``module:function`` in `atlas.knowledge.formats`."""

_MANUAL: Final = re.compile(r"\.[1-9n][a-z]*$")
_MANUAL_WORDS: Final = re.compile(rb"^[.'](\\\"|TH |Dd )", re.MULTILINE)
# Folders that hold no documents of their owner.
_SKIPPED_FOLDERS: Final = frozenset(
    {".git", ".hg", ".svn", "__pycache__", "node_modules", ".venv", ".mypy_cache", ".ruff_cache"}
)
_MAGIC: Final = re.compile(r"[*?\[]")


class Loader:
    """Reads documents, and says of each that it cannot read what is wrong with it.

    Args:
        max_bytes: Largest file to read, also after unpacking.
        timeout: Seconds to wait for a server.
        formats: Readers by suffix, such as ``{".tex": read_tex}``, before those of Atlas.
    """

    def __init__(
        self,
        *,
        max_bytes: int = LARGEST,
        timeout: float = 30.0,
        formats: Mapping[str, Reader] | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._formats = dict(formats or {})

    def load(self, source: str) -> Document:
        """Return the document at a path or URL, cleaned.

        Raises:
            DocumentError: It cannot be read: missing, too large, broken, or no text.
            MissingDependencyError: The library for its format is not installed.
        """
        try:
            if is_url(source):
                content, facts = self._fetch(source)
            else:
                content, facts = self._read(Path(source))
            document = self._reader(source, content, str(facts.get("type", "")))(source, content)
        except (DocumentError, MissingDependencyError):
            raise
        except (ValueError, LookupError, TypeError, OSError, EOFError, zlib.error) as error:
            raise self._unreadable(source, error) from error
        # The libraries of formats meet broken files with errors of any kind.
        except (RuntimeError, AttributeError, ArithmeticError, AssertionError) as error:
            raise self._unreadable(source, error) from error
        return _completed(document, facts)

    def _unreadable(self, source: str, error: Exception) -> DocumentError:
        if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
            error = error.reason
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return DocumentError(
            f"{source!r} cannot be read: {why or type(error).__name__}.", source=source
        )

    def _read(self, path: Path) -> tuple[bytes, dict[str, Field]]:
        about = path.stat()
        if not path.is_file():
            raise DocumentError(f"{str(path)!r} is no file.", source=str(path))
        if about.st_size > self._max_bytes:
            raise self._too_large(str(path), about.st_size)
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = self._unpacked(str(path), content)
        modified = datetime.fromtimestamp(about.st_mtime, UTC)
        return content, {"modified": modified.isoformat(timespec="seconds")}

    def _unpacked(self, source: str, content: bytes) -> bytes:
        with gzip.GzipFile(fileobj=BytesIO(content)) as file:
            unpacked = file.read(self._max_bytes + 1)
        if len(unpacked) > self._max_bytes:
            raise self._too_large(source, len(unpacked))
        return unpacked

    def _fetch(self, url: str) -> tuple[bytes, dict[str, Field]]:
        asked = urllib.request.Request(url, headers={"User-Agent": "atlas"})  # noqa: S310 - see is_url
        try:
            with urllib.request.urlopen(asked, timeout=self._timeout) as answer:  # noqa: S310
                content = answer.read(self._max_bytes + 1)
                kind = answer.headers.get_content_type()
                modified = _moment(answer.headers.get("Last-Modified", ""))
        except urllib.error.HTTPError as error:
            error.close()
            raise DocumentError(f"{url!r} answers {error.code}.", source=url) from error
        if len(content) > self._max_bytes:
            raise self._too_large(url, len(content))
        return content, {"type": kind} | ({"modified": modified} if modified else {})

    def _too_large(self, source: str, size: int) -> DocumentError:
        return DocumentError(
            f"{source!r} has {size:,} bytes or more; {self._max_bytes:,} are read at most. Raise "
            f"`max_bytes` of the Loader (--max-bytes of `atlas ingest`) to take it.",
            source=source,
        )

    def _reader(self, source: str, content: bytes, kind: str) -> Reader:
        suffix = _suffix(source, kind)
        if suffix in self._formats:
            return self._formats[suffix]
        if _MANUAL.search(suffix) and _MANUAL_WORDS.search(content[:20_000]):
            suffix = "manual"
        found = FORMATS.get(suffix)
        if found is None:
            if b"\0" in content[:8_000]:
                raise DocumentError(
                    f"{source!r} is of no format that can be read ({suffix!r}). Give the Loader a "
                    f"reader for it: formats={{{suffix!r}: …}}.",
                    source=source,
                )
            found = FORMATS[".txt"]
        module, _, function = found.partition(":")
        return cast("Reader", getattr(import_module(f"atlas.knowledge.formats.{module}"), function))


def is_url(source: str) -> bool:
    """Return whether a source is to be fetched from a server."""
    return source.startswith(("http://", "https://"))


def find_sources(wanted: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the documents that paths, folders, patterns and URLs stand for, each once, in order.

    Files are given as absolute paths, so that a document is known by one name wherever a program
    runs. Of a folder, everything in it is taken that has the suffix of a known format.

    Raises:
        DocumentError: A path does not exist, or a pattern fits nothing.
    """
    found: dict[str, None] = {}
    for each in wanted:
        text = os.fspath(each)
        before = len(found)
        for source in _sources(text):
            found[source] = None
        if len(found) == before and not _known_already(text, found):
            raise DocumentError(
                f"{text!r} stands for no file. Give a path, a folder, a pattern such as "
                f"'docs/**/*.md', or a URL.",
                source=text,
            )
    return list(found)


def _sources(text: str) -> Iterator[str]:
    if is_url(text):
        yield text
    elif os.path.isdir(text):  # noqa: PTH112 - a str from a user, also with ~ or ..
        yield from _in_folder(Path(text))
    elif os.path.exists(text):  # noqa: PTH110
        yield os.path.abspath(text)  # noqa: PTH100 - links stay as they are
    elif _MAGIC.search(text):
        for name in sorted(glob.iglob(text, recursive=True)):  # noqa: PTH207 - absolute ones too
            if os.path.isfile(name):  # noqa: PTH113
                yield os.path.abspath(name)  # noqa: PTH100


def _known_already(text: str, found: Mapping[str, None]) -> bool:
    return any(source in found for source in _sources(text))


def _in_folder(folder: Path) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            suffix = _suffix(name, "")
            if (suffix and suffix in FORMATS) or _MANUAL.fullmatch(suffix):
                yield os.path.abspath(os.path.join(root, name))  # noqa: PTH100, PTH118


def _suffix(source: str, kind: str) -> str:
    """Return the suffix that tells the format, of a file or of what a server says it sends."""
    if kind and not kind.startswith(("application/octet-stream", "text/plain")):
        return mimetypes.guess_extension(kind) or ""
    name = PurePath(urlsplit(source).path if is_url(source) else source)
    suffix = name.suffix.lower()
    return PurePath(name.stem).suffix.lower() if suffix == ".gz" else suffix


def _moment(header: str) -> str:
    """Return the time in a header of HTTP in the form of ISO 8601; "" when it is none."""
    try:
        return parsedate_to_datetime(header).isoformat(timespec="seconds")
    except ValueError:
        return ""


def _completed(document: Document, facts: Mapping[str, Field]) -> Document:
    """Return a document with a title and with what the file itself tells."""
    if not document.text.strip():
        raise DocumentError(
            f"{document.source!r} holds no text. If its pages are pictures of text, as of a scanner, "
            f"let them be recognised first.",
            source=document.source,
        )
    title = document.title or next((each.title for each in document.headings), "")
    title = " ".join(unicodedata.normalize("NFC", title).split())[:200]
    known = {name: value for name, value in document.metadata.items() if value != ""}
    kept = {name: value for name, value in facts.items() if name != "type"}
    if (
        "language" not in known
        and document.kind == "prose"
        and (said := language_of(document.text))
    ):
        known["language"] = said
    return replace(document, title=title or _stem(document.source), metadata=kept | known)


def _stem(source: str) -> str:
    name = PurePath(urlsplit(source).path if is_url(source) else source)
    return PurePath(name.stem).stem if name.suffix == ".gz" else name.stem
