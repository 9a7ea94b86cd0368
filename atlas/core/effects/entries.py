"""The journal of a run: what is written while it goes, and how it is read again.

A journal is a sequence of messages. Some are the run's own doing and follow from its code (`Seeded`,
`EffectStarted`, `EffectRead`, `EffectCancelled`); `EffectDelivered` is what the world did, and its place among the others
is the moment at which the run saw it; `EffectNoted` tells people more and means nothing to a replay, except where
it says that a delivery was dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final, Literal, Protocol, TypeAlias

from atlas.core.messages import Event, message
from atlas.errors import EffectError

__all__ = [
    "SILENT",
    "Declared",
    "EffectCancelled",
    "EffectDelivered",
    "EffectNoted",
    "EffectRead",
    "EffectStarted",
    "Entry",
    "Journal",
    "MemoryJournal",
    "RequestStore",
    "RunContinued",
    "RunSeeded",
    "before_pending",
    "cut_at",
    "effective",
    "is_dropped",
    "left_by",
    "rebuild_requests",
    "resume_point",
    "tells_drop",
]

Declared: TypeAlias = Literal["pure", "idempotent", "external"]
"""What performing an effect twice would do: nothing at all, nothing more, or something."""


@message("run.seeded")
class RunSeeded(Event):
    """A run began to take chance and time from here.

    Attributes:
        seed: Of its random numbers and UUIDs; 32 hexadecimal digits.
        moment_ns: The loop's clock then, in ns.
    """

    seed: str
    moment_ns: int


@message("run.continued")
class RunContinued(Event):
    """A run that was broken off goes on, live.

    Attributes:
        kept: How many of the entries before this one still hold; those after them do not.
    """

    kept: int


@message("effect.started")
class EffectStarted(Event):
    """A run asked for an effect.

    The request is the first ``shared`` characters of that of effect ``base``, and then ``rest``; see
    `rebuild_requests`.

    Attributes:
        effect: Its id: the path of the task and a number, ``"0.1:3"``.
        kind: What it is, such as ``"weather"``.
        declared: What performing it twice would do.
        digest: Half of the SHA-256 of the request's canonical JSON, redacted; hexadecimal.
        base: Id of an earlier effect; "" for none.
        shared: How many characters the two requests have in common.
        rest: The request's text after those.
    """

    effect: str
    kind: str
    declared: Declared
    digest: str
    base: str
    shared: int
    rest: str


@message("effect.delivered")
class EffectDelivered(Event):
    """Something came into a run from outside.

    Attributes:
        effect: Whose it is; for ``"cancel"``, the path of the task cancelled.
        what: A result, an error, a piece of a stream, its end, a timer that went off, or that somebody
            outside cancelled a task.
        value: The result, piece or error as JSON text; of an end, the last piece, if both came at once;
            for a timer its seconds; else "".
        moment_ns: The clock of the run at that moment, in ns; timers and `loop.time` go by it.
    """

    effect: str
    what: Literal["value", "error", "chunk", "end", "timer", "cancel"]
    value: str
    moment_ns: int


@message("effect.read")
class EffectRead(Event):
    """An effect that does not wait: a look at the clock, a plain function, a receipt already done.

    Attributes:
        effect: Its id.
        kind: What it is.
        digest: Half of the SHA-256 of the request; "" if there is none.
        request: The request's canonical JSON, redacted; "" if there is none.
        value: The result as JSON text, or the error.
        failed: Whether it is the error.
    """

    effect: str
    kind: str
    digest: str
    request: str
    value: str
    failed: bool = False


@message("effect.cancelled")
class EffectCancelled(Event):
    """The run wants an effect no more that has not ended."""

    effect: str


@message("effect.noted")
class EffectNoted(Event):
    """More about an effect, for people: an attempt that failed, a decision, a warning.

    Attributes:
        effect: Its id; "" if it is about none.
        what: ``"attempt"``, ``"decision"``, ``"dropped"``, ``"left"``, ``"undeclared"``, …
        text: In words.
    """

    effect: str
    what: str
    text: str


Entry: TypeAlias = (
    RunSeeded
    | RunContinued
    | EffectStarted
    | EffectDelivered
    | EffectRead
    | EffectCancelled
    | EffectNoted
)


SILENT: Final = frozenset({EffectNoted, RunContinued, RunSeeded})
"""What means nothing to a replay, so that it is passed over; but see `tells_drop`."""


class Journal(Protocol):
    """Where a run writes its entries."""

    def write(self, entry: Entry) -> object:
        """Take an entry in. In the loop's thread, in order; must not block for long."""
        ...

    def commit(self) -> Awaitable[object] | None:
        """Return what is awaited until all written so far is safe: outside of the run; None: it is.

        Raises:
            Exception: It cannot be made safe; the run ends with this error.
        """
        ...


