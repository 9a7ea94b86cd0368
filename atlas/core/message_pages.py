"""Pages: many messages of one run in one record of the log.

A token is a message of some four letters; a record of its own, with hashes, ids and keys, would cost
fifty times that. A page says everything that messages have in common once, tells sequence and time
as differences, keeps many messages of one name by columns, and is compressed as a whole. What comes out is equal to what went in: fields, ids,
times, causes, headers. Only secrets do not go in: a field marked `SECRET` is replaced by a marker, and
known secrets are, see `PageRedactor`.

The text inside is JSON, so that a page can be read without Atlas: see `page_text` for its keys. Pages
that were written at once, one after the other, become one with a line of text for each, see `joined`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import accumulate, groupby, pairwise
from operator import itemgetter
from typing import Any, Final, TypeAlias

from atlas.core.messages import (
    FrozenDict,
    Message,
    Origin,
    OriginIndex,
    message_id,
    spelled_out,
    stamp,
    time_of,
)
from atlas.core.page_words import WORDS
from atlas.core.perspective import reaches_secrets, without_secrets
from atlas.core.redaction import (
    REDACTED,
    SHORTEST,
    Secrets,
    StreamRedactor,
    texts_in,
    with_clean_keys,
    with_texts,
)
from atlas.core.schema.canonical import canonical_text, quote
from atlas.core.schema.codec import UnknownMessage, fields_text, reader_of
from atlas.errors import LogFormatError, ValidationError

__all__ = [
    "MARKER",
    "OUTSIDE",
    "PAGE",
    "PageRedactor",
    "ends_with",
    "joined",
    "lines_as_they_come",
    "logical_lines",
    "may_tell_of",
    "pack",
    "page_text",
    "plain",
    "pressed",
    "unpack",
]

PAGE: Final = "atlas.page@1"
"""Name of the records that hold pages."""

MARKER: Final = "[redacted]"
"""What a page holds in the place of a secret."""

_PLAIN: Final = b"j"
_COMPRESSED: Final = b"z"
_WITH_WORDS: Final = b"w"
_BARE: Final = b"d"
"""Deflate without the ten bytes that zlib puts around it: records have a digest of their own."""

_KINDS: Final = (_PLAIN, _COMPRESSED, _WITH_WORDS, _BARE)
_WORTH_COMPRESSING: Final = 200
_SMALL: Final = 4096
_WORTH_COLUMNS: Final = 4
_LINKS: Final = ("later", "longer", "cause", "correlation")
_SCALARS: Final = frozenset({str, int, bool, type(None)})
_HALVES: Final = re.compile("[\ud800-\udfff]")

_ROW: Final = "[%s,%s,%s,%s,%s,%s,%s%s]"
"""The text of a `_Row`."""

# Any: JSON of any shape.
_Column: TypeAlias = "dict[str, Any]"


_NO_ALIASES: Final[Mapping[str, str]] = FrozenDict()
_NO_SECRETS: Final = Secrets()

OUTSIDE: Final = "atlas-outside"
"""Header of a message that somebody else published because of the run, not the run itself: it is no
part of what a replay does again."""


def pack(
    run: str,
    messages: Sequence[Message],
    outside: AbstractSet[int] = frozenset(),
    aliases: Mapping[str, str] = _NO_ALIASES,
    redactor: PageRedactor | None = None,
) -> bytes:
    """Return the bytes of a page: its `page_text`, `pressed`; arguments and errors as for that."""
    return pressed(page_text(run, messages, outside, aliases, redactor))


def page_text(
    run: str,
    messages: Sequence[Message],
    outside: AbstractSet[int] = frozenset(),
    aliases: Mapping[str, str] = _NO_ALIASES,
    redactor: PageRedactor | None = None,
) -> bytes:
    """Return the text of a page, in UTF-8.

    It is an object: ``run``; ``time``, that of the first message in ns; ``buses``, ``names``
    (name and version) and ``ids``, to which entries refer by index; ``entries``: for each message the
    index of its name, the index of its bus, sequence and time as differences from the entry before
    (the first: from ``time``), the index of the id of its cause and of its correlation (null: none, or
    itself), its fields, and then, if there is any of them, its source and headers. An id is a text, or
    what it is made of: index of the bus, sequence, and time as difference from ``time``. Many messages of one name in a row are one entry, an object: ``name``,
    ``bus`` and ``count``, and a column each for ``later``, ``longer``, ``cause``, ``correlation`` and every one of the
    ``fields``. A column is ``all``, the one value of them all; ``steps``, numbers as differences from the
    one before; ``text`` and ``lengths``, texts joined; or ``each``, the values.

    Args:
        run: The run all of them belong to.
        messages: Published messages.
        outside: The places among them of those that get the header `OUTSIDE`.
        aliases: Ids under which causes are stored, by the ids they are referred to with.
        redactor: Keeps known secrets out of it.

    Raises:
        SchemaError: The class of a message cannot be written.
    """
    redactor = redactor or PageRedactor(_NO_SECRETS)
    fields = redactor.fields(messages)
    began = time_of(messages[0]) or 0 if messages else 0
    buses: dict[int | str, int] = {}
    names: dict[tuple[str, int], int] = {}
    references = _References(aliases, buses, began)
    numbers, number = references.numbers, references.number
    # Texts, not values: a commit waits for this, and one text is made of them all in the end.
    rows: list[_Row] = []
    last_sequence, last_time = 0, began
    for place, each in enumerate(messages):
        known = each._stamp
        assert known is not None
        origin, causation, correlation, _, source, headers, _ = spelled_out(known)
        if place in outside:
            headers = {**headers, OUTSIDE: ""}
        bus, sequence, time_ns = (origin, 0, began) if isinstance(origin, str) else origin
        if causation is None:
            cause: int | str = "null"
        elif (known_cause := numbers.get(causation)) is not None:
            cause = known_cause
        else:
            cause = number(causation)
        if correlation is origin or _same(correlation, origin):
            together: int | str = "null"
        elif (known_correlation := numbers.get(correlation)) is not None:
            together = known_correlation
        else:
            together = number(correlation)
        name = _known(each)
        rows.append(
            (
                names.setdefault(name, len(names)),
                buses.setdefault(bus, len(buses)),
                sequence - last_sequence,
                time_ns - last_time,
                cause,
                together,
                fields[place],
                "" if source is None and not headers else _more(source, headers, redactor),
            )
        )
        last_sequence, last_time = sequence, time_ns
    has_columns = len(rows) - len(names) >= _WORTH_COLUMNS - 1  # there may be so many of one name
    entries = _written(rows) if has_columns else [_ROW % row for row in rows]
    told = ",".join([f"[{quote(name)},{version}]" for name, version in names])
    text = (
        f'{{"buses":{canonical_text([*buses])},"ids":[{",".join(references.ids)}],"names":[{told}],'
        f'"run":{quote(run)},"time":{began},"entries":[{",".join(entries)}]}}'
    )
    return text.encode("utf-8", "backslashreplace")


def pressed(text: bytes) -> bytes:
    """Return a page with this text."""
    if len(text) < _WORTH_COMPRESSING:
        return plain(text)
    return _BARE + _compressed(text)


def plain(text: bytes) -> bytes:
    """Return the page with this text that is made quickest."""
    return _PLAIN + text


def joined(pages: Sequence[bytes]) -> bytes:
    """Return one page with the messages of several, which follow one another.

    Raises:
        LogFormatError: One is no page.
    """
    text = b"\n".join([_raw_text(page) for page in pages])
    # A third of the time, for an eighth more bytes: what was written bit by bit is joined while its run goes on.
    return pressed(text) if len(text) < _SMALL else _BARE + _compressed(text, 3)


def ends_with(page: bytes, other: bytes) -> bool:
    """Return whether a page is another one, or what that was joined to.

    Raises:
        LogFormatError: One is no page.
    """
    text, end = _raw_text(page), _raw_text(other)
    return text == end or text.endswith(b"\n" + end)


def _more(source: str | None, headers: Mapping[str, str], redactor: PageRedactor) -> str:
    said = "null" if source is None else quote(redactor.shown(source))
    told = {key: redactor.shown(text) for key, text in headers.items()}
    return f",{said},{canonical_text(told)}"


# Half a megabyte of tables, which is the rule, is no use for a page that ends before they are filled, and
# costs more than the compressing. To copy small ones costs less than to enter the words.
_FOR_SMALL: Final = zlib.compressobj(6, zlib.DEFLATED, -12, 5, zdict=WORDS)


def _compressed(data: bytes, level: int = 6) -> bytes:
    if len(data) <= _SMALL:
        made = _FOR_SMALL.copy()
    else:
        made = zlib.compressobj(level, zlib.DEFLATED, -15, 8, zdict=WORDS)
    return made.compress(data) + made.flush()


def _known(each: Message) -> tuple[str, int]:
    if isinstance(each, UnknownMessage):
        return each.name, each.version
    return each.message_name, each.message_version


def _fields(each: Message) -> str:
    if isinstance(each, UnknownMessage):
        return canonical_text(each.fields)
    cls: Any = type(each)  # to mypy, the type of an object is not hashable
    if not reaches_secrets(cls):
        return fields_text(each)
    return canonical_text(without_secrets(each, MARKER))


class PageRedactor:
    """Keeps known secrets out of the messages of one run, page by page.

    A secret that two messages of one name cut between them, in the same field, is found where both are
    on one page. Where the page had to be written in between, less than half of it is shown.

    Args:
        secrets: The secrets.
    """

    __slots__ = ("_cut", "_hint", "_hint_of", "_secrets")

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._cut: StreamRedactor[int] = StreamRedactor(secrets)
        self._hint = re.compile("")
        self._hint_of: tuple[str, ...] = ()

    def shown(self, text: str) -> str:
        """Return a text of the envelope without the secrets in it."""
        return self._secrets.redacted(text)

    def fields(self, messages: Sequence[Message]) -> list[str]:
        """Return the fields of each message of a page, as canonical JSON text.

        Raises:
            SchemaError: The class of a message cannot be written.
        """
        written = [_fields(each) for each in messages]
        if not self._secrets:
            return written
        hint, cut = self._found_by(), self._cut
        values: dict[int, Any] = {}  # Any: JSON of any shape
        for place, text in enumerate(written):
            if cut.is_idle and not hint.search(text):
                continue  # as nearly all
            values[place] = value = json.loads(text)
            name = _known(messages[place])
            texts = [((name, path), part) for path, part in texts_in(value)]
            self._replace(written, values, cut.feed(place, texts))
        self._replace(written, values, cut.cut())
        return written

    def _replace(
        self,
        written: list[str],
        values: Mapping[int, Any],
        found: Iterable[tuple[int, Sequence[str] | None]],
    ) -> None:
        for place, texts in found:
            value = values[place] if texts is None else with_texts(values[place], iter(texts))
            cleaned = with_clean_keys(value, self._secrets)
            if texts is not None or cleaned != value:
                written[place] = canonical_text(cleaned)

    def _found_by(self) -> re.Pattern[str]:
        """Return what is found in the JSON text of all that may hold a secret, or its beginning."""
        known = self._secrets.values
        if known is not self._hint_of:
            looked_for: set[str] = set()
            for value in known:
                first, *_ = parts = [quote(value[:n])[1:-1] for n in range(SHORTEST, 0, -1)]
                looked_for.add(re.escape(first))
                # a shorter beginning counts at the end of a text, which no key is
                looked_for.update(f'{re.escape(part)}"(?!:)' for part in parts)
            self._hint = re.compile("|".join(sorted(looked_for)))
            self._hint_of = known
        return self._hint


def _same(one: Origin, other: Origin) -> bool:
    if one == other:
        return True
    # Two places of buses are two messages; to make their ids, for every message, takes almost as long
    # as all the rest.
    if type(one) is tuple and type(other) is tuple and type(one[0]) is type(other[0]) is int:
        return False
    return message_id(one) == message_id(other)


class _References:
    """Numbers the messages that those of a page refer to, as they come.

    Attributes:
        ids: What tells them apart, as JSON texts; see `page_text`.
        numbers: By origin, for whoever asks so often that a call is too much.
    """

    __slots__ = ("_aliases", "_began", "_buses", "ids", "numbers")

    def __init__(self, aliases: Mapping[str, str], buses: dict[int | str, int], began: int) -> None:
        self.ids: list[str] = []
        self.numbers: dict[Origin, int] = {}
        self._aliases = aliases
        self._buses = buses
        self._began = began

    def number(self, origin: Origin) -> int:
        found = self.numbers.get(origin)
        if found is None:
            found = self.numbers[origin] = len(self.ids)
            self.ids.append(self._told(origin))
        return found

    def _told(self, origin: Origin) -> str:
        if not self._aliases and not isinstance(origin, str) and type(origin[0]) is int:
            # Its id is made of these, which are shorter, and quicker written.
            bus, sequence, time_ns = origin
            at = self._buses.setdefault(bus, len(self._buses))
            return f"[{at},{sequence},{time_ns - self._began}]"
        known = message_id(origin)
        return quote(self._aliases.get(known, known))


_Row: TypeAlias = "tuple[int, int, int, int, int | str, int | str, str, str]"
"""An entry: index of the name and of the bus, sequence and time, cause and correlation, fields and what
follows them as JSON text."""


def _written(rows: Sequence[_Row]) -> Iterator[str]:
    for (name, bus, more), group in groupby(rows, itemgetter(0, 1, -1)):
        several = list(group)
        fields = _columns_of(several) if not more and len(several) >= _WORTH_COLUMNS else None
        if fields is None:
            yield from [_ROW % row for row in several]
            continue
        links = {
            link: _link_column([row[place] for row in several])
            for place, link in enumerate(_LINKS, 2)
        }
        entry = {"name": name, "bus": bus, "count": len(several), "fields": fields, **links}
        yield canonical_text(entry)


def _columns_of(rows: Sequence[_Row]) -> dict[str, _Column] | None:
    """Return the fields of messages of one name, column by column; None: they do not have the same."""
    # One call of the parser for all.
    found = json.loads(f"[{','.join([row[6] for row in rows])}]")
    first = found[0]
    if not isinstance(first, dict) or any(
        not isinstance(each, dict) or each.keys() != first.keys() for each in found
    ):
        return None
    return {name: _column([each[name] for each in found]) for name in first}


def _link_column(links: list[Any]) -> _Column:
    values = [None if link == "null" else link for link in links]
    return {"all": values[0]} if len(set(values)) == 1 else {"each": values}


def _column(values: list[Any]) -> _Column:
    first, kinds = values[0], set(map(type, values))
    if len(kinds) == 1 and kinds <= _SCALARS and values.count(first) == len(values):
        return {"all": first}
    if kinds == {int}:
        return {"steps": [first, *(after - before for before, after in pairwise(values))]}
    if kinds == {str}:
        text = "".join(values)
        # Halves of a character in two texts would be one when they are joined.
        if text.isascii() or not _HALVES.search(text):
            return {"text": text, "lengths": [len(each) for each in values]}
    return {"each": values}


def may_tell_of(data: bytes, name: str) -> bool:
    """Return False if no message of a page has this name, without reading any.

    Raises:
        LogFormatError: The bytes are no page.
    """
    return quote(name) in _text_of(data)


def unpack(data: bytes) -> list[Message]:
    """Return the messages of a page, as today's classes, with their metadata.

    A message whose name or version this process does not know comes as an `UnknownMessage`; so does
    one whose class refuses the marker that stands in the place of a secret.

    Raises:
        LogFormatError: The bytes are no page.
        ValidationError: A message is not what its class allows.
        MigrationError: No chain of upcasters leads to today's version.
    """
    return [each for page in _opened(data) for each in _messages_on(page)]


def _messages_on(page: Mapping[str, Any]) -> list[Message]:
    run, names, buses = page["run"], page["names"], page["buses"]
    began = page.get("time", 0)  # pages without it are older, and told the time from 0 on
    ids: list[Origin] = [
        each if isinstance(each, str) else (buses[each[0]], each[1], began + each[2])
        for each in page["ids"]
    ]
    readers = [reader_of(*each) for each in names]
    messages: list[Message] = []
    sequence, time_ns = 0, began
    for kind, bus, later, longer, cause, together, fields, *rest in _rows_in(page["entries"]):
        sequence += later
        time_ns += longer
        try:
            made = readers[kind](fields)
        except ValidationError:
            if not _holds_marker(fields):
                raise
            name, version = names[kind]
            made = UnknownMessage(name=name, version=version, fields=fields)
        origin: Origin = (buses[bus], sequence, time_ns)
        source, headers = rest or (None, {})
        stamp(
            made,
            (
                origin,
                None if cause is None else ids[cause],
                origin if together is None else ids[together],
                run,
                source,
                FrozenDict(headers),
                0,
            ),
        )
        messages.append(made)
    return messages


# Any: JSON of any shape.
def _rows_in(entries: Iterable[Any]) -> Iterator[Sequence[Any]]:
    for entry in entries:
        if isinstance(entry, list):
            yield entry
            continue
        name, bus, count, fields = entry["name"], entry["bus"], entry["count"], entry["fields"]
        links = [_values(entry[each], count) for each in _LINKS]
        columns = [_values(column, count) for column in fields.values()]
        for place in range(count):
            of_this = {key: column[place] for key, column in zip(fields, columns, strict=True)}
            yield name, bus, *[link[place] for link in links], of_this


# Any: JSON of any shape.
def _values(column: _Column, count: int) -> Sequence[Any]:
    if "all" in column:
        return [column["all"]] * count
    if "steps" in column:
        return list(accumulate(column["steps"]))
    if "text" in column:
        text, ends = column["text"], accumulate(column["lengths"])
        return [text[start:end] for start, end in pairwise((0, *ends))]
    each: list[Any] = column["each"]
    return each


def _holds_marker(fields: Any) -> bool:  # Any: JSON of any shape
    """Return whether something stands for a secret, which may be what a class refuses."""
    text = canonical_text(fields)
    return MARKER in text or REDACTED in text


def _opened(data: bytes) -> list[dict[str, Any]]:
    lines = _text_of(data).split("\n")
    try:
        pages = [json.loads(line) for line in lines]
    except ValueError as error:
        raise LogFormatError(f"A record called {PAGE} is no page of messages: {error}.") from error
    if data[:1] not in _KINDS or not all(isinstance(page, dict) for page in pages):
        raise LogFormatError(f"A record called {PAGE} is no page of messages: {data[:40]!r}.")
    return pages


def _text_of(data: bytes) -> str:
    try:
        return _raw_text(data).decode()
    except ValueError as error:
        raise LogFormatError(f"A record called {PAGE} is no page of messages: {error}.") from error


def _raw_text(data: bytes) -> bytes:
    try:
        return _expanded(data[:1], data[1:])
    except (zlib.error, ValueError) as error:
        raise LogFormatError(f"A record called {PAGE} is no page of messages: {error}.") from error


def _expanded(kind: bytes, data: bytes) -> bytes:
    # As pages are written, and as they were before.
    if kind == _COMPRESSED:
        return zlib.decompress(data)
    if kind not in (_BARE, _WITH_WORDS):
        return data
    reader = zlib.decompressobj(-15 if kind == _BARE else 15, zdict=WORDS)
    text = reader.decompress(data) + reader.flush()
    if not reader.eof:
        raise ValueError("it is cut off")
    return text


def logical_lines(messages: Iterable[Message], redactor: PageRedactor | None = None) -> list[str]:
    """Return what happened in a run, line by line, without what differs each time it happens.

    Ids become numbers within the run, times and sequences are left out. Two runs in which the same
    happened in the same order give the same lines, byte for byte. What is marked as `OUTSIDE` is
    left out.

    Args:
        messages: Those of the run, in their order.
        redactor: Replaces what is written down of no run, as a page does.
    """
    redactor = redactor or PageRedactor(_NO_SECRETS)
    heads: list[str] = []
    shown: list[Message] = []
    for head, each in _line_heads(messages, redactor):
        heads.append(head)
        shown.append(each)
    return [f"{head},{fields}]" for head, fields in zip(heads, redactor.fields(shown), strict=True)]


def lines_as_they_come(messages: Iterable[Message]) -> Iterator[tuple[str, Message]]:
    """Yield each message that has one of the `logical_lines`, with that line."""
    for head, each in _line_heads(messages, PageRedactor(_NO_SECRETS)):
        yield f"{head},{_fields(each)}]", each


def _line_heads(
    messages: Iterable[Message], redactor: PageRedactor
) -> Iterator[tuple[str, Message]]:
    numbers: OriginIndex[int] = OriginIndex()
    number = 0
    for each in messages:
        assert each._stamp is not None
        origin, causation, correlation, _, source, headers, _ = spelled_out(each._stamp)
        if OUTSIDE in headers:
            continue
        number += 1
        numbers[origin] = number
        name, version = _known(each)
        line = [
            number,
            name,
            version,
            None if causation is None else numbers.get(causation) or "outside",
            None if _same(correlation, origin) else numbers.get(correlation) or "outside",
            source and redactor.shown(source),
            {key: redactor.shown(text) for key, text in headers.items()},
        ]
        yield canonical_text(line)[:-1], each
