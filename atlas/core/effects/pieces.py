"""The pieces of a streamed effect, written down without a secret that is cut in two by where they end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

from atlas.core.effects.codec import Redactor, bytes_text, text_of_bytes
from atlas.core.redaction import StreamRedactor
from atlas.core.schema.canonical import canonical_text

__all__ = ["PieceWriter"]

_Place: TypeAlias = tuple[str | int, ...]


class PieceWriter:
    """Writes down the pieces of one stream, in order.

    Texts at the same place of successive pieces (the piece itself, its field ``text``, its
    ``call.arguments``; of a list, what follows the same name in it, or is in the same place of its
    items) follow each other, so that a secret is found wherever they cut it: see `StreamRedactor`.

    Args:
        redactor: Of the effect.
    """

    __slots__ = ("_redactor", "_stream")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._stream: StreamRedactor[_Piece] | None = None  # most streams never have a secret

    # Any: whatever the effect gives
    def take(self, given: Any) -> Iterable[str]:
        """Return the texts of the pieces that may be written now that this one has come.

        Raises:
            TypeError: It has no JSON form, or a secret in it.
        """
        redactor = self._redactor
        if not redactor.secrets.values:
            text = redactor.result(given)
            if not redactor.secrets.values:  # which the piece itself may have held
                return (text,)
        piece = _Piece(redactor.plain_result(given))
        if self._stream is None:
            self._stream = StreamRedactor(redactor.secrets)
        self._stream.secrets = redactor.secrets
        return self._written(self._stream.feed(piece, piece.texts))

    def rest(self) -> Iterable[str]:
        """Return the texts of the pieces kept back: no more will come."""
        return () if self._stream is None else self._written(self._stream.flush())

    def _written(self, pieces: Iterable[tuple[_Piece, Sequence[str] | None]]) -> list[str]:
        return [self._redactor.text(piece.value(texts)) for piece, texts in pieces]


# Any: JSON values, and what holds them
class _Piece:
    """A piece as a JSON value of its own, of which texts can be replaced.

    Attributes:
        texts: Its texts, and where each is.
    """

    __slots__ = ("_holders", "_messages", "_root", "texts")

    def __init__(self, value: Any) -> None:
        self._root = [value]
        self._holders: list[tuple[Any, Any]] = []
        self._messages: list[tuple[dict[str, Any], list[Any]]] = []
        self.texts: Sequence[tuple[_Place, str]] = list(self._texts_in(self._root, 0, ()))

    def value(self, texts: Sequence[str] | None) -> Any:
        """Return it, with other texts in the place of its own."""
        if texts is not None:
            for (holder, key), text in zip(self._holders, texts, strict=True):
                holder[key] = bytes_text(text) if key == "$bytes" else text
            for holder, message in self._messages:
                holder["$message"] = canonical_text(message[0])
        return self._root[0]

    def _texts_in(self, holder: Any, key: Any, place: _Place) -> Iterator[tuple[_Place, str]]:
        value = holder[key]
        if type(value) is str:
            self._holders.append((holder, key))
            yield place, value
        elif type(value) is list:
            # what comes after a name is one of its kind; items with parts are like pieces themselves
            named = (*place, value[0]) if value and type(value[0]) is str else place
            for at, item in enumerate(value):
                there = (*named, at) if type(item) is str and at else place
                yield from self._texts_in(value, at, there)
        elif type(value) is dict:
            yield from self._texts_of(value, place)

    def _texts_of(self, value: dict[str, Any], place: _Place) -> Iterator[tuple[_Place, str]]:
        sign = next(iter(value)) if len(value) == 1 else ""
        if sign == "$bytes":
            self._holders.append((value, sign))
            yield (*place, sign), text_of_bytes(value[sign])
        elif sign == "$message":  # JSON in JSON
            opened = [json.loads(value[sign])]
            self._messages.append((value, opened))
            yield from self._texts_in(opened, 0, (*place, sign))
        elif sign == "$value":  # texts of one class belong together
            yield from self._texts_in(value[sign], 1, (*place, value[sign][0]))
        else:
            inside = value[sign] if sign == "$object" else value  # in which no key means anything
            for name in inside:
                yield from self._texts_in(inside, name, (*place, name))
