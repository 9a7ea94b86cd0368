"""Secrets that must not be written down, and how they are found in texts, whole or cut in pieces.

`Secrets` holds the values. `StreamRedactor` finds them in texts that come piece by piece, such as the
tokens of a model: a piece that ends with what may be the beginning of a secret waits for the next one.
Nothing is joined and no piece is left out: there are as many as before, in the same order.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar
from urllib.parse import quote as url_quote

from atlas.errors import ConfigurationError

__all__ = [
    "REDACTED",
    "SHORTEST",
    "Secrets",
    "StreamRedactor",
    "names_a_secret",
    "secrets_among",
    "spellings",
    "texts_in",
    "with_clean_keys",
    "with_texts",
]

T = TypeVar("T")

REDACTED: Final = "<redacted>"
"""What stands for a value that is not written down."""

SHORTEST: Final = 4
"""Characters; what is shorter would be found, and replaced, in any text."""

_SECRET_NAME: Final = re.compile(
    r"(^|_|-)(key|token|secret|password|passwd|credentials?|authorization)$", re.IGNORECASE
)

_IDLE_PIECES: Final = 64
"""How many pieces that have nothing to do with a beginning may wait for how that goes on."""


class Secrets:
    """Texts that are to be replaced wherever they would be written down.

    Each is looked for in the spellings in which it may be quoted: as it is, as Python and JSON write
    it in quotation marks, once and twice, and as in a URL. Any thread may add some, at any time; they
    are found from then on.

    Args:
        values: The texts, of at least four characters.

    Attributes:
        values: The spellings looked for, the longest first; another tuple when some were added.

    Raises:
        ConfigurationError: One is no text, or too short. It is not shown.
    """

    __slots__ = ("_added", "_firsts", "_longest", "values")

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._added = threading.Lock()
        self._become(())
        self.add(*values)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __repr__(self) -> str:
        return f"<Secrets {len(self.values)} spellings>"

    def add(self, *values: str) -> None:
        """Look for these too.

        Raises:
            ConfigurationError: One is no text, or too short. It is not shown.
        """
        for value in values:
            given: object = value
            if not isinstance(given, str):
                raise ConfigurationError(
                    f"A secret is a text, and one that was given is a {type(given).__name__}. Give "
                    f"it as a text."
                )
            if len(given) < SHORTEST:
                raise ConfigurationError(
                    f"A secret has at least {SHORTEST} characters, and one that was given has "
                    f"{len(given)}: it would be found in any text. Leave it out of `secrets`."
                )
        self._look_for(spelling for value in values for spelling in spellings(value))

    def with_spellings(self, found: Iterable[str]) -> Secrets:
        """Return these and others, in the very spellings given; what is too short is left out."""
        more = Secrets()
        more._look_for((*self.values, *found))
        return more

    def redacted(self, text: str) -> str:
        """Return a text with `REDACTED` in the place of every secret: the first, the longest first."""
        if not self.values:
            return text
        parts: list[str] = []
        end = 0
        while (match := self.first_in(text, end)) is not None:
            parts += (text[end : match[0]], REDACTED)
            end = match[1]
        return "".join((*parts, text[end:])) if parts else text

    def first_in(self, text: str, start: int = 0) -> tuple[int, int] | None:
        """Return from where to where the first secret of a text goes; the longest that begins there."""
        found: tuple[int, int] | None = None
        for value in self.values:  # the longest come first
            end = len(text) if found is None else found[0] - 1 + len(value)
            at = text.find(value, start, end)
            if at >= 0:
                found = at, at + len(value)
        return found

    def is_far_from(self, text: str) -> bool:
        """Whether nothing of a secret can begin in a text; it may be so without being told."""
        return self._firsts.isdisjoint(text)

    def begun_in(self, text: str, start: int = 0) -> int:
        """Return where the end of a text that may be the beginning of a secret starts, else its length."""
        firsts, values = self._firsts, self.values
        for at in range(max(start, len(text) - self._longest + 1), len(text)):
            if text[at] in firsts:
                end = text[at:]
                if any(len(value) > len(end) and value.startswith(end) for value in values):
                    return at
        return len(text)

    def is_much(self, beginning: str) -> bool:
        """Whether a beginning of a secret is half of it, or more."""
        begun = (len(value) for value in self.values if value.startswith(beginning))
        return 2 * len(beginning) >= min(begun, default=2 * len(beginning) + 1)

    @property
    def longest(self) -> int:
        """Characters of the longest spelling."""
        return self._longest

    def _look_for(self, found: Iterable[str]) -> None:
        # One that is in what stands for it would show in any case.
        known = {each for each in found if len(each) >= SHORTEST and each not in REDACTED}
        with self._added:
            known.update(self.values)
            self._become(tuple(sorted(known, key=lambda each: (-len(each), each))))

    def _become(self, values: tuple[str, ...]) -> None:
        self.values: tuple[str, ...] = values
        self._firsts = frozenset(value[0] for value in values)
        self._longest = max(map(len, values), default=0)


def spellings(text: str) -> Iterator[str]:
    """Return a text, and how it may be quoted elsewhere: in errors as `repr`, in JSON, in a URL.

    Also how it reads in bytes taken for Latin-1, as which they are searched.
    """
    yield text
    yield text.encode("utf-8", "surrogatepass").decode("latin-1")
    yield json.dumps(text)[1:-1]
    quoted = repr(text)[1:-1]
    yield quoted
    yield repr(quoted)[1:-1]
    in_json = json.dumps(text, ensure_ascii=False)[1:-1]
    yield in_json
    yield json.dumps(in_json, ensure_ascii=False)[1:-1]
    yield url_quote(text, safe="", errors="replace")


def names_a_secret(name: str) -> bool:
    """Return whether what has this name is a secret: it ends in key, token, password or the like."""
    return _SECRET_NAME.search(name) is not None


def secrets_among(settings: Mapping[str, object], *, shortest: int) -> Iterator[str]:
    """Return the values of those settings, or environment variables, whose names say so.

    Args:
        settings: Values by name. What is no text, or is the path of a file, is none.
        shortest: Characters; shorter ones are left out.
    """
    for name, value in settings.items():
        if not isinstance(value, str) or len(value) < shortest or value.startswith(("/", "~")):
            continue
        if names_a_secret(name):
            yield value


# -- texts that come in pieces --------------------------------------------------------------------


class _Text:
    """A text of an item: what is settled of it, and what follows, of which it is not known yet.

    One that is ``written`` already is there for what it may be the beginning of.
    """

    __slots__ = ("open", "settled", "written")

    def __init__(self, text: str, *, written: bool = False) -> None:
        self.settled = ""
        self.open = text
        self.written = written


class StreamRedactor(Generic[T]):
    """Replaces secrets in the texts of items that come one after another, also those cut between two.

    Texts of one channel follow each other; so, joined, they are what `Secrets.redacted` makes of the
    joined texts that came, and `REDACTED` stands in the text in which the secret began. An item is
    held back while one of its texts, or one of an item before it, may go on as a secret.

    That ends at the latest when ``cut`` is called, or when many more items wait than a secret has
    characters: then a beginning is replaced if it is half of a secret or more, and shown else;
    whichever it was, what follows of the secret is not shown. Not thread-safe.

    Args:
        secrets: What to look for.

    Attributes:
        secrets: As given; may be replaced.
    """

    __slots__ = ("_channels", "_waiting", "secrets")

    def __init__(self, secrets: Secrets) -> None:
        self.secrets: Secrets = secrets
        self._channels: dict[Hashable, list[_Text]] = {}
        self._waiting: deque[tuple[T, Sequence[str], list[_Text]]] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether nothing that came before has to do with what comes next."""
        return not (self._channels or self._waiting)

    def feed(
        self, item: T, texts: Sequence[tuple[Hashable, str]]
    ) -> list[tuple[T, Sequence[str] | None]]:
        """Take the next item; return those that wait no more, with their new texts, None if unchanged.

        Args:
            item: It.
            texts: Its texts, each with its channel.
        """
        secrets = self.secrets
        if not self._waiting and not self._channels:
            for _, text in texts:
                if not secrets.is_far_from(text):
                    break
            else:
                return [(item, None)]  # as nearly all are
        parts = [self._take(channel, text) for channel, text in texts]
        self._waiting.append((item, [text for _, text in texts], parts))
        if len(self._waiting) > _IDLE_PIECES + secrets.longest:
            return self.cut()
        return self._released()

    def cut(self) -> list[tuple[T, Sequence[str] | None]]:
        """Return all that wait, at once, in the middle of what may be a secret."""
        for channel, parts in list(self._channels.items()):
            begun = "".join([part.open for part in parts])
            is_hidden = self.secrets.first_in(begun) is not None or self.secrets.is_much(begun)
            self._settle(parts, len(begun), is_shown=not is_hidden)
            self._channels[channel] = [_Text(begun, written=True)]
        return self._released()

    def flush(self) -> list[tuple[T, Sequence[str] | None]]:
        """Return all that wait: nothing comes any more, so that no beginning is one."""
        for parts in self._channels.values():
            self._replace(parts, is_last=True)
        self._channels.clear()
        return self._released()

    def _take(self, channel: Hashable, text: str) -> _Text:
        part = _Text(text)
        parts = self._channels.setdefault(channel, [])
        parts.append(part)
        self._replace(parts)
        if not parts:
            del self._channels[channel]
        return part

    def _replace(self, parts: list[_Text], *, is_last: bool = False) -> None:
        """Settle what can be settled of the texts of a channel, and drop those texts from it."""
        secrets = self.secrets
        text = "".join([part.open for part in parts])
        at = 0
        while True:
            begun = len(text) if is_last else secrets.begun_in(text, at)
            match = secrets.first_in(text, at)
            # What begins before it is decided: a longer secret would have begun there too.
            if match is None or match[0] >= begun:
                break
            self._settle(parts, match[0] - at)
            self._settle(parts, match[1] - match[0], is_shown=False)
            at = match[1]
        self._settle(parts, begun - at)
        while parts and not parts[0].open:
            parts.pop(0)

    def _settle(self, parts: list[_Text], length: int, *, is_shown: bool = True) -> None:
        """Settle so many characters of the texts, shown or replaced."""
        is_told = is_shown
        while length:
            while not parts[0].open:
                parts.pop(0)
            part = parts[0]
            settled, part.open = part.open[:length], part.open[length:]
            length -= len(settled)
            if is_shown:
                part.settled += settled
            elif not is_told and not part.written:
                part.settled += REDACTED
                is_told = True

    def _released(self) -> list[tuple[T, Sequence[str] | None]]:
        waiting = self._waiting
        released: list[tuple[T, Sequence[str] | None]] = []
        while waiting and not any(part.open for part in waiting[0][2]):
            item, before, parts = waiting.popleft()
            after = [part.settled for part in parts]
            released.append((item, None if after == before else after))
        return released


# Any: JSON of any shape, here and below
def texts_in(value: Any, path: tuple[Hashable, ...] = ()) -> Iterator[tuple[Hashable, str]]:
    """Return the texts in a JSON value, each with its path; keys are none of them."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_in(item, (*path, key))
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from texts_in(item, (*path, at))


def with_texts(value: Any, texts: Iterator[str]) -> Any:
    """Return a JSON value with other texts in the place of those that `texts_in` finds."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, dict):
        return {key: with_texts(item, texts) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_texts(item, texts) for item in value]
    return value


def with_clean_keys(value: Any, secrets: Secrets) -> Any:
    """Return a JSON value without secrets in the keys of its objects."""
    if isinstance(value, list):
        return [with_clean_keys(item, secrets) for item in value]
    if isinstance(value, dict):
        return {
            secrets.redacted(key): with_clean_keys(item, secrets) for key, item in value.items()
        }
    return value