class MemoryJournal:
    """A journal that is a list.

    Attributes:
        entries: What was written.
        commits: How often it was committed.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.commits: int = 0

    def write(self, entry: Entry) -> None:
        """Keep an entry."""
        self.entries.append(entry)

    async def commit(self) -> None:
        """Count it; memory is as safe as it will be."""
        self.commits += 1


# -- requests as differences ----------------------------------------------------------------------

_CANDIDATES = 8
_WORTH_IT = 64


def digest_of(text: str) -> str:
    """Return the first half of the SHA-256 of a canonical text, hexadecimal.

    128 bits tell requests apart as surely as 256 do, and nothing else makes a recorded step shorter:
    digests are what cannot be compressed.
    """
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


class RequestStore:
    """Writes a request as its difference to an earlier one of its kind.

    A chat sends its whole history each turn. Of each kind the latest few requests are remembered, one of
    each conversation as far as can be told: a request that begins like one of them takes its place.
    """

    def __init__(self) -> None:
        # of each kind, how the latest begin, and what they are: each an effect and its text
        self._latest: dict[str, tuple[list[str], list[tuple[str, str]]]] = {}

    def delta(self, effect: str, kind: str, text: str) -> tuple[str, int, str]:
        """Return base, number of characters shared and the rest, and remember the request."""
        if len(text) < _WORTH_IT:
            return "", 0, text
        beginnings, latest = self._latest.setdefault(kind, ([], []))
        beginning = text[:_WORTH_IT]
        base, shared = "", 0
        if beginning in beginnings:  # else none shares enough, as where each says only what is new
            best, base, shared = _most_alike(latest, text)
            if 2 * shared >= len(latest[best][1]):
                del beginnings[best], latest[best]
        beginnings.append(beginning)
        latest.append((effect, text))
        if len(latest) > _CANDIDATES:
            del beginnings[0], latest[0]
        return base, shared, text[shared:]


def _most_alike(latest: Sequence[tuple[str, str]], text: str) -> tuple[int, str, int]:
    """Return which request shares most of its beginning with a text, the first of several, and how much."""
    best, base, shared = -1, "", 0
    for at, (effect, other) in enumerate(latest):
        # how much it is, is asked only of one that shares more than those before
        if len(other) > shared and text.startswith(other[: shared + 1]):
            best, base, shared = at, effect, _common_prefix(other, text, shared + 1)
    return best, base, shared


def _common_prefix(one: str, other: str, known: int) -> int:
    """Return how many characters two texts share at their beginning, at least those known to be."""
    low, high = known, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def rebuild_requests(entries: Iterable[Entry], effect: str) -> str:
    """Return the whole request of an effect, as canonical JSON text.

    Args:
        entries: The entries of its run, at least up to its start.
        effect: The effect's id.

    Raises:
        EffectError: It, or one that it builds upon, is not there.
    """
    started = {entry.effect: entry for entry in entries if isinstance(entry, EffectStarted)}
    parts: list[str] = []
    wanted: int | None = None
    at = effect
    while True:
        entry = started.get(at)
        if entry is None:
            raise EffectError(f"The recording has no start of effect {at!r}.")
        length = entry.shared + len(entry.rest)
        wanted = length if wanted is None else wanted
        if wanted > entry.shared:
            parts.append(entry.rest[: wanted - entry.shared])
        wanted = min(wanted, entry.shared)
        if not entry.base or not wanted:
            return "".join(reversed(parts))
        at = entry.base


# -- which entries hold ---------------------------------------------------------------------------


def effective(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that hold: without what was given up when the run was continued."""
    kept: list[Entry] = []
    for entry in entries:
        kept.append(entry)
        if isinstance(entry, RunContinued):
            del kept[entry.kept : -1]
    return kept


