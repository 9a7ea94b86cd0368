"""The pieces of a streamed effect, written down without a secret that is cut in two by where they end."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from atlas.core.effects.codec import REDACTED, Redactor
from atlas.core.schema.canonical import canonical_text

__all__ = ["PieceWriter"]

_Place: TypeAlias = tuple[str | int, ...]


class PieceWriter:
    """Writes down the pieces of one stream, in order.

    A secret may be cut anywhere: one piece ends with the beginning of it, the next goes on. So what is
    hidden is looked for in the texts at the same place of successive pieces (the piece itself, its
    field ``text``, its ``call.arguments``; of a list, what follows the same name in it, or is in the same
    place of its items) as if they were one. A piece that ends with what may be the
    beginning of a secret is kept back, and what follows it, until that is known. As many pieces come as
    were given, in their order, and those without a secret as they were.

    Args:
        redactor: Of the effect.
    """

    __slots__ = ("_held", "_redactor", "_strands")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held: deque[_Piece] = deque()
        self._strands: dict[_Place, _Strand] = {}

    # Any: whatever the effect gives
    def take(self, given: Any) -> Iterable[str]:
        """Return the texts of the pieces that may be written now that this one has come.

        Raises:
            TypeError: It has no JSON form, or a secret in it.
        """
        redactor = self._redactor
        if not redactor.hidden:
            text = redactor.result(given)
            if not redactor.hidden:  # which the piece itself may have held
                return (text,)
        piece = _Piece(redactor.plain_result(given))
        self._held.append(piece)
        for place, part in piece.parts():
            strand = self._strands.get(place)
            if strand is None:
                strand = self._strands[place] = _Strand(of_bytes=part.of_bytes)
            strand.add(part)
            strand.settle(redactor.hidden)
        return self._settled()

    def rest(self) -> Iterable[str]:
        """Return the texts of the pieces kept back: no more will come."""
        for strand in self._strands.values():
            strand.settle(self._redactor.hidden, is_whole=True)
        return self._settled()

    def _settled(self) -> list[str]:
        texts = []
        while self._held and not self._held[0].open_parts:
            texts.append(self._redactor.text(self._held.popleft().value()))
        return texts


# Any: JSON values, and what holds them
class _Piece:
    """A piece as a JSON value, of which texts are replaced before it is written."""

    __slots__ = ("_messages", "_root", "is_cut", "open_parts")

    def __init__(self, value: Any) -> None:
        self._root = [value]
        self._messages: list[tuple[dict[str, Any], Any]] = []
        self.open_parts = 0
        self.is_cut = False

    def parts(self) -> Iterator[tuple[_Place, _Part]]:
        """Yield its texts, and where each is."""
        return self._parts_of(self._root, 0, ())

    def value(self) -> Any:
        """Return it without what was cut out."""
        if self.is_cut:
            for holder, message in self._messages:
                holder["$message"] = canonical_text(message)
        return self._root[0]

    def _parts_of(self, holder: Any, key: Any, place: _Place) -> Iterator[tuple[_Place, _Part]]:
        value = holder[key]
        if type(value) is str:
            yield place, _Part(self, holder, key, value)
        elif type(value) is list:
            # what comes after a name is one of its kind; items with parts are like pieces themselves
            named = (*place, value[0]) if value and type(value[0]) is str else place
            for at, item in enumerate(value):
                here = (*named, at) if type(item) is str and at else place
                yield from self._parts_of(value, at, here)
        elif type(value) is dict:
            if len(value) == 1 and "$bytes" in value:
                text = base64.b64decode(value["$bytes"]).decode("latin-1")
                yield (*place, "$bytes"), _Part(self, value, "$bytes", text, of_bytes=True)
            elif len(value) == 1 and "$message" in value:  # JSON in JSON
                opened = [json.loads(value["$message"])]
                self._messages.append((value, opened[0]))
                yield from self._parts_of(opened, 0, (*place, "$message"))
            elif len(value) == 1 and "$value" in value:  # texts of one class belong together
                name = value["$value"][0]
                yield from self._parts_of(value["$value"], 1, (*place, name))
            else:
                # of an object no key means anything
                inside = value["$object"] if len(value) == 1 and "$object" in value else value
                for name in inside:
                    yield from self._parts_of(inside, name, (*place, name))


class _Part:
    """A text in a piece: how much of it is not known, and what is to stand there."""

    __slots__ = ("_holder", "_key", "_written", "left", "of_bytes", "piece", "text")

    def __init__(
        self, piece: _Piece, holder: Any, key: Any, text: str, *, of_bytes: bool = False
    ) -> None:
        self.piece = piece
        self.text = text
        self.of_bytes = of_bytes
        self.left = len(text)
        self._holder = holder
        self._key = key
        self._written: list[str] = []

    def write(self, text: str, length: int) -> None:
        """Have a text stand where the next so many characters are; with the last, put it in its place."""
        self._written.append(text)
        self.left -= length
        if not self.left:
            self.piece.open_parts -= 1
            made = "".join(self._written)
            if made != self.text:
                self.piece.is_cut = True
                if self.of_bytes:
                    made = base64.b64encode(made.encode("latin-1")).decode()
                self._holder[self._key] = made


class _Strand:
    """The texts at one place of successive pieces, from where it is not known whether they hold a secret."""

    __slots__ = ("_of_bytes", "_parts", "_text")

    def __init__(self, *, of_bytes: bool) -> None:
        self._of_bytes = of_bytes
        self._parts: deque[_Part] = deque()
        self._text = ""

    def add(self, part: _Part) -> None:
        """Go on with a text."""
        if part.text:
            part.piece.open_parts += 1
            self._parts.append(part)
            self._text += part.text

    def settle(self, secrets: tuple[str, ...], *, is_whole: bool = False) -> None:
        """Replace the secrets in it, and let go all that is before what may be the beginning of one.

        Args:
            secrets: What is hidden.
            is_whole: Whether nothing follows.
        """
        if not self._text:
            return
        search = _search(secrets, self._of_bytes)
        found, known = search.in_text(self._text, is_whole=is_whole)
        at = 0
        for start, end in found:
            self._write(self._text[at:start])
            self._write(self._text[start:end], REDACTED)
            at = end
        self._write(self._text[at:known])
        self._text = self._text[known:]

    def _write(self, text: str, instead: str | None = None) -> None:
        """Write the next characters where they belong; something else, once, where they begin."""
        at = 0
        while at < len(text):
            part = self._parts[0]
            length = min(part.left, len(text) - at)
            part.write(text[at : at + length] if instead is None else instead, length)
            at += length
            if instead is not None:
                instead = ""
            if not part.left:
                self._parts.popleft()


class _Search:
    """Finds secrets in texts; one for the same secrets."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._most = max(map(len, secrets)) - 1
        longest_first = sorted(secrets, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first)))
        self._first = re.compile(f"[{re.escape(''.join({secret[0] for secret in secrets}))}]")

    def in_text(self, text: str, *, is_whole: bool) -> tuple[list[tuple[int, int]], int]:
        """Return where secrets are in a text, and up to where that is known whatever follows."""
        found = [match.span() for match in self._whole.finditer(text)]
        if is_whole:
            return found, len(text)
        for match in self._first.finditer(text, max(0, len(text) - self._most)):
            at = match.start()
            if any(start < at < end for start, end in found):
                continue
            tail = text[at:]
            if any(secret.startswith(tail) and secret != tail for secret in self._secrets):
                return [span for span in found if span[1] <= at], at
        return found, len(text)


@functools.lru_cache(maxsize=64)
def _search(secrets: tuple[str, ...], of_bytes: bool) -> _Search:
    if of_bytes:  # which are searched as if they were Latin-1
        secrets = tuple(one.encode("utf-8", "surrogatepass").decode("latin-1") for one in secrets)
    return _Search(secrets)