def resume_point(entries: Sequence[Entry]) -> int:
    """Return how many entries a resumed run repeats: all, if no stream is left in its middle.

    A stream that was broken off is begun anew, so nothing may have been seen of it: the run goes back
    to before its first piece. What finished after that is not performed again, see `RunContext`.
    """
    return _before_open_streams(entries, len(entries))


def cut_at(entries: Sequence[Entry], deliveries: int) -> int:
    """Return how many entries lie before what follows from the delivery of this number.

    In the middle of a stream it goes back to before the stream's first piece.

    Args:
        entries: Those that hold, see `effective`.
        deliveries: How many deliveries to keep.

    Raises:
        EffectError: There are not so many.
    """
    if deliveries == 0:
        return min(1, len(entries))
    places = [at for at, entry in enumerate(entries) if isinstance(entry, EffectDelivered)]
    if deliveries > len(places):
        raise EffectError(
            f"The recording has {len(places)} deliveries, so it cannot be forked at {deliveries}."
        )
    return _before_open_streams(entries, places[deliveries - 1] + 1)


def before_pending(entries: Sequence[Entry], kind: str) -> int:
    """Return how many entries lie before what leads to the first effect of a kind that has not ended.

    That is: up to the delivery before its start. If there is no such effect: all of them.
    """
    pending: dict[str, int] = {}
    for at, entry in enumerate(entries):
        if isinstance(entry, EffectStarted) and entry.kind == kind:
            pending[entry.effect] = at
        elif isinstance(entry, EffectDelivered | EffectCancelled) and not is_dropped(entries, at):
            pending.pop(entry.effect, None)
    if not pending:
        return len(entries)
    before = entries[: min(pending.values())]
    return cut_at(before, sum(isinstance(entry, EffectDelivered) for entry in before))


def left_by(entry: Entry) -> str:
    """Return the stream that nobody can read any more, if an entry says so; else ""."""
    return entry.effect if isinstance(entry, EffectNoted) and entry.what == "left" else ""


def tells_drop(entry: Entry) -> bool:
    """Return whether an entry says that the delivery before it was not handed in."""
    return isinstance(entry, EffectNoted) and entry.what == "dropped"


def is_dropped(entries: Sequence[Entry], at: int) -> bool:
    """Return whether the delivery at a place was written down, but not handed in.

    It came too late, or a cancellation from outside came first; then it is written down once more.
    """
    delivery = entries[at]
    if not isinstance(delivery, EffectDelivered):
        return False
    for after in range(at + 1, len(entries)):
        entry = entries[after]
        if tells_drop(entry):
            return isinstance(entry, EffectNoted) and entry.effect == delivery.effect
        if type(entry) not in SILENT:  # what is noted meanwhile is of others
            return False
    return False


def _before_open_streams(entries: Sequence[Entry], end: int) -> int:
    while True:
        first: dict[str, int] = {}
        for at in range(end):
            entry = entries[at]
            if isinstance(entry, EffectCancelled):
                first.pop(entry.effect, None)
            elif isinstance(entry, EffectNoted):
                first.pop(left_by(entry), None)
            elif isinstance(entry, EffectDelivered):
                if entry.what == "chunk":
                    first.setdefault(entry.effect, at)
                elif not is_dropped(entries, at):
                    first.pop(entry.effect, None)
        if not first:
            return end
        end = min(first.values())
